"""Measures of a registration: overlap, surface and landmark distances, similarity, folding, inverse consistency.

Convention: images (B, 1, *S), label maps (B, 1, *S) with integer ids and 0 for the background, fields (B, D, *S) in
voxels as in `fields`, masks (B, 1, *S), spacing in mm for each tensor axis. Functions return one number per sample,
NaN where a measure is not defined. Names carry the unit. `image_metrics` and `field_metrics` collect
what can be computed of a pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..fields import (
    compose,
    identity_grid,
    jacobian_determinant,
    per_channel,
    plain,
    spatial_gradient,
    transform_points,
    warp,
)
from ..vocabulary import Batch, Pred
from .overlap import check_same_shape, checked_spacing, hausdorff95, integer_labels, label_overlap, present_labels


def landmark_error_mm(points_a: Tensor, points_b: Tensor, *, spacing_mm: Sequence[float] | None = None) -> Tensor:
    """Distance of corresponding points.

    Args:
        points_a, points_b: shape (B, N, D); in mm, or in voxels of one grid if its spacing is given.
        spacing_mm: voxel size along each axis.
    Returns:
        Shape (B, N), mm. The target registration error of a map fixed -> moving compares
        `transform_points(landmarks_fixed, ddf)` with `landmarks_moving`.
    Raises:
        ValueError: if the shapes differ.
    """
    if points_a.shape != points_b.shape or points_a.ndim != 3:
        raise ValueError(
            f"expected two sets of points of one shape (B, N, D), got {tuple(points_a.shape)}, {tuple(points_b.shape)}"
        )
    difference = points_a - points_b
    if spacing_mm is not None:
        difference = difference * difference.new_tensor(checked_spacing(spacing_mm, difference.shape[-1]))
    return difference.norm(dim=-1)


def folding_fraction(ddf: Tensor, mask: Tensor | None = None) -> Tensor:
    """Share of the voxels (in the mask) where phi = id + ddf folds: det J <= 0. A fraction, not a percentage.

    A field that is not a number somewhere counts as folded there.

    Args:
        ddf: shape (B, D, *S), voxels.
        mask: shape (B, 1, *S); voxels above 0 count.
    Returns:
        Shape (B,), between 0 and 1.
    """
    determinant = jacobian_determinant(ddf)
    return _masked_mean((~(determinant > 0)).double(), _mask_like(determinant, mask))


def sd_log_jacobian(ddf: Tensor, mask: Tensor | None = None) -> Tensor:
    """Standard deviation of log det J over the voxels (in the mask) that do not fold; 0 for a translation.

    Folded voxels have no logarithm: they are left out here and counted by `folding_fraction`. (Learn2Reg instead clips
    det J + 3 at 1e-9, so its numbers are not comparable.)

    Args:
        ddf: shape (B, D, *S), voxels.
        mask: shape (B, 1, *S); voxels above 0 count.
    Returns:
        Shape (B,).
    """
    determinant = jacobian_determinant(ddf)
    weight = _mask_like(determinant, mask) * (determinant > 0)
    logarithm = determinant.double().clamp_min(torch.finfo(torch.float32).tiny).log()
    centred = logarithm - _masked_mean(logarithm, weight).view(-1, *[1] * (ddf.ndim - 1))
    return _masked_mean(centred.square(), weight).sqrt()


def inverse_consistency_mm(
    ddf: Tensor, inverse_ddf: Tensor, *, spacing_mm: Sequence[float], mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and largest distance of `phi_inverse(phi(x))` from x, in mm.

    Points that phi maps outside the grid are left out: the inverse is not known there.

    Args:
        ddf, inverse_ddf: shape (B, D, *S), voxels of the same grid.
        spacing_mm: voxel size along each axis.
        mask: shape (B, 1, *S); voxels above 0 count.
    Returns:
        Mean and maximum, each of shape (B,), mm; NaN if no point is left.
    """
    check_same_shape(ddf, inverse_ddf, "fields")
    size = ddf.shape[2:]
    spacing = per_channel(checked_spacing(spacing_mm, len(size)), ddf)
    distance = (compose(inverse_ddf, ddf) * spacing).norm(dim=1, keepdim=True)
    mapped = identity_grid(size, device=ddf.device) + ddf
    last = mapped.new_tensor([n - 1 for n in size]).view_as(spacing)
    inside = ((mapped >= 0) & (mapped <= last)).all(dim=1, keepdim=True)
    weight = _mask_like(distance, mask) * inside
    largest = distance.masked_fill(weight == 0, -math.inf).flatten(1).amax(1).double()
    return _masked_mean(distance.double(), weight), largest.masked_fill(largest < 0, math.nan)


