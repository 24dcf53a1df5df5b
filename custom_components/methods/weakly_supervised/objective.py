"""Overlap of a structure at several scales, as a loss and as the score of a validation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...fields import at_least_float32, warp
from ...vocabulary import Output
from .structures import Structures, indicators

SCALES = (0, 1, 2, 4, 8, 16)


class MultiScaleDice(nn.Module):
    """1 - mean over scales s of Dice(G_s * f, G_s * (m o phi)), G_s a Gaussian of s voxels.

    Dice(a, b) = 2 sum(a b) / (sum a + sum b + 1e-6), for each case. It is above 0 for equal maps: blurred maps have
    values below 1. The wide scales have a gradient where the structures do not touch.

    Args:
        scales: standard deviations in voxels; 0 is the map itself.
    Raises:
        ValueError: for a scale below 0, or none.
    References: Hu et al., Medical Image Analysis 49, 2018.
    """

    def __init__(self, scales: Sequence[float] = SCALES) -> None:
        super().__init__()
        if not scales or min(scales) < 0:
            raise ValueError(f"expected scales of at least 0 voxels, got {tuple(scales)}")
        self.scales = tuple(scales)

    def forward(self, ddf: Tensor, moving: Tensor, fixed: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            ddf: shape (B, D, *S), voxels, fixed to moving.
            moving, fixed: indicators of one structure for each case, (B, 1, *S), 0 to 1.
        """
        warped = warp(moving.to(ddf.dtype), ddf)
        return 1 - multi_scale_dice(warped, fixed, self.scales).mean()


def multi_scale_dice(a: Tensor, b: Tensor, scales: Sequence[float] = SCALES) -> Tensor:
    """Mean of the scales' Dice of two maps (B, C, *S), for each case and channel, (B, C)."""
    a, b = at_least_float32(a), at_least_float32(b)
    values = []
    for scale in scales:
        x, y = gaussian_blurred(a, scale), gaussian_blurred(b, scale)
        axes = tuple(range(2, a.ndim))
        values.append(2 * (x * y).sum(axes) / (x.sum(axes) + y.sum(axes) + 1e-6))
    return torch.stack(values).mean(0)


def gaussian_blurred(maps: Tensor, sigma: float) -> Tensor:
    """Maps (B, C, *S) blurred by a Gaussian, cut at the whole part of 3 sigma, of sum 1; zeros beyond the border."""
    if sigma == 0:
        return maps
    radius = int(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    total = torch.exp(-offsets.square() / (2 * sigma**2)).sum()
    for axis in range(2, maps.ndim):
        index = torch.arange(maps.shape[axis], device=maps.device, dtype=maps.dtype)
        apart = index[:, None] - index
        # As a matrix: an axis is shorter than the widest Gaussian.
        matrix = torch.exp(-apart.square() / (2 * sigma**2)) / total * (apart.abs() <= radius)
        maps = torch.tensordot(maps, matrix, dims=([axis], [0])).movedim(-1, axis)
    return maps


class BendingEnergy(nn.Module):
    """Mean over components and voxels of the sum of the squared second derivatives, each mixed one twice.

    Differences of neighbours, per voxel of the field's grid; the outermost layer does not count. An affine map has
    none. The numbers are those of MONAI's `BendingEnergyLoss`, for which a GPU's host waits.

    Raises:
        ValueError: for an axis of fewer than three voxels.
    References: Rueckert et al., IEEE TMI 18(8), 1999.
    """

    def forward(self, field: Tensor) -> Tensor:
        """Of a field (B, D, *S), a scalar."""
        if min(field.shape[2:]) < 3:
            raise ValueError(f"expected axes of at least 3 voxels for second derivatives, got {tuple(field.shape[2:])}")
        field, d = at_least_float32(field), field.ndim - 2
        total = field.new_zeros(())
        for i in range(d):
            for j in range(i, d):
                second = _second(field, i, j)
                for axis in {*range(d)} - {i, j}:
                    second = second.narrow(axis + 2, 1, field.shape[axis + 2] - 2)
                total = total + (1 if i == j else 2) * second.square().mean()
        return total


def _second(field: Tensor, i: int, j: int) -> Tensor:
    """The second derivative along two axes, without the first and the last voxel of each."""
    if i == j:
        return field.diff(n=2, dim=i + 2)
    for axis in (i, j):
        n = field.shape[axis + 2] - 2
        field = (field.narrow(axis + 2, 2, n) - field.narrow(axis + 2, 0, n)) / 2
    return field


class StructureScore:
    """The score of a validation, the higher the better: multi-scale Dice, mean over the structures that both show.

    Args:
        structures: see `structures.indicators`.
        scales: as in `MultiScaleDice`.
    """

    def __init__(self, structures: Structures = "all", scales: Sequence[float] = SCALES) -> None:
        self.structures, self.scales = structures, tuple(scales)

    def __call__(self, output: Output) -> Tensor:
        targets, ddf = output["label"], output["pred"]["ddf"]
        moving, fixed = indicators(targets["label_moving"], targets["label_fixed"], self.structures)
        dice = multi_scale_dice(warp(moving.to(ddf.dtype), ddf), fixed, self.scales)
        shown = (moving.flatten(2).any(2) & fixed.flatten(2).any(2)).to(dice.dtype)
        return (dice * shown).sum() / shown.sum().clamp(min=1)
