"""One-slice images: registered in the plane of their slice, in 2-D; placed in the 3-D world where files need it.

Convention: a frame (4, 4) maps (u, v, n, 1) to RAS mm: u and v are the plane's two coordinates, n is the distance from
it. The frame of an image that has no third axis in its file is the identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np
import torch

from .grids import Grid
from .resampling import DisplacementField, Step, merged

_WORLD_PLANE = 1e-4  # a slice that is tilted by less lies in a plane of the world


def slice_axis(shape: Sequence[int], path: str) -> int | None:
    """The axis along which an image has one voxel, 2 for a file of two axes; None for a 3-D image.

    Raises:
        ValueError: if fewer than two axes have more than one voxel.
    """
    size = (*shape[:3], 1)[:3]
    single = [axis for axis, n in enumerate(size) if n == 1]
    if len(single) > 1:
        raise ValueError(f"{path}: expected an image of at least two axes of several voxels, got shape {tuple(shape)}")
    return single[0] if single else None


def slice_frame(affine: np.ndarray, axis: int) -> np.ndarray:
    """The frame of the plane in which the one slice along an axis lies; `affine` (4, 4) is that of the file.

    In a world plane (axial, coronal, sagittal) the coordinates are the two world coordinates that vary, in the order x,
    y, z; else the two in-plane directions nearest to world axes, pointing to their positive side.
    """
    kept = [i for i in range(3) if i != axis]
    axes = affine[:3, kept]
    directions = axes / np.linalg.norm(axes, axis=0)
    world_axes = nib.orientations.io_orientation(affine)[kept, 0].astype(int)
    plane = sorted(world_axes)
    normal_axis = ({0, 1, 2} - set(plane)).pop()
    if np.abs(directions[normal_axis]).max() < _WORLD_PLANE:
        rows, normal = np.eye(3)[plane], np.eye(3)[normal_axis]
    else:
        rows = np.stack([directions[:, i] * np.sign(directions[world_axes[i], i]) for i in np.argsort(world_axes)])
        normal = np.cross(*rows)
    frame = np.eye(4)
    frame[:3, :3] = np.column_stack([*rows, normal])
    frame[:3, 3] = normal * (normal @ affine[:3, 3])
    return frame


def plane_affine(affine: np.ndarray, axis: int = 2) -> np.ndarray:
    """The affine (3, 3) of the one slice along an axis, in the coordinates of `slice_frame`."""
    rows = slice_frame(affine, axis)[:3, :2].T
    result = np.eye(3)
    result[:2, :2], result[:2, 2] = rows @ affine[:3, [i for i in range(3) if i != axis]], rows @ affine[:3, 3]
    return result


def embed(matrix: np.ndarray) -> np.ndarray:
    """A matrix (3, 3) on (u, v, 1) as one on (u, v, n, 1) that leaves n alone; one of (4, 4) as it is."""
    if len(matrix) == 4:
        return matrix
    result = np.eye(4)
    result[:2, :2], result[:2, 3] = matrix[:2, :2], matrix[:2, 2]
    return result


def lift_grid(grid: Grid, frame: np.ndarray, thickness_mm: float, layers: int = 1) -> Grid:
    """A 2-D grid in the world, as that many layers about the plane."""
    spread = np.diag([1.0, 1.0, thickness_mm, 1.0])
    spread[2, 3] = -thickness_mm * (layers - 1) / 2
    return Grid(frame @ embed(grid.affine) @ spread, (*grid.size, layers))


def lift_field(field: DisplacementField, frame: np.ndarray, thickness_mm: float) -> DisplacementField:
    """A 2-D field in the world: it moves along the plane, in two layers, one on either side of it.

    One layer would be enough for points on the plane, but ITK reads a vector file of one slice as a 2-D image.
    """
    still = torch.zeros_like(field.ddf[:1])
    ddf = torch.cat([field.ddf, still])[..., None].expand(-1, *field.grid.size, 2)
    return DisplacementField(ddf, lift_grid(field.grid, frame, thickness_mm, layers=2))


def lift_steps(
    steps: Sequence[Step], start: np.ndarray, plane: np.ndarray, end: np.ndarray, thickness_mm: float
) -> list[Step]:
    """A transform of 2-D points as one of 3-D points.

    Args:
        steps: the transform of 2-D points.
        start, end: frames of the planes from which and into which the transform leads.
        plane: frame of the plane in which its dense fields lie, start or end.
        thickness_mm: distance of the layers of dense fields.
    """
    back = np.linalg.inv(plane)
    lifted: list[Step] = [plane @ np.linalg.inv(start)]
    for step in steps:
        if isinstance(step, DisplacementField):
            lifted.append(lift_field(step, plane, thickness_mm))
        else:
            lifted.append(plane @ embed(step) @ back)
    steps = merged([*lifted, end @ back])
    return [step for step in steps if isinstance(step, DisplacementField) or not np.allclose(step, np.eye(4))]


def flatten_matrix(matrix: np.ndarray, start: np.ndarray, end: np.ndarray, tolerance_mm: float) -> np.ndarray | None:
    """A matrix (4, 4) of 3-D points as the one (3, 3) from plane to plane; None if it leads out of the plane."""
    flat = np.linalg.inv(end) @ matrix @ start
    if np.abs(flat[2, :2]).max() > 0.1 or abs(flat[2, 3]) > tolerance_mm:
        return None
    return flat[np.ix_([0, 1, 3], [0, 1, 3])]
