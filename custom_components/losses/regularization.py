"""Penalties on fields: smoothness and folding. Fields are (B, D, *S) in voxels of their own grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..fields import jacobian_determinant


class GradientPenalty(nn.Module):
    """Mean square (or absolute) forward difference of a field.

    Normalisation, as in the VoxelMorph reference: for each axis the mean over voxels and components, then the mean over
    the axes. The reference multiplies this by 2 when the velocity is integrated at half resolution (`multiplier`); the
    derivative of a field in its own voxels does not depend on resolution, so the factor is a convention.

    Args:
        penalty: "l2" or "l1".
        multiplier: constant factor.
    Raises:
        ValueError: for another penalty.
    """

    def __init__(self, penalty: str = "l2", multiplier: float = 1.0) -> None:
        super().__init__()
        if penalty not in ("l1", "l2"):
            raise ValueError(f"expected penalty l1 or l2, got {penalty!r}")
        self.penalty, self.multiplier = penalty, multiplier

    def forward(self, field: Tensor) -> Tensor:
        field = field.float() if field.dtype != torch.float64 else field
        means = []
        for axis in range(2, field.ndim):
            if field.shape[axis] > 1:
                difference = field.diff(dim=axis)
                means.append((difference.square() if self.penalty == "l2" else difference.abs()).mean())
        return self.multiplier * torch.stack(means).mean()


class FoldingPenalty(nn.Module):
    """Mean of max(0, margin - det J)^2: presses the Jacobian determinant of id + ddf above a margin.

    Args:
        margin: determinants above it cost nothing.
    """

    def __init__(self, margin: float = 0.1) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, ddf: Tensor) -> Tensor:
        return (self.margin - jacobian_determinant(ddf)).clamp(min=0).square().mean()


class MeanEnergy(nn.Module):
    """Mean over the batch of a deformation's energy (B,): of a momentum <m, K m>, a geodesic's squared length."""

    def forward(self, energy: Tensor) -> Tensor:
        return energy.mean()
