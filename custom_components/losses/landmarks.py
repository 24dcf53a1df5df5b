"""Landmarks as a term of an objective: points that a map must bring together."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..checks import check_number
from ..fields import transform_points
from ..repeatable import block_means
from ..vocabulary import Batch

LANDMARKS = ("landmarks_moving", "landmarks_fixed", "landmarks_mm")

_RADIUS_MM = 6.0
_SMOOTH_MM = 0.1  # a distance that small counts as its square, so that the slope goes to zero


class LandmarkDistance(nn.Module):
    """Mean distance in mm between the fixed landmarks, moved by the field, and the moving ones.

    The field is averaged over a window about each landmark, so that the tissue around it moves along: a single point
    could be moved by a spike, which no penalty on gradients forbids in 3-D.

    Args:
        radius_mm: half the window's width.
    """

    def __init__(self, radius_mm: float = _RADIUS_MM) -> None:
        super().__init__()
        check_number("radius_mm", radius_mm, least=0)
        self.radius_mm = radius_mm

    def forward(self, ddf: Tensor, batch: Batch) -> Tensor:
        """The mean over all landmarks.

        Args:
            ddf: shape (B, D, *S), voxels.
            batch: "landmarks_moving", "landmarks_fixed" (B, N, D), voxels of the field's grid, and its voxel size,
                "landmarks_mm" (B, 1, D).
        """
        moving, fixed, mm = (batch[key].to(ddf) for key in LANDMARKS)
        width = [2 * round(self.radius_mm / float(size)) + 1 for size in mm[0, 0]]
        for axis, n in enumerate(width):
            kernel = [n if i == axis else 1 for i in range(len(width))]
            ddf = block_means(ddf, kernel, stride=1, padding=True)
        squares = ((transform_points(fixed, ddf) - moving) * mm).square().sum(-1)
        return ((squares + _SMOOTH_MM**2).sqrt() - _SMOOTH_MM).mean()


def landmarks_at(batch: Mapping[str, Tensor], ratio: Tensor) -> dict[str, Tensor]:
    """The landmarks of a batch on another grid with the same corners.

    Args:
        ratio: (D,), the new grid's voxels over the old one's.
    """
    found = {key: batch[key] for key in LANDMARKS if key in batch}
    return {key: value / ratio if key == "landmarks_mm" else value * ratio for key, value in found.items()}
