"""Carry points and images through transforms: matrices and dense fields, one single interpolation.

Convention: a transform from fixed to moving is a sequence of steps, applied to points in the order given; world points
and world matrices are RAS millimetres, a dense step moves in voxels of its own grid.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..fields import identity_grid, sample
from .grids import Grid, voxel_map

_SLAB_VOXELS = 2**21  # resampling works through the target in slabs of this size: some 100 MB of temporary memory


@dataclass(frozen=True)
class DisplacementField:
    """A step of a transform: world points move by `ddf` (D, *grid.size), given in voxels of `grid` along its axes.

    Beyond the grid the field keeps its border value.
    """

    ddf: Tensor
    grid: Grid


Step = np.ndarray | DisplacementField


def transform_steps(
    world_matrix: np.ndarray | None = None, ddf: Tensor | None = None, ddf_grid: Grid | None = None
) -> list[Step]:
    """The steps of x -> world_matrix(x + u(x)): the dense field `ddf` (D, *S) on `ddf_grid`, then the matrix."""
    steps: list[Step] = []
    if ddf is not None:
        if ddf_grid is None or tuple(ddf.shape) != (len(ddf_grid.size), *ddf_grid.size):
            raise ValueError(f"expected a ddf (D, *S) on its grid, got {tuple(ddf.shape)} on {ddf_grid}")
        steps.append(DisplacementField(ddf, ddf_grid))
    if world_matrix is not None:
        steps.append(np.asarray(world_matrix, dtype=np.float64))
    return steps


def transform_points_world(points_mm: np.ndarray, steps: Sequence[Step]) -> np.ndarray:
    """Apply a transform to world points (N, D), RAS mm, steps in the order given; result (N, D), RAS mm."""
    points = np.asarray(points_mm, dtype=np.float64)
    d = points.shape[1]
    locations = torch.from_numpy(np.ascontiguousarray(points.T)).reshape(d, -1, *[1] * (d - 1))
    return _follow(locations, np.eye(d + 1), steps, np.eye(d + 1)).reshape(d, -1).T.numpy()


def resample(
    image: Tensor,
    image_affine: np.ndarray,
    grid: Grid,
    *,
    world_matrix: np.ndarray | None = None,
    ddf: Tensor | None = None,
    ddf_grid: Grid | None = None,
    steps: Sequence[Step] | None = None,
    mode: str = "linear",
    padding: str = "zeros",
    antialias: bool = False,
) -> Tensor:
    """Look an image up at world_matrix(x + u(x)) for every voxel centre x of a grid, with one single interpolation.

    Args:
        image: shape (C, *S) or (B, C, *S). image_affine: its (D + 1, D + 1) voxel to RAS mm.
        grid: the target.
        world_matrix, ddf, ddf_grid: see `transform_steps`; the field is read linearly where it does not lie on `grid`.
        steps: a whole transform from target to image space, instead of the three.
        mode: "linear" or "nearest" (label maps). padding: "zeros" or "border".
        antialias: smooth first along the axes on which the target is coarser, for bringing images to a model grid.
    Returns:
        Shape (C, *grid.size) or (B, C, *grid.size).
    Raises:
        ValueError: if the shapes do not fit, or a label map is to be interpolated or smoothed.
    """
    d = len(grid.size)
    if image.ndim not in (d + 1, d + 2) or image_affine.shape != (d + 1, d + 1):
        raise ValueError(
            f"expected a {d}-D image (C, *S) with its affine, got shape {tuple(image.shape)} and {image_affine.shape}"
        )
    steps = transform_steps(world_matrix, ddf, ddf_grid) if steps is None else steps
    batch = image if image.ndim == d + 2 else image[None]
    if antialias:
        if mode != "linear":
            raise ValueError(f"expected mode 'linear' with antialias, got {mode!r}")
        matrices = [step for step in steps if isinstance(step, np.ndarray)]
        matrix = functools.reduce(lambda first, then: then @ first, matrices, np.eye(d + 1))
        batch = _smooth_for(batch, voxel_map(grid.affine, image_affine, matrix))
    rows = max(1, _SLAB_VOXELS // max(1, math.prod(grid.size[1:])))
    slabs = []
    for start in range(0, grid.size[0], rows):
        locations = identity_grid((min(rows, grid.size[0] - start), *grid.size[1:]), device=image.device)
        locations[0] += start
        locations = _follow(locations, grid.affine, steps, image_affine)
        slabs.append(sample(batch, locations[None].to(torch.float32), mode=mode, padding=padding))
    result = torch.cat(slabs, dim=2)
    return result if image.ndim == d + 2 else result[0]


def _follow(locations: Tensor, from_affine: np.ndarray, steps: Sequence[Step], to_affine: np.ndarray) -> Tensor:
    """Carry voxel coordinates (D, *S) of one grid through a transform into voxel coordinates of another."""
    # Matrices are multiplied up in float64 from voxels to voxels, so that float32 coordinates suffice.
    pending = from_affine
    for step in steps:
        if isinstance(step, DisplacementField):
            locations = _apply_matrix(np.linalg.solve(step.grid.affine, pending), locations)
            ddf = step.ddf.to(locations.device)
            locations = locations + sample(ddf[None], locations[None], padding="border")[0]
            pending = step.grid.affine
        else:
            pending = step @ pending
    return _apply_matrix(np.linalg.solve(to_affine, pending), locations)


def _apply_matrix(matrix: np.ndarray, locations: Tensor) -> Tensor:
    d = len(locations)
    m = torch.as_tensor(matrix, dtype=locations.dtype, device=locations.device)
    return (m[:d, :d] @ locations.flatten(1) + m[:d, d:]).view_as(locations)


def _smooth_for(image: Tensor, target_to_image: np.ndarray) -> Tensor:
    """Smooth (B, C, *S) so that a grid coarser by `target_to_image` can sample it: FWHM one target voxel."""
    steps = np.linalg.norm(target_to_image[:-1, :-1], axis=1)  # image voxels per step of the target, along each axis
    sigmas = np.sqrt(np.clip(steps**2 - 1, 0, None)) / math.sqrt(8 * math.log(2))
    for axis, sigma in enumerate(sigmas, start=2):
        if sigma > 0.25 and image.shape[axis] > 1:
            image = _gaussian_along(image.float(), axis, float(sigma))
    return image


def _gaussian_along(image: Tensor, axis: int, sigma: float) -> Tensor:
    radius = math.ceil(2.5 * sigma)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    ends = [image.narrow(axis, i, 1).expand(*image.shape[:axis], radius, *image.shape[axis + 1 :]) for i in (0, -1)]
    padded = torch.cat([ends[0], image, ends[1]], dim=axis)
    smoothed = torch.zeros_like(image)
    for start, weight in enumerate(weights):
        smoothed.add_(padded.narrow(axis, start, image.shape[axis]), alpha=float(weight))
    return smoothed
