"""Carry points and images through transforms: matrices and dense fields, one single interpolation.

Convention: a transform from fixed to moving is a sequence of steps, applied to points in the order given; world points
and world matrices are RAS millimetres, a dense step moves in voxels of its own grid.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..fields import identity_grid, sample
from .grids import Grid, voxel_map

_FADE = 1.5  # length of the fading zone over the displacement; beyond 1 the zone does not fold
_STILL_MM = 1e-3  # a face that moves less needs no fading zone
_PARALLEL = 1e-3  # voxels by which parallel axes may part
_SLAB_VOXELS = 2**21  # resampling works through the target in slabs of this size: some 100 MB of temporary memory


@dataclass(frozen=True)
class DisplacementField:
    """A step of a transform: world points move by `ddf` (D, *grid.size), given in voxels of `grid` along its axes.

    As in ITK, nothing moves further than half a voxel beyond the grid; up to there the field has its border's value.
    """

    ddf: Tensor
    grid: Grid

    def fading(self) -> DisplacementField:
        """The same map on a grid so large that the field fades to nothing before it ends.

        Beyond each face the field keeps its border value for as many millimetres as the longest vector there, so that
        points which leave the grid find the way back, and fades over one and a half times as many, so that nothing
        folds. Where a face does not move, nothing is added.
        """
        spacing = self.grid.spacing
        scale = self.ddf.new_tensor(spacing).view(-1, *[1] * (len(spacing) - 1))
        holds, margins = [], []
        for axis, mm in enumerate(spacing):
            faces = [self.ddf.select(axis + 1, end) for end in (0, -1)]
            longest = [float((face * scale).norm(dim=0).max()) for face in faces]
            longest = [length / mm if length > _STILL_MM else 0.0 for length in longest]
            holds.append([math.ceil(n) for n in longest])
            margins.append([math.ceil(n) + math.ceil(_FADE * n) for n in longest])
        if not np.any(margins):
            return self
        ddf, weight = self.ddf, self.ddf.new_ones(1)
        for axis, (hold, margin) in enumerate(zip(holds, margins, strict=True)):
            ends = [ddf.narrow(axis + 1, end, 1) for end in (0, ddf.shape[axis + 1] - 1)]
            ddf = torch.cat([*[ends[0]] * margin[0], ddf, *[ends[1]] * margin[1]], axis + 1)
            ramps = [torch.linspace(1, 0, m - h + 1)[1:] for h, m in zip(hold, margin, strict=True)]
            along = [ramps[0].flip(0), torch.ones(hold[0] + self.grid.size[axis] + hold[1]), ramps[1]]
            shape = [-1 if i == axis else 1 for i in range(len(spacing))]
            weight = torch.minimum(weight, torch.cat(along).view(shape))
        shift = np.eye(len(spacing) + 1)
        shift[:-1, -1] = [-margin[0] for margin in margins]
        return DisplacementField(ddf * weight, Grid(self.grid.affine @ shift, tuple(ddf.shape[1:])))


Step = np.ndarray | DisplacementField
Fill = float | Sequence[float]


def fading(steps: Sequence[Step]) -> list[Step]:
    """The same transform with fields that fade beyond their grids (`DisplacementField.fading`)."""
    return [step.fading() if isinstance(step, DisplacementField) else step for step in steps]


def spatial_dims_of_steps(steps: Sequence[Step]) -> int:
    """Whether a transform moves 2-D or 3-D points. Raises ValueError: if it is empty, or its steps do not agree."""
    found = {len(step) - 1 if isinstance(step, np.ndarray) else len(step.grid.size) for step in steps}
    if len(found) != 1:
        raise ValueError(f"expected a transform of 2-D or 3-D points, got steps of {sorted(found) or 'no'} dimensions")
    return found.pop()


def transform_steps(
    world_matrix: np.ndarray | None = None, ddf: Tensor | None = None, ddf_grid: Grid | None = None
) -> list[Step]:
    """The steps of x -> world_matrix(x + u(x)): the dense field `ddf` (D, *S) on `ddf_grid`, then the matrix.

    Raises:
        ValueError: for a field of another size than its grid.
    """
    steps: list[Step] = []
    if ddf is not None:
        if ddf_grid is None or tuple(ddf.shape) != (len(ddf_grid.size), *ddf_grid.size):
            raise ValueError(f"expected a ddf (D, *S) on its grid, got {tuple(ddf.shape)} on {ddf_grid}")
        steps.append(DisplacementField(ddf, ddf_grid))
    if world_matrix is not None:
        steps.append(np.asarray(world_matrix, dtype=np.float64))
    return steps


def merged(steps: Sequence[Step]) -> list[Step]:
    """The same transform with each run of matrices as one matrix."""
    result: list[Step] = []
    for step in steps:
        if isinstance(step, np.ndarray) and result and isinstance(result[-1], np.ndarray):
            result[-1] = step @ result[-1]
        else:
            result.append(step)
    return result


def dense_field(steps: Sequence[Step], grid: Grid) -> DisplacementField:
    """A whole transform as one field on a grid: exact at its voxel centres."""
    moved = [
        (_follow(start, grid.affine, steps, grid.affine) - start).float()
        for start in _in_slabs(grid.size, dtype=torch.float64)
    ]
    return DisplacementField(torch.cat(moved, dim=1), grid)


def rows_on_grid(values: Tensor, own: Grid, grid: Grid, start: int, stop: int) -> Tensor:
    """Values (C, *own.size) at some rows (first axis) of another grid, linear, shape (C, stop - start, *S).

    Beyond half a voxel outside they are 0. Where the axes of both grids are parallel, as those of a model grid and its
    fixed image, each axis is interpolated by itself: the same values as `resample` has in a tenth of the time.
    """
    matrix = np.linalg.solve(own.affine, grid.affine)
    axes = _parallel_axes(matrix, grid.size)
    if axes is None:
        locations = identity_grid((stop - start, *grid.size[1:]), dtype=torch.float64)
        locations[0] += start
        return _sample_as_itk(values[None], "linear", 0.0, _apply_matrix(matrix, locations).float()[None])[0]
    for axis, other in sorted(enumerate(axes), key=lambda pair: pair[1]):  # the rows first: there are fewer
        index = np.arange(start, stop) if other == 0 else np.arange(grid.size[other])
        values = _looked_up(values, axis + 1, matrix[axis, other] * index + matrix[axis, -1])
    return values.permute(0, *[axes.index(other) + 1 for other in range(len(axes))])


def field_rows(field: DisplacementField, grid: Grid, start: int, stop: int) -> Tensor:
    """A field at some rows (first axis) of another grid, shape (D, stop - start, *S), in voxels of that grid."""
    linear = np.linalg.solve(grid.affine, field.grid.affine)
    linear[:-1, -1] = 0
    return _apply_matrix(linear, rows_on_grid(field.ddf, field.grid, grid, start, stop))


def _parallel_axes(matrix: np.ndarray, size: Sequence[int]) -> list[int] | None:
    """For each axis of a field the axis of the grid parallel to it, by the matrix between their voxels, or None."""
    linear = np.abs(matrix[:-1, :-1])
    axes = [int(i) for i in linear.argmax(1)]
    rest = linear * np.array(size)  # voxels of the field that a whole row of the grid moves along an axis
    rest[np.arange(len(axes)), axes] = 0
    return axes if len(set(axes)) == len(axes) and rest.max() < _PARALLEL else None


def _looked_up(values: Tensor, axis: int, coordinates: np.ndarray) -> Tensor:
    """Linear interpolation along one axis, as `_sample_as_itk` has it: 0 further than half a voxel outside."""
    last = values.shape[axis] - 1
    inside = (coordinates >= -0.5) & (coordinates < last + 0.5)
    places = np.clip(coordinates, 0, last)
    low = np.minimum(np.floor(places).astype(np.int64), max(last - 1, 0))
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    weight = values.new_tensor(places - low).view(shape)
    below, above = (values.index_select(axis, torch.from_numpy(np.minimum(low + k, last))) for k in (0, 1))
    result = torch.lerp(below, above, weight)
    return result if inside.all() else result * values.new_tensor(inside.astype(np.float32)).view(shape)


def _in_slabs(size: Sequence[int], dtype: torch.dtype, device: torch.device | None = None) -> Iterator[Tensor]:
    """The voxel coordinates (D, *S) of a grid, a slab of the first axis after the other."""
    rows = max(1, _SLAB_VOXELS // max(1, math.prod(size[1:])))
    for start in range(0, size[0], rows):
        locations = identity_grid((min(rows, size[0] - start), *size[1:]), dtype=dtype, device=device)
        locations[0] += start
        yield locations


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
    fill: Fill | None = None,
    antialias: bool = False,
) -> Tensor:
    """Look an image up at world_matrix(x + u(x)) for every voxel centre x of a grid, with one single interpolation.

    Args:
        image: shape (C, *S) or (B, C, *S). image_affine: its (D + 1, D + 1) voxel to RAS mm.
        grid: the target.
        world_matrix, ddf, ddf_grid: see `transform_steps`; the field is read linearly where it does not lie on `grid`.
        steps: a whole transform from target to image space, instead of the three.
        mode: "linear", "nearest" (label maps), or with a fill value "cubic" (B-splines; needs scipy).
        padding: "zeros" or "border"; of no meaning with a fill value.
        fill: look up as ITK does: up to half a voxel beyond the outer voxel centres the image has its border's value,
            further out this one, or one for each channel; between two voxels "nearest" takes the one of higher index.
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
    if fill is None:
        look_up = functools.partial(sample, batch, mode=mode, padding=padding)
    else:
        look_up = functools.partial(
            _sample_as_itk, _spline_coefficients(batch) if mode == "cubic" else batch, mode, fill
        )
    # Points half-way between two voxels are common on label maps; rounding must not decide about them.
    precision = torch.float64 if fill is not None and mode == "nearest" else torch.float32
    slabs = [
        look_up(_follow(locations, grid.affine, steps, image_affine).to(precision)[None])
        for locations in _in_slabs(grid.size, dtype=precision, device=image.device)
    ]
    result = torch.cat(slabs, dim=2)
    return result if image.ndim == d + 2 else result[0]


