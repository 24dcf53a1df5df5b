"""FSL: FLIRT's matrices (.mat, text) and FNIRT's warps (.nii.gz), relative or absolute.

Convention: FSL's millimetres count from the first voxel along the voxel axes; where the affine has a positive
determinant ("neurological"), the first axis is counted from its other end. A matrix leads from moving to fixed points,
a warp from fixed to moving ones. Both need both images.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from ...fields import identity_grid
from ...results import replacing
from ..files import save_nifti
from ..grids import Grid
from ..readers import nibabel_frame, open_nibabel
from ..resampling import DisplacementField, Step
from .base import Dialect, Frames, mapped, numbers_in, one_matrix

_COEFFICIENTS = (2007, 2008, 2009)  # NIfTI intent codes
_NIFTI = (".nii.gz", ".nii")


def fsl_mm(grid: Grid) -> np.ndarray:
    """Matrix (4, 4) from voxels of an image to FSL's millimetres."""
    result = np.diag([*grid.spacing, 1.0])
    if np.linalg.det(grid.affine[:3, :3]) > 0:
        result[0] = [-grid.spacing[0], 0, 0, (grid.size[0] - 1) * grid.spacing[0]]
    return result


def _from_world(grid: Grid) -> np.ndarray:
    return fsl_mm(grid) @ np.linalg.inv(grid.affine)


def _is_fsl(path: str) -> bool:
    if path.lower().endswith(_NIFTI):
        image = open_nibabel(path)
        return len(image.shape) == 4 and image.shape[3] == 3
    if os.path.getsize(path) > 10_000:
        return False
    rows = numbers_in(Path(path).read_text(encoding="utf-8", errors="replace"))
    return rows is not None and [len(row) for row in rows] == [4] * 4


def _read(path: str, frames: Frames) -> list[Step]:
    if path.lower().endswith(_NIFTI):
        return [_read_warp(path, frames)]
    fixed, moving = frames.both(path)
    rows = numbers_in(Path(path).read_text(encoding="utf-8", errors="replace"))
    if rows is None or [len(row) for row in rows] != [4] * 4:
        raise ValueError(f"{path}: expected FLIRT's matrix of 4 rows of 4 numbers")
    return [np.linalg.inv(np.array(rows) @ _from_world(moving)) @ _from_world(fixed)]


def _read_warp(path: str, frames: Frames) -> DisplacementField:
    image = open_nibabel(path)
    intent = int(image.header["intent_code"])
    if len(image.shape) != 4 or image.shape[3] != 3 or intent in _COEFFICIENTS:
        found = f"shape {image.shape} with intent code {intent}"
        raise ValueError(
            f"{path}: expected FNIRT's warp of shape (X, Y, Z, 3), got {found}; FSL's fnirtfileutils makes a warp of "
            "coefficients"
        )
    if frames.moving is None:
        raise ValueError(f"{path}: FNIRT's warps count from the moving image's corner; name it (--moving)")
    moving = frames.moving.grid_in_file
    grid = Grid(nibabel_frame(image, path).affine, image.shape[:3])
    voxels = identity_grid(grid.size, dtype=torch.float64).numpy()
    here = mapped(fsl_mm(grid), voxels)
    there = np.moveaxis(np.asarray(image.dataobj, dtype=np.float64), -1, 0)
    if _is_relative(there, here):
        there = there + here
    to_voxels = np.linalg.inv(grid.affine) @ np.linalg.inv(_from_world(moving))
    return DisplacementField(torch.from_numpy(mapped(to_voxels, there) - voxels).float(), grid)


def _is_relative(vectors: np.ndarray, here: np.ndarray) -> bool:
    """Whether a warp (3, *S) holds displacements: positions vary more than these. `here` are the voxels, mm."""
    return _spread(vectors) < _spread(vectors - here)


def _spread(vectors: np.ndarray) -> float:
    return float(vectors.reshape(3, -1).std(axis=1).sum())


def _write(path: Path, steps: list[Step], frames: Frames) -> None:
    fixed, moving = frames.both(path)
    if str(path).lower().endswith(_NIFTI):
        _write_warp(path, steps, frames)
        return
    matrix = np.linalg.inv(_from_world(moving) @ one_matrix(steps, path) @ np.linalg.inv(_from_world(fixed)))
    with replacing(path) as temporary:
        temporary.write_text("".join("  ".join(f"{x:.12g}" for x in row) + "\n" for row in matrix), encoding="utf-8")


def _write_warp(path: Path, steps: list[Step], frames: Frames) -> None:
    """A relative warp on the fixed image's grid; an absolute one if a relative one would be taken for that."""
    _, moving = frames.both(path)
    field = frames.whole(path, steps)
    voxels = identity_grid(field.grid.size, dtype=torch.float64).numpy()
    there = mapped(_from_world(moving) @ field.grid.affine, voxels + field.ddf.numpy())
    here = mapped(fsl_mm(field.grid), voxels)
    vectors = there - here
    if not _is_relative(vectors, here):  # of a map that scales much: then absolute positions are what is read right
        vectors = there
    with replacing(path) as temporary:
        save_nifti(
            np.moveaxis(vectors.astype(np.float32), 0, -1), field.grid.affine, temporary, intent="fnirt disp field"
        )


FSL = Dialect("fsl", (".mat",), _NIFTI, _is_fsl, _read, _write)
