"""How alike two images are on the fixed image's own grid, before and after a registration."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..evaluation.metrics import normalized_cross_correlation, normalized_mutual_information
from ..notices import warn
from ..space.grids import Grid
from ..space.resampling import Step, resample
from ..space.volumes import Volume
from .registered import RegisteredPair

_POINTS = 2**18  # at which the images are compared

_FEW = 100  # points that tell nothing

_SAME_CONTRAST = 0.3  # least correlation of images that show the same contrast

Likeness = tuple[float, float]  # correlation and normalised mutual information


def image_likeness(pair: RegisteredPair) -> dict[str, float]:
    """Correlation and mutual information of the native images, and a warning if the registration lowered them.

    `image_ncc_before image_nmi_before` are as the headers place the images, `..._after` through the whole transform.
    They are compared at voxel centres of the fixed image, where it exceeds its least value (of a mask: everywhere) and
    the moving image reaches in both placements. If the headers alone leave nothing of it there, there is only
    `..._after`. NaN if the points are too few all the same.
    """
    fixed, moving = pair.volumes["fixed"], pair.volumes["moving"]
    before, after = likeness(fixed, moving, [[], pair.forward])
    if math.isnan(after[0]):
        (after,) = likeness(fixed, moving, [pair.forward])
    if pair.is_aligned:
        headers, aligned = likeness(fixed, moving, [[], [pair.world_matrix]])
        if is_less(aligned, headers):
            change = _fall(headers, aligned)
            warn(f"{moving.path}: the affine alignment made it less like {fixed.path} than the headers do ({change})")
    aligned, deformed = likeness(fixed, moving, [[pair.world_matrix], pair.forward])
    if is_less(deformed, aligned):
        warn(f"{moving.path}: the deformation made it less like {fixed.path} than it was ({_fall(aligned, deformed)})")
    keys = ("image_ncc_before", "image_nmi_before", "image_ncc_after", "image_nmi_after")
    found = dict(zip(keys, [*before, *after], strict=True))
    return {key: value for key, value in found.items() if not math.isnan(value) or math.isnan(after[0])}


def likeness(fixed: Volume, moving: Volume, transforms: Sequence[Sequence[Step]]) -> list[Likeness]:
    """Compare a fixed image with a moving one through several transforms, all at the same points."""
    fixed, moving = fixed.first, moving.first
    grid, values = _thinned(fixed)
    inside = values > values.min()
    if not inside.any() or values[inside].min() == values[inside].max():
        inside = torch.ones_like(inside)  # of a mask, only its border tells something
    images = []
    for steps in transforms:
        images.append(resample(moving.data.float(), moving.affine, grid, steps=steps))
        inside &= resample(torch.ones_like(moving.data, dtype=torch.float32), moving.affine, grid, steps=steps) > 0.99
    if int(inside.sum()) < _FEW:
        return [(math.nan, math.nan)] * len(images)
    return [_alike(image[inside], values[inside]) for image in images]


def is_less(after: Likeness, before: Likeness) -> bool:
    """Whether images became clearly less alike: by their mutual information and, of one contrast, by correlation."""
    same = max(abs(before[0]), abs(after[0])) > _SAME_CONTRAST
    by_information = after[1] - 1 < 0.95 * (before[1] - 1)
    return by_information and (abs(after[0]) < abs(before[0]) - 0.01 or not same)


def _fall(before: Likeness, after: Likeness) -> str:
    return f"correlation {before[0]:.3f} -> {after[0]:.3f}, mutual information {before[1]:.3f} -> {after[1]:.3f}"


def _thinned(volume: Volume) -> tuple[Grid, Tensor]:
    """Every n-th voxel along each axis, so that at most `_POINTS` are left (about), with their grid."""
    size = volume.grid.size
    steps = [1] * len(size)
    while math.prod(-(-n // step) for n, step in zip(size, steps, strict=True)) > _POINTS:
        largest = max(range(len(size)), key=lambda axis: size[axis] / steps[axis])
        steps[largest] += 1
    values = volume.data[(slice(None), *[slice(None, None, step) for step in steps])].float()
    return Grid(volume.affine @ np.diag([*steps, 1.0]), tuple(values.shape[1:])), values


def _alike(a: Tensor, b: Tensor) -> Likeness:
    a, b = a.view(1, 1, 1, -1), b.view(1, 1, 1, -1)
    return float(normalized_cross_correlation(a, b)), float(normalized_mutual_information(a, b))
