"""Measures of a written field at the voxels of the fixed image, where its users meet it.

A registration computes on its model grid. The files hold that field; between its nodes it is interpolated linearly, and
what folds there counts, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..fields import jacobian_determinant
from ..space.grids import Grid
from ..space.resampling import DisplacementField, dense_field, field_rows

_SLAB_VOXELS = 2**18  # at a time: few enough for the processor's cache
_ROUND_TRIPS = 2**20  # points that go there and back


@dataclass(frozen=True)
class WrittenField:
    """A field at the voxels of the fixed image.

    Args:
        determinant: of its Jacobian, by differences between neighbouring voxels, shape (1, *S).
        metrics: of the foreground: `folding_percent`, `sd_log_jacobian` (of what does not fold),
            `displacement_mean_mm`, `displacement_max_mm`, and if the inverse is known `inverse_consistency_mm`,
            `inverse_consistency_max_mm`; NaN where there is nothing to measure.
    """

    determinant: Tensor
    metrics: dict[str, float]


@torch.no_grad()
def written_field(
    forward: DisplacementField, inverse: DisplacementField | None, grid: Grid, foreground: Tensor
) -> WrittenField:
    """Measure a field, slab by slab, so that large images take little memory, and its inverse.

    Args:
        forward: from fixed points. inverse: back, if it is known; up to a million points, evenly spaced, are carried
            there and back.
        grid: of the fixed image. foreground: shape (1, *grid.size), bool.
    """
    determinant = torch.empty(1, *grid.size)
    found = []
    rows = max(1, _SLAB_VOXELS // math.prod(grid.size[1:]))
    for start in range(0, grid.size[0], rows):
        stop = min(start + rows, grid.size[0])
        # Central differences need a row more on each side.
        first = max(start - 1, 0)
        ddf, own = field_rows(forward, grid, first, min(stop + 1, grid.size[0])), slice(start - first, stop - first)
        determinant[:, start:stop] = jacobian_determinant(ddf[None])[0][:, own]
        found.append(_sums(determinant[:, start:stop], _lengths(ddf[:, own], grid), foreground[:, start:stop]))
    metrics = _measures(torch.stack(found)) | (_round_trip(forward, inverse, grid, foreground) if inverse else {})
    return WrittenField(determinant, metrics)


def _sums(determinant: Tensor, length: Tensor, inside: Tensor) -> Tensor:
    """Of the foreground's voxels in a slab: number, number that does not fold, sum of logarithms and of their squares,
    sum of lengths, largest length."""
    regular = inside & (determinant > 0)
    logarithm = determinant.clamp_min(torch.finfo(torch.float32).tiny).log_().mul_(regular)
    length = length * inside
    sums = [part.sum(dtype=torch.float64) for part in (inside, regular, logarithm, logarithm * logarithm, length)]
    return torch.stack([*sums, length.max().double()])


def _measures(sums: Tensor) -> dict[str, float]:
    voxels, regular, logarithms, squares, lengths, _ = sums.sum(0).tolist()
    if not voxels:
        names = ("folding_percent", "sd_log_jacobian", "displacement_mean_mm", "displacement_max_mm")
        return dict.fromkeys(names, math.nan)
    variance = max(squares / regular - (logarithms / regular) ** 2, 0.0) if regular else math.nan
    return {
        "folding_percent": 100 * (voxels - regular) / voxels,
        "sd_log_jacobian": math.sqrt(variance),
        "displacement_mean_mm": lengths / voxels,
        "displacement_max_mm": float(sums[:, -1].max()),
    }


def _round_trip(
    forward: DisplacementField, inverse: DisplacementField, grid: Grid, foreground: Tensor
) -> dict[str, float]:
    step = math.ceil((math.prod(grid.size) / _ROUND_TRIPS) ** (1 / len(grid.size)))
    scaling = np.diag([*[float(step)] * len(grid.size), 1.0])
    points = Grid(grid.affine @ scaling, tuple(-(-n // step) for n in grid.size))
    inside = foreground[(slice(None), *[slice(None, None, step)] * len(grid.size))]
    missed = _lengths(dense_field([forward, inverse], points).ddf, points)[inside]
    mean, largest = (float(missed.mean()), float(missed.max())) if len(missed) else (math.nan, math.nan)
    return {"inverse_consistency_mm": mean, "inverse_consistency_max_mm": largest}


def _lengths(ddf: Tensor, grid: Grid) -> Tensor:
    """Lengths in mm of vectors (D, *S) in voxels of a grid, shape (1, *S)."""
    squares = [(float(mm) * one).square_() for mm, one in zip(grid.spacing, ddf, strict=True)]
    return sum(squares[1:], squares[0]).sqrt()[None]