def fill_values(fill: Fill, like: Tensor) -> Tensor:
    """Fill values to be broadcast with a tensor (B, C, *S), of its type."""
    return torch.as_tensor(fill, dtype=like.dtype, device=like.device).view(1, -1, *[1] * (like.ndim - 2))


def _sample_as_itk(image: Tensor, mode: str, fill: Fill, locations: Tensor) -> Tensor:
    """Look up (B, C, *S) at voxel coordinates (1, D, *S'); `fill` where they lie in no voxel."""
    inside = _inside(locations[0], image.shape[2:])
    if mode == "nearest":
        locations = (locations + 0.5).floor()
    values = _splines(image, locations[0]) if mode == "cubic" else sample(image, locations, mode=mode, padding="border")
    return torch.where(inside, values, fill_values(fill, values))


def _inside(locations: Tensor, size: Sequence[int]) -> Tensor:
    """Where voxel coordinates (D, *S) lie in the voxels of an image: within half a voxel of a centre."""
    return torch.stack([(x >= -0.5) & (x < n - 0.5) for x, n in zip(locations, size, strict=True)]).all(0)


def _spline_coefficients(image: Tensor) -> Tensor:
    """Coefficients of the cubic B-splines through an image (B, C, *S), mirrored at its borders as ITK does it."""
    ndimage = _import_ndimage()
    flat = image.double().flatten(0, 1).numpy()
    filtered = np.stack([ndimage.spline_filter(channel, order=3, mode="mirror") for channel in flat])
    return torch.from_numpy(filtered).view(image.shape)


