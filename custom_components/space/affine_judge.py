"""Which of several linear maps is right: judged by local correlation, which tells more than what led to them.

Convention: as in `information`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .affine_levels import Level
from .information import Maps
from .resampling import resample

_WINDOW = 5  # voxels

_FLOOR = 1e-2  # share of an image's variance that is added to that of each window, so that noise does not count

# Share by which a map that turns by 60 degrees or more must be better than one that does not: while maps are rough, and
# at last.
_DISTRUST, DISTRUST_AT_LAST = 0.45, 0.2

_TURNED = 0.5  # cosine of the angle from which on a header is said to be wrong


@dataclass(frozen=True)
class Judge:
    """Compares maps at one level, by squared correlations in windows: high for any contrast, if structures coincide.

    What a map carries out of the moving image counts, but correlates with nothing.
    """

    level: Level

    def __call__(self, maps: Maps) -> Tensor:
        """Mean of the squared correlation over the structures of the fixed image, from 0 to 1, shape (B,)."""
        matrices = [maps[k : k + 1].matrix(self.level.center_and_radius[0]) for k in range(len(maps))]
        return torch.tensor([self.of_matrix(matrix) for matrix in matrices], dtype=torch.float64)

    def of_matrix(self, matrix: np.ndarray) -> float:
        """The same of one world matrix (D + 1, D + 1)."""
        moving, target = self.level.moving, self.level.fixed.grid
        image, weights = (
            resample(values, moving.grid.affine, target, world_matrix=matrix, padding=padding)
            for values, padding in ((moving.image.float(), "border"), (moving.weights, "zeros"))
        )
        fixed, mean, variance, scale = self._fixed
        mean_moving = _window_mean(image)
        covariance = _window_mean(fixed * image) - mean * mean_moving
        variance_moving = (_window_mean(image**2) - mean_moving**2).clamp_min(0) + _FLOOR * self._moving_variance
        return float(
            (scale * weights * covariance**2 / (variance * variance_moving)).sum() / scale.sum().clamp_min(1e-12)
        )

    @cached_property
    def _moving_variance(self) -> float:
        return max(float(self.level.moving.image.float().var()), 1e-12)

    @cached_property
    def _fixed(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The fixed image, and of its windows the mean, the variance, and how much they count."""
        fixed = self.level.fixed.image.float()
        mean = _window_mean(fixed)
        variance = (_window_mean(fixed**2) - mean**2).clamp_min(0)
        floor = _FLOOR * max(float(fixed.var()), 1e-12)
        return fixed, mean, variance + floor, variance.sqrt() * self.level.fixed.weights


def _window_mean(values: Tensor) -> Tensor:
    """Means of (1, *S) in windows around each voxel."""
    pool = F.avg_pool3d if values.ndim == 4 else F.avg_pool2d
    return pool(values, _WINDOW, 1, _WINDOW // 2, count_include_pad=False)


def belief(maps: Maps, distrust: float = _DISTRUST) -> Tensor:
    """Factors (B,) up to 1 for what is measured of maps: less the further they turn, for most headers are right."""
    return 1 / (1 + distrust * ((1 - _cosines(maps)) / (1 - _TURNED)).clamp(max=1))


def is_turned(maps: Maps) -> bool:
    """Whether the first map turns by about 90 or 180 degrees."""
    return bool(_cosines(maps)[0] < _TURNED)


def distances(maps: Maps, other: Maps, radius_mm: float) -> Tensor:
    """How far maps lead from the first of others at a radius about the centre, mm, shape (B,)."""
    turned = (maps.linear - other.linear[:1]).flatten(1).norm(dim=1) * radius_mm
    return turned + (maps.target - other.target[:1]).norm(dim=1)


def _cosines(maps: Maps) -> Tensor:
    """Of the angles by which maps turn, (B,)."""
    u, _, v = torch.linalg.svd(maps.linear)
    return ((u @ v).diagonal(dim1=1, dim2=2).sum(1) - (maps.linear.shape[1] - 2)) / 2