def normalized_cross_correlation(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Global (Pearson) correlation coefficient of the intensities; shape (B,), NaN for a constant image.

    Args:
        a, b: images, shape (B, 1, *S).
        mask: shape (B, 1, *S); voxels above 0 count.
    """
    check_same_shape(a, b, "images")
    weight = _mask_like(a, mask)
    shape = (-1, *[1] * (a.ndim - 1))
    a, b = (x.double() - _masked_mean(x.double(), weight).view(shape) for x in (a, b))
    covariance = _masked_mean(a * b, weight)
    variance = _masked_mean(a * a, weight) * _masked_mean(b * b, weight)
    return torch.where(variance > 1e-24, covariance / variance.clamp_min(1e-24).sqrt(), math.nan)


def gradient_energy(image: Tensor, mask: Tensor | None = None, *, spacing_mm: Sequence[float]) -> Tensor:
    """Sharpness of images: mean squared length of the gradient (central differences, per mm) within a mask, (B,).

    Args:
        image: shape (B, C, *S); the channels' energies are averaged.
        mask: shape (B or 1, 1, *S); None for all.
        spacing_mm: voxel size along each axis.
    """
    spacing = image.new_tensor(checked_spacing(spacing_mm, image.ndim - 2)).view(1, 1, -1, *[1] * (image.ndim - 2))
    energy = (spatial_gradient(image) / spacing).double().square().sum(2).mean(1, keepdim=True)
    return _masked_mean(energy, _mask_like(image, mask))


def normalized_mutual_information(a: Tensor, b: Tensor, mask: Tensor | None = None, *, bins: int = 32) -> Tensor:
    """Normalised mutual information `(H(a) + H(b)) / H(a, b)` of a joint histogram; shape (B,).

    It is 1 for independent and 2 for equal images (up to a relabelling of intensities); NaN if both are constant. For
    reports, not for training: no gradient. The bins divide the range of each image within the mask evenly.

    Args:
        a, b: images, shape (B, 1, *S).
        mask: shape (B, 1, *S); voxels above 0 count.
        bins: number of bins for each image.
    References: Studholme et al., Pattern Recognition 32(1), 1999.
    """
    check_same_shape(a, b, "images")
    inside = _mask_like(a, mask) > 0
    values = []
    for x, y, m in zip(a.detach(), b.detach(), inside, strict=True):
        joint = torch.bincount(_bin(x[m], bins) * bins + _bin(y[m], bins), minlength=bins * bins).double()
        joint = joint.view(bins, bins) / joint.sum()
        both = _entropy(joint)
        values.append((_entropy(joint.sum(0)) + _entropy(joint.sum(1))) / both if both > 0 else both * math.nan)
    return torch.stack(values)


def foreground_mask(batch: Batch) -> Tensor:
    """Where a pair is judged, shape (B, 1, *S), bool: `mask_fixed` > 0.5, else where fixed is above its least value
    (the background of a skull-stripped or normalised image), else `label_fixed` > 0, else everywhere.

    Raises:
        ValueError: if the batch has none of these keys.
    """
    if "mask_fixed" in batch:
        return batch["mask_fixed"] > 0.5
    for key in ("fixed", "label_fixed"):
        if key in batch:
            image = batch[key][:, :1]
            mask = image > image.flatten(1).amin(1).view(-1, *[1] * (image.ndim - 1))
            return mask if mask.any() else torch.ones_like(mask)
    raise ValueError(f"expected a batch with mask_fixed, fixed or label_fixed, got {', '.join(batch) or 'no keys'}")


@torch.no_grad()
def field_metrics(
    ddf: Tensor, mask: Tensor, *, spacing_mm: Sequence[float], inverse_ddf: Tensor | None = None
) -> dict[str, float]:
    """How regular a field is, and how large, where a mask says; over a batch, the mean of its pairs.

    Args:
        ddf: shape (B, D, *S), voxels. mask: shape (B, 1, *S), bool.
        spacing_mm: voxel size of the grid along each axis.
        inverse_ddf: the displacement of the inverse map, (B, D, *S), if it is known.
    Returns:
        `folding_percent`, `sd_log_jacobian`, `displacement_mean_mm`, `displacement_max_mm` and, with an inverse,
        `inverse_consistency_mm`, `inverse_consistency_max_mm` (mean and largest distance).
    """
    ddf, mask = plain(ddf).float(), plain(mask)
    spacing = checked_spacing(spacing_mm, ddf.shape[1])
    result = {"folding_percent": 100 * _mean(folding_fraction(ddf, mask))}
    result["sd_log_jacobian"] = _mean(sd_log_jacobian(ddf, mask))
    length = (ddf * per_channel(spacing, ddf)).norm(dim=1, keepdim=True)
    result["displacement_mean_mm"] = _mean(_masked_mean(length.double(), _mask_like(length, mask)))
    result["displacement_max_mm"] = _mean((length * mask).flatten(1).amax(1))
    if inverse_ddf is not None:
        mean, largest = inverse_consistency_mm(ddf, plain(inverse_ddf).float(), spacing_mm=spacing, mask=mask)
        result["inverse_consistency_mm"], result["inverse_consistency_max_mm"] = _mean(mean), _mean(largest)
    return result


@torch.no_grad()
def image_metrics(
    batch: Batch,
    pred: Pred,
    *,
    spacing_mm: Sequence[float],
    labels: Sequence[int] | None = None,
    surfaces: bool = False,
    stages: tuple[str, str] = ("before", "after"),
) -> dict[str, float]:
    """How well images, label maps and landmarks of a registered pair agree; over a batch, the mean of its pairs.

    Keys, each present if its input is:

    - `ncc_before ncc_after nmi_before nmi_after`: similarity to fixed of moving and of warped, within the foreground
    - `dice_before dice_after`: mean Dice over labels; `dice_before_<label> dice_after_<label>` for each label
    - `hd95_before_mm hd95_after_mm`: mean over labels (with `surfaces`)
    - `landmark_error_before_mm landmark_error_after_mm`: mean over points

    Args:
        batch: `moving`, `fixed`, `label_moving`, `label_fixed`, `mask_fixed` of shape (B, 1, *S), and
            `landmarks_moving`, `landmarks_fixed` of shape (B, N, D) in voxels, as far as known. See `foreground_mask`.
        pred: `ddf` (B, D, *S), and `warped`, `label_warped` as far as known; what is missing of them is computed.
        spacing_mm: voxel size of the grid along each axis.
        labels: ids for the overlap; by default those present in the fixed or moving label map.
        surfaces: compute the Hausdorff distances, too (slow).
        stages: words for the moving and for the warped image in the keys.
    Returns:
        Name to number; NaN where a measure is not defined.
    Raises:
        ValueError: if `pred` has no `ddf` or shapes do not fit.
    """
    if "ddf" not in pred:
        raise ValueError(f"expected a prediction with the key ddf, got {', '.join(pred) or 'no keys'}")
    batch = {key: plain(value) for key, value in batch.items()}
    pred = {key: plain(value) for key, value in pred.items()}
    ddf = pred["ddf"].float()
    spacing = checked_spacing(spacing_mm, ddf.shape[1])
    result: dict[str, float] = {}
    if "moving" in batch and "fixed" in batch:
        mask = foreground_mask(batch)
        warped = pred["warped"] if "warped" in pred else warp(batch["moving"].float(), ddf)
        for name, image in zip(stages, (batch["moving"], warped), strict=True):
            result[f"ncc_{name}"] = _mean(normalized_cross_correlation(image, batch["fixed"], mask))
            result[f"nmi_{name}"] = _mean(normalized_mutual_information(image, batch["fixed"], mask))
    if "label_moving" in batch and "label_fixed" in batch:
        result |= _label_metrics(batch, pred, ddf, spacing, labels, surfaces, stages)
    if "landmarks_moving" in batch and "landmarks_fixed" in batch:
        moving, fixed = batch["landmarks_moving"].to(ddf), batch["landmarks_fixed"].to(ddf)
        first, second = stages
        result[f"landmark_error_{first}_mm"] = _mean(landmark_error_mm(fixed, moving, spacing_mm=spacing))
        mapped = transform_points(fixed, ddf)
        result[f"landmark_error_{second}_mm"] = _mean(landmark_error_mm(mapped, moving, spacing_mm=spacing))
    return result


def _label_metrics(
    batch: Batch,
    pred: Pred,
    ddf: Tensor,
    spacing: list[float],
    labels: Sequence[int] | None,
    surfaces: bool,
    stages: tuple[str, str],
) -> dict[str, float]:
    moving, fixed = integer_labels(batch["label_moving"]), integer_labels(batch["label_fixed"])
    warped = integer_labels(pred["label_warped"]) if "label_warped" in pred else warp(moving, ddf, mode="nearest")
    labels = present_labels(moving, fixed) if labels is None else list(labels)
    result: dict[str, float] = {}
    maps = dict(zip(stages, (moving, warped), strict=True))
    overlaps = {name: label_overlap(image, fixed, labels) for name, image in maps.items()}
    for name, overlap in overlaps.items():
        result[f"dice_{name}"] = _mean(overlap.nanmean(dim=1))
    if surfaces:
        for name, image in maps.items():
            result[f"hd95_{name}_mm"] = _mean(hausdorff95(image, fixed, labels, spacing_mm=spacing).nanmean(dim=1))
    for name, overlap in overlaps.items():
        result |= {f"dice_{name}_{label}": _mean(overlap[:, i]) for i, label in enumerate(labels)}
    return result


def _mask_like(image: Tensor, mask: Tensor | None) -> Tensor:
    """The mask as weights 0 or 1, shape (B, 1, *S), float64; ones if there is none."""
    if mask is None:
        return torch.ones_like(image[:, :1], dtype=torch.float64)
    if mask.shape[2:] != image.shape[2:] or mask.shape[1] != 1:
        raise ValueError(f"expected a mask of shape (B, 1, {image.shape[2:]}), got {tuple(mask.shape)}")
    return (mask > 0).double().expand(image.shape[0], *mask.shape[1:])


def _masked_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean over all but the batch axis, shape (B,); NaN where the weights are all 0."""
    weight = weight.expand_as(values)
    return (values * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)


def _bin(values: Tensor, bins: int) -> Tensor:
    low, high = values.aminmax() if values.numel() else (values.new_zeros(()), values.new_zeros(()))
    return ((values - low) / (high - low).clamp_min(1e-12) * bins).long().clamp_(0, bins - 1)


def _entropy(probabilities: Tensor) -> Tensor:
    return -torch.special.xlogy(probabilities, probabilities).sum()


def _mean(values: Tensor) -> float:
    return float(values.double().nanmean())