def _splines(coefficients: Tensor, locations: Tensor) -> Tensor:
    ndimage = _import_ndimage()
    flat = coefficients.flatten(0, 1).numpy()
    where = locations.double().numpy()
    values = [ndimage.map_coordinates(one, where, order=3, mode="mirror", prefilter=False) for one in flat]
    return torch.from_numpy(np.stack(values)).view(*coefficients.shape[:2], *locations.shape[1:]).float()


def _import_ndimage() -> Any:
    try:
        from scipy import ndimage
    except ImportError as error:
        raise ImportError("cubic interpolation needs the package scipy: pip install 'morphzoo[demo]'") from error
    return ndimage


def _follow(locations: Tensor, from_affine: np.ndarray, steps: Sequence[Step], to_affine: np.ndarray) -> Tensor:
    """Carry voxel coordinates (D, *S) of one grid through a transform into voxel coordinates of another."""
    # Matrices are multiplied up in float64 from voxels to voxels, so that float32 coordinates suffice.
    pending = from_affine
    for step in steps:
        d = len(step.grid.size) if isinstance(step, DisplacementField) else len(step) - 1
        if d != len(locations):
            raise ValueError(f"expected a transform of {len(locations)}-D points, got one of {d}-D points")
        if isinstance(step, DisplacementField):
            locations = _apply_matrix(np.linalg.solve(step.grid.affine, pending), locations)
            locations = locations + _displacement(step.ddf.to(locations.device), locations)
            pending = step.grid.affine
        else:
            pending = step @ pending
    return _apply_matrix(np.linalg.solve(to_affine, pending), locations)


def _displacement(ddf: Tensor, locations: Tensor) -> Tensor:
    """A field (D, *S) at voxel coordinates (D, *S'), without displacement outside its voxels."""
    return _sample_as_itk(ddf[None], "linear", 0.0, locations[None])[0]


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
