"""Where the moving image has data: a mask that keeps its field of view out of the comparison."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..space.grids import Grid
from ..space.resampling import resample
from ..space.volumes import Volume

_TISSUE = 0.05  # intensities, 0 to 1, above which the fixed image shows something
_SHARE = 0.005  # of the fixed image's tissue that may lie outside without a mask, which costs time


def seen_by(moving: Volume, grid: Grid, world_matrix: np.ndarray, fixed: Tensor) -> Tensor | None:
    """Where the moving image has data on a model grid, float32 (1, *S), without the outermost voxels that have some.

    Without that rim, every voxel of the mask has neighbours with data, so that interpolation beside it blends in no 0.

    Args:
        moving: the image.
        grid: the model grid.
        world_matrix: (D + 1, D + 1), from fixed to moving points, RAS mm.
        fixed: the fixed image (1, *S) on the grid, in [0, 1].
    Returns:
        None if the fixed image shows (almost) nothing outside: a mask would change nothing.
    """
    ones = torch.ones(1).expand(moving.data.shape)
    inside = (resample(ones, moving.affine, grid, world_matrix=world_matrix) > 0.99).float()
    tissue = fixed > _TISSUE
    if float((tissue & (inside == 0)).sum()) <= _SHARE * float(tissue.sum()):
        return None
    pool = F.max_pool2d if inside.ndim == 3 else F.max_pool3d
    return 1 - pool(1 - inside, 3, 1, 1)
