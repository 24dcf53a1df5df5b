"""How much of the background is left, and how much of the vessels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...repeatable import median
from .correction import Correction

_MARGIN = 0.03  # of each axis, at whose ends images enter and leave
_DILATION = 2  # pixels around what may be a vessel
_CLEAR = 4.0  # deviations that a smoothed pixel must exceed to be a vessel


def background_rms(difference: Tensor, background: Tensor) -> float:
    """Root mean square of differences (T, 1, H, W) where a mask of the same shape says."""
    return float(difference[background].square().mean().sqrt())


def noise_of(difference: Tensor) -> float:
    """Standard deviation of white noise in differences (T, 1, H, W): a second difference along both axes sees no edge's
    slope, and a median few edges at all. After Immerkaer (CVIU 64(2), 1996), there with a mean."""
    kernel = torch.tensor([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]], device=difference.device).view(1, 1, 3, 3)
    high = F.conv2d(difference, kernel).abs().flatten(1)
    return float((1.4826 * median(high, 1) / 6).square().mean().sqrt())


def seen_vessels(difference: Tensor) -> Tensor:
    """Where a vessel may be in some frame, (1, 1, H, W): what stays dark when smoothed, and some pixels around it."""
    smooth = F.avg_pool2d(difference, 5, 1, 2, count_include_pad=False)
    scale = 1.4826 * median(smooth.flatten(1).abs(), 1).clamp(min=1e-6).view(-1, 1, 1, 1)
    found = ((smooth / scale) > _CLEAR).any(0, keepdim=True).float()
    return F.max_pool2d(found, 2 * _DILATION + 1, 1, _DILATION) > 0


def inner(like: Tensor) -> Tensor:
    """All but the margins of images, of the shape of `like` (T, 1, H, W), bool."""
    found = torch.zeros_like(like, dtype=torch.bool)
    rows, columns = (max(1, math.ceil(_MARGIN * n)) for n in like.shape[2:])
    found[:, :, rows:-rows, columns:-columns] = True
    return found


def series_metrics(found: Correction) -> dict[str, float]:
    """Of a series of which nothing is known: root mean squares of the background before and after, the noise, and
    their ratios. The background is where no vessel may be, by the corrected series. The mask's own frames do not count:
    their noise is in the mask, too."""
    before, after = found.before[found.others], found.after[found.others]
    background = inner(before) & ~seen_vessels(after).expand_as(before)
    noise = noise_of(after)
    rms_before, rms_after = (background_rms(one, background) for one in (before, after))
    return {
        "background_rms_before": rms_before,
        "background_rms_after": rms_after,
        "noise": noise,
        "background_to_noise_before": rms_before / max(noise, 1e-12),
        "background_to_noise_after": rms_after / max(noise, 1e-12),
        "motion_mean_pixels": float(found.ddf.square().sum(1).sqrt().mean()),
        "motion_max_pixels": float(found.ddf.square().sum(1).sqrt().max()),
    }


def vessel_preservation(difference: Tensor, vessels: Tensor) -> float:
    """<S, V> / <V, V> of differences and true vessels (T, 1, H, W): 1 if they are as they were, less if erased."""
    return float((difference * vessels).sum() / vessels.square().sum().clamp(min=1e-12))


def true_metrics(found: Correction, vessels: Tensor, noise: Tensor, ddf: Tensor) -> dict[str, float]:
    """Of a series whose truth is known (see `data.angiography.Angiogram`): what is left of the background outside the
    vessels, over the noise floor; how much of the vessels is there; the error of the motion, pixels. The mask's own
    frames do not count.

    Args:
        found: the series before and after.
        vessels: their true attenuation, (T, 1, H, W).
        noise: standard deviation of each pixel's logarithm, (T, 1, H, W).
        ddf: the true motion, (T, 2, H, W), pixels.
    """
    mask = noise[list(found.mask_frames) or [0]].square().mean(0) / max(1, len(found.mask_frames))
    before, after = found.before[found.others], found.after[found.others]
    vessels, noise = vessels[found.others], noise[found.others]
    error = (found.ddf - ddf)[found.others].square().sum(1, keepdim=True).sqrt()
    near = F.max_pool2d(vessels.amax(0, keepdim=True), 5, 1, 2) > 1e-3
    background = inner(vessels) & ~near.expand_as(vessels)
    floor = (noise.square() + mask)[background].mean().sqrt()
    inside = near.expand_as(vessels) & inner(vessels)
    return {
        "noise_floor": float(floor),
        "residual_before": background_rms(before, background) / float(floor),
        "residual_after": background_rms(after, background) / float(floor),
        "preservation_before": vessel_preservation(before * inside, vessels * inside),
        "preservation_after": vessel_preservation(after * inside, vessels * inside),
        "vessel_error_before": background_rms(before - vessels, inside),
        "vessel_error_after": background_rms(after - vessels, inside),
        "motion_error_pixels": float(error[inner(vessels)].mean()),
    }
