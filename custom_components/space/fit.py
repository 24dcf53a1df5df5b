"""Whether two images can be registered: do they overlap, and is the model grid neither too coarse nor constant?

Convention: affines and world matrices are RAS millimetres; a world matrix maps fixed points to moving points.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np

from ..memory import available_bytes, check_memory
from ..notices import warn
from .grids import Grid, canonical_grid, model_grid, voxel_map
from .volumes import Volume

logger = logging.getLogger(__name__)

_POINTS_PER_AXIS = 24  # at which overlap is looked for

_LITTLE_OVERLAP = 0.1

_BYTES_PER_VOXEL_3D, _BYTES_PER_VOXEL_2D = 240.0, 100.0

MIN_VOXELS = 16  # along the longest axis of a model grid

MOST_HALVED_VOXELS = 20_000_000  # of a halved grid: a head of 256 x 256 x 256 mm at 1 mm has 17 million

_HALVED_BYTES_PER_VOXEL = 300.0

_AS_FINE = 0.75  # times the spacing: voxels of images that a grid of half the spacing can show more of

_USUAL_VOXELS = 96  # along the longest axis, where the spacing is chosen: a brain at 2 mm has that many


def check_overlap(fixed: Volume, moving: Volume, world_matrix: np.ndarray, how: str) -> None:
    """Refuse two images that share no part of the world; warn if they share little.

    Args:
        fixed, moving: the images.
        world_matrix: (D + 1, D + 1), from fixed to moving points, RAS mm.
        how: what `world_matrix` comes from, for the message: "none" for the headers alone.
    Raises:
        ValueError: if no voxel of one lies in the other.
    """
    inverse = np.linalg.inv(world_matrix)
    shares = (_share(fixed.grid, moving.grid, world_matrix), _share(moving.grid, fixed.grid, inverse))
    share = max(shares)
    if share > _LITTLE_OVERLAP:
        return
    center = (world_matrix @ np.append(fixed.grid.center, 1))[:-1]
    distance = float(np.linalg.norm(moving.grid.center - center))
    placed = "their headers place them" if how == "none" else f"the affine transform ({how}) places them"
    cure = "align them with --affine itk, or correct the headers" if how == "none" else "correct the headers"
    text = f"{fixed.path}, as {placed}: the centres are {distance:.4g} mm apart; {cure}"
    if share == 0:
        raise ValueError(f"{moving.path}: does not overlap with {text}")
    warn(f"{moving.path}: only {100 * share:.0f} % overlap with {text}")


def _share(grid: Grid, other: Grid, world_matrix: np.ndarray) -> float:
    """How much of a grid lies in another one."""
    axes = [np.linspace(0, n - 1, min(n, _POINTS_PER_AXIS)) for n in grid.size]
    points = np.stack([*np.meshgrid(*axes, indexing="ij"), np.ones([len(axis) for axis in axes])]).reshape(
        len(axes) + 1, -1
    )
    voxels = (voxel_map(grid.affine, other.affine, world_matrix) @ points)[:-1]
    last = np.array(other.size)[:, None] - 0.5
    return float(((voxels >= -0.5) & (voxels <= last)).all(0).mean())


def fitting_grid(fixed: Volume, spacing_mm: float | Sequence[float] | None, *, fit: bool) -> Grid:
    """The model grid of a fixed image; where the spacing is too coarse for it, one chosen by the image, with a warning.

    A grid is too coarse with fewer than 16 voxels along its longest axis. The chosen spacing gives that axis 96, or
    as many as the image has.

    Args:
        spacing_mm: wanted; see `model_grid`.
        fit: False keeps the wanted spacing, and only warns.
    Raises:
        ValueError: if the spacing is to be kept and is larger than the image.
    """
    native = canonical_grid(fixed.grid)
    spacing = native.spacing if spacing_mm is None else np.asarray(spacing_mm, dtype=np.float64)
    if (spacing > 0).all():
        voxels = math.prod(float(n) for n in (np.array(native.size) - 1) * native.spacing / spacing + 1)
        what = f"{fixed.path}: a model grid of {voxels:.3g} voxels"
        check_memory(model_grid_bytes(voxels, len(native.size)), what, "give a coarser --spacing, or crop the image")
    grid = model_grid(fixed.affine, fixed.grid.size, spacing_mm)
    if spacing_mm is None or max(grid.size) >= min(MIN_VOXELS, max(native.size)):
        return grid
    extent = float((native.spacing * (np.array(native.size) - 1)).max())
    wanted = " x ".join(f"{number:g}" for number in np.atleast_1d(np.asarray(spacing_mm, dtype=float)))
    found = f"{fixed.path}: a spacing of {wanted} mm"
    if not fit:
        if float(grid.spacing.min()) > extent:
            raise ValueError(f"{found} is larger than the image ({extent:.4g} mm); give a smaller --spacing")
        warn(f"{found} leaves only {_by(grid.size)} voxels; the result will be coarse")
        return grid
    chosen = float(f"{max(extent / (_USUAL_VOXELS - 1), float(native.spacing.min())):.3g}")
    better = model_grid(fixed.affine, fixed.grid.size, chosen)
    warn(
        f"{found} would leave {_by(grid.size)} voxels; {chosen:g} mm was taken instead ({_by(better.size)} voxels), "
        "which is not what the weights were trained for; --spacing sets another"
    )
    return better


def halved_grid(fixed: Volume, moving: Volume, grid: Grid) -> Grid | None:
    """A model grid of half the spacing, where both images show more on it; None where they do not, or it is too large.

    Both images' voxels must be smaller than three quarters of the grid's, as cubes of their volume. A grid of more than
    20 million voxels, or of more than fits into memory, is too large: the log says so.
    """
    voxels = [float(np.prod(volume.grid.spacing)) for volume in (fixed, moving)]
    if max(voxels) > _AS_FINE ** len(grid.size) * float(np.prod(grid.spacing)):
        return None
    halved = model_grid(fixed.affine, fixed.grid.size, [float(mm) / 2 for mm in grid.spacing])
    count = math.prod(halved.size)
    if count > MOST_HALVED_VOXELS or count * _HALVED_BYTES_PER_VOXEL > available_bytes():
        spacing = " x ".join(f"{number:.3g}" for number in grid.spacing)
        logger.info("half the spacing would make %.3g million voxels: the grid stays at %s mm", count / 1e6, spacing)
        return None
    return halved


def checked_grid(grid: Grid, image: Volume) -> Grid:
    """A grid of a training's size and spacing, if it can hold something of an image.

    Raises:
        ValueError: if one of its voxels is larger than the image, all of it smaller than a voxel, or it does not fit
            into memory.
    """
    what = f"{image.path}: a grid of {_by(grid.size)} voxels"
    check_memory(model_grid_bytes(math.prod(map(float, grid.size)), len(grid.size)), what, "give a smaller --size")
    extent = float((image.grid.spacing * np.array(image.grid.size)).max())
    if float(grid.spacing.min()) > extent:
        spacing = f"{float(grid.spacing.min()):g} mm is larger than the image ({extent:.4g} mm)"
        raise ValueError(f"{image.path}: a spacing of {spacing}; give a smaller --spacing")
    across, voxel = float((grid.spacing * np.array(grid.size)).max()), float(image.grid.spacing.min())
    if across < voxel:
        raise ValueError(f"{what} is {across:.2g} mm wide, less than a voxel ({voxel:.4g} mm); give a larger --spacing")
    return grid


def model_grid_bytes(voxels: float, dimensions: int) -> float:
    """An estimate of the memory that a registration takes at least, by the voxels of its model grid.

    Measured in 3-D with `synthmorph` at 64^3 and 96^3, without refinement (docs/reliability.md). That for 2-D is a
    guess: no image of two dimensions comes near a machine's memory.
    """
    return voxels * (_BYTES_PER_VOXEL_3D if dimensions == 3 else _BYTES_PER_VOXEL_2D)


def _by(size: Sequence[int]) -> str:
    return " x ".join(str(n) for n in size)
