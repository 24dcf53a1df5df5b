"""What several test files of this folder share."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from custom_components.fields import identity_grid
from custom_components.space import (
    Grid,
)

OBLIQUE = nib.affines.from_matvec(
    np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0, 0, 1.0]]) @ np.diag([1.5, 2.0, 2.5]), [5.0, -7.0, 3.0]
)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> str:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return str(path)


def noise(*size: int) -> np.ndarray:
    return np.random.default_rng(0).random(size).astype(np.float32)


def world_points(grid: Grid) -> np.ndarray:
    index = identity_grid(grid.size, dtype=torch.float64).flatten(1).T.numpy()
    return index @ grid.affine[:-1, :-1].T + grid.affine[:-1, -1]
