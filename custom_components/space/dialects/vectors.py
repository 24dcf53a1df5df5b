"""Dense fields as ITK and ANTs keep them in NIfTI files, and the vectors of any field in millimetres.

Convention: a file has shape (X, Y, Z, 1, 3), or (X, Y, 1, 1, 2) in 2-D, with the intent "vector" and vectors in LPS mm.
"""

from __future__ import annotations

import os
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from ...results import replacing
from ..files import save_nifti
from ..frames import refuse_shear
from ..grids import Grid, flip_lps
from ..planes import embed, plane_affine
from ..readers import nibabel_frame
from ..resampling import DisplacementField

_VECTOR, _DISPLACEMENT = 1007, 1006  # NIfTI intent codes: ITK keeps LPS in the first and RAS in the second


def write_displacement_field(path: str | os.PathLike[str], ddf: Tensor, grid: Grid) -> None:
    """Write a displacement field (D, *S), voxels of `grid`, as an ITK vector NIfTI in LPS mm.

    The file has shape (X, Y, Z, 1, 3), or (X, Y, 1, 1, 2) in 2-D, float32, intent "vector"; voxel axes as in `grid`.
    """
    vectors = lps_vectors(ddf, grid)
    d = len(grid.size)
    with replacing(path) as temporary:
        save_nifti(vectors.reshape(*grid.size, *[1] * (4 - d), d), embed(grid.affine), temporary, intent="vector")


def read_displacement_field(path: str | os.PathLike[str]) -> DisplacementField:
    """Read a field as `write_displacement_field` writes it (as ANTs and ITK do).

    Raises:
        FileNotFoundError, ValueError: if it is missing, damaged, or no displacement field by shape and intent.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such displacement field")
    try:
        image: Any = nib.load(path)
        array = np.asarray(image.dataobj, dtype=np.float32)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as a displacement field ({error})") from error
    frame = nibabel_frame(image, str(path))
    d = array.shape[-1] if array.ndim == 5 else 0
    intent = int(image.header["intent_code"]) if "intent_code" in image.header else 0
    if (
        array.ndim != 5
        or d not in (2, 3)
        or array.shape[d:4] != (1,) * (4 - d)
        or intent not in (_VECTOR, _DISPLACEMENT)
    ):
        raise ValueError(
            f"{path}: expected a displacement field of shape (X, Y, Z, 1, 3) or (X, Y, 1, 1, 2) with vector intent, "
            f"got shape {array.shape} with intent code {intent}"
        )
    refuse_shear(frame.affine, str(path))
    affine = frame.affine if d == 3 else plane_affine(frame.affine)
    vectors = array.reshape(*array.shape[:d], d)
    return field_from_lps(vectors if intent == _VECTOR else vectors @ flip_lps(d)[:d, :d], affine)


def lps_vectors(ddf: Tensor, grid: Grid) -> np.ndarray:
    """A field (D, *S) in voxels of its grid as vectors (*S, D) in LPS mm, float32.

    Raises:
        ValueError: for a field of another size.
    """
    d = len(grid.size)
    if tuple(ddf.shape) != (d, *grid.size):
        raise ValueError(f"expected a ddf of shape {(d, *grid.size)} on this grid, got {tuple(ddf.shape)}")
    to_lps = (flip_lps(d) @ grid.affine)[:d, :d]
    field = ddf.detach().cpu().numpy()
    vectors = np.empty((*grid.size, d), np.float32)
    for x in range(grid.size[0]):  # plane by plane: float64 of a whole field takes more memory than the registration
        vectors[x] = np.moveaxis(np.tensordot(to_lps, field[:, x].astype(np.float64), 1), 0, -1)
    return vectors


def field_from_lps(vectors: np.ndarray, affine: np.ndarray) -> DisplacementField:
    """Vectors (*S, D) in LPS mm on a grid as a field in its voxels."""
    d = vectors.shape[-1]
    to_voxels = np.linalg.inv((flip_lps(d) @ affine)[:d, :d])
    ddf = np.einsum("ij,...j->i...", to_voxels, vectors.astype(np.float64)).astype(np.float32)
    return DisplacementField(torch.from_numpy(np.ascontiguousarray(ddf)), Grid(affine, vectors.shape[:-1]))
