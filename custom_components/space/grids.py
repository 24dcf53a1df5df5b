"""Voxel grids in the world: canonical order, the model grid of a pair, maps between grids.

Convention: an affine (D + 1, D + 1) maps voxel indices to RAS millimetres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from ..checks import check_number


@dataclass(frozen=True)
class Grid:
    """A voxel grid in the world: `affine` (D + 1, D + 1) maps voxels to RAS mm, `size` counts voxels per axis."""

    affine: np.ndarray
    size: tuple[int, ...]

    @property
    def spacing(self) -> np.ndarray:
        """Distance of neighbouring voxel centres along each axis, shape (D,), mm."""
        return voxel_spacing(self.affine)

    @property
    def extent(self) -> float:
        """Volume (area) of all voxels together, mm^D."""
        return float(np.prod(self.spacing * np.array(self.size)))

    @property
    def center(self) -> np.ndarray:
        """World point in the middle of the grid, shape (D,), RAS mm."""
        return (self.affine @ np.append((np.array(self.size) - 1) / 2, 1))[:-1]


def voxel_spacing(affine: np.ndarray) -> np.ndarray:
    """Lengths of the voxel axes of an affine, shape (D,), mm."""
    return np.linalg.norm(affine[:-1, :-1], axis=0)


def flip_lps(d: int) -> np.ndarray:
    """RAS to LPS and back, shape (d + 1, d + 1)."""
    return np.diag([-1.0, -1.0, *[1.0] * (d - 1)])


def canonical_grid(grid: Grid) -> Grid:
    """The same voxel centres with axes permuted and flipped to lie closest to R, A, S; oblique rotations stay."""
    orientation = nib.orientations.io_orientation(grid.affine)
    order = np.argsort(orientation[:, 0])
    return Grid(
        grid.affine @ nib.orientations.inv_ornt_aff(orientation, grid.size), tuple(int(grid.size[i]) for i in order)
    )


def model_grid(
    affine: np.ndarray, size: Sequence[int], spacing_mm: float | Sequence[float] | None = None, *, multiple: int = 1
) -> Grid:
    """The grid on which a pair is registered: the fixed image's space in closest RAS axis order.

    It keeps the image's directions and centre and covers all its voxel centres; it is never stretched to fit, but
    becomes up to a voxel (or up to the next multiple) larger.

    Args:
        affine: (D + 1, D + 1) of the fixed image. size: its voxels per axis.
        spacing_mm: one number, or one per axis in R, A, S order; None keeps the image's own.
        multiple: sizes become multiples of this; an axis of one voxel stays as it is.
    Raises:
        ValueError: if the spacing is not positive or has another number of axes.
    """
    native = canonical_grid(Grid(np.asarray(affine, dtype=np.float64), tuple(int(n) for n in size)))
    spacing = native.spacing if spacing_mm is None else _per_axis(spacing_mm, len(native.size), "spacing_mm")
    old = np.array(native.size)
    # A voxel more only where the last centre is missed by more than rounding.
    new = np.ceil((old - 1) * native.spacing / spacing - 1e-3).astype(int) + 1
    new = np.where(old > 1, -(-new // multiple) * multiple, 1)
    ratio = spacing / native.spacing
    scaling = np.diag([*ratio, 1.0])
    scaling[:-1, -1] = ((old - 1) - (new - 1) * ratio) / 2
    return Grid(native.affine @ scaling, tuple(int(n) for n in new))


def fixed_size_grid(
    spacing_mm: float | Sequence[float], size: Sequence[int], center_mm: Sequence[float] | np.ndarray | None = None
) -> Grid:
    """A RAS grid of given size (D,) and spacing whose middle lies at the world point `center_mm` (default: the origin).

    Raises:
        ValueError: if the spacing is not positive, the size is none, or the numbers of axes differ.
    """
    if np.ndim(size) != 1 or len(size) not in (2, 3):
        raise ValueError(f"expected a size of 2 or 3 whole numbers, got {size!r}")
    for value in size:
        check_number("size", value, least=2, whole=True)
    d = len(size)
    spacing = _per_axis(spacing_mm, d, "spacing_mm")
    center = np.zeros(d) if center_mm is None else np.asarray(center_mm, dtype=np.float64)
    if center.shape != (d,):
        raise ValueError(f"expected a centre of {d} numbers for size {tuple(size)}, got {center.tolist()}")
    affine = np.diag([*spacing, 1.0])
    affine[:-1, -1] = center - (np.array(size) - 1) / 2 * spacing
    return Grid(affine, tuple(int(n) for n in size))


def _per_axis(value: float | Sequence[float], d: int, name: str) -> np.ndarray:
    try:
        values = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):  # texts, nested lists
        values = np.array([])
    values = np.full(d, values) if values.ndim == 0 else values
    if values.shape != (d,) or not (values > 0).all():
        raise ValueError(f"expected {name} to be one positive number or {d} of them, got {value}")
    return values


def voxel_map(from_affine: np.ndarray, to_affine: np.ndarray, world_matrix: np.ndarray | None = None) -> np.ndarray:
    """Matrix (D + 1, D + 1) from voxels of one grid to voxels of another, by a world matrix (RAS mm) if given."""
    world = from_affine if world_matrix is None else world_matrix @ from_affine
    return np.linalg.solve(to_affine, world)


def center_of_mass(weights: Tensor, affine: np.ndarray) -> np.ndarray:
    """World point (D,), RAS mm, of the centre of mass of non-negative weights (*S)."""
    weights = weights.double()
    axes = range(weights.ndim)
    profiles = [weights.sum([other for other in axes if other != axis]) for axis in axes]
    index = [float((p * torch.arange(len(p))).sum() / p.sum().clamp_min(1e-12)) for p in profiles]
    return (affine @ np.append(index, 1))[:-1]
