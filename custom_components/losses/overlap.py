"""Label overlap as a loss, straight from integer label maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from ..constants import Constant, filled
from ..fields import warp
from .label_sums import label_sums


class LabelDice(nn.Module):
    """1 - mean Dice between the moving labels, warped linearly, and the fixed labels; labels absent from both left out.

    Each label's indicator map m_k is warped with linear interpolation (border values continued), as one-hot
    maps would be: Dice_k = 2 sum_x m_k(phi(x)) f_k(x) / (sum_x m_k(phi(x)) + sum_x f_k(x)), for each sample. But no
    one-hot map is made: a voxel's interpolated indicators are nonzero for the labels of its 2^D neighbours only, so
    time and memory do not depend on the number of labels. If no label is present, the loss is 0.

    Args:
        labels: ids that count; "all" takes every id, 0 included.
        pooled: sum numerators and denominators over the labels before dividing, so that a label counts by its size.
            The mean over labels gives a structure of fifty voxels the say of the cortex; early in training that is
            mostly noise.
    """

    def __init__(self, labels: Sequence[int] | str, *, pooled: bool = False) -> None:
        super().__init__()
        self.labels = _ids(labels)
        self.pooled = pooled
        self._chosen = None if isinstance(self.labels, str) else Constant(torch.tensor(self.labels))

    def forward(self, ddf: Tensor, moving: Tensor, fixed: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            ddf: shape (B, D, *S), voxels, fixed to moving.
            moving, fixed: integer label maps, shape (B, 1, *S).
        Raises:
            ValueError: for a field or label maps of another shape, or labels that are no integers.
        """
        if ddf.shape[1] != ddf.ndim - 2:
            raise ValueError(f"expected a field (B, 2, H, W) or (B, 3, D, H, W), got shape {tuple(ddf.shape)}")
        for labels in (moving, fixed):
            if labels.shape != (ddf.shape[0], 1, *ddf.shape[2:]) or labels.is_floating_point():
                raise ValueError(
                    f"expected integer label maps (B, 1, *S) for a field of shape {tuple(ddf.shape)}, "
                    f"got {labels.dtype} {tuple(labels.shape)}"
                )
        if isinstance(self.labels, str):
            chosen = torch.arange(int(torch.maximum(moving.max(), fixed.max())) + 1, device=ddf.device)
        else:
            assert self._chosen is not None
            chosen = self._chosen.on(ddf.device)
        num = int(chosen[-1]) + 1 if isinstance(self.labels, str) else max(self.labels) + 1
        # Ids beyond the chosen ones, and those below 0, share the last bin, which is never read.
        maps = [
            torch.where((labels >= 0) & (labels < num), labels.long(), num).flatten(1) for labels in (moving, fixed)
        ]
        overlap, mass = _Overlap.apply(ddf, *maps, num + 1)
        count = label_sums(torch.ones_like(maps[1], dtype=overlap.dtype), maps[1], num + 1)
        overlap, total = overlap[:, chosen], (mass + count)[:, chosen]
        if self.pooled:
            overlap, total = overlap.sum(1), total.sum(1)
        present = (total > 1e-3).to(total.dtype)
        dice = 2 * overlap / total.clamp(min=1e-3)
        return ((1 - dice) * present).sum() / present.sum().clamp(min=1)


class LabelLikelihood(nn.Module):
    """Gaussian likelihood of segmentations: mean over voxels of sum_k (m_k(phi(x)) - f_k(x))^2, over sigma squared.

    m_k and f_k are the labels' indicator maps, or soft maps; the moving ones are warped linearly, border values
    continued. One-hot maps are made of integer labels: memory grows with their number. As `MSE`, without a factor 1/2.

    Args:
        labels: ids that count; "all" takes every id. Soft maps count whole.
        sigma: standard deviation.
    Raises:
        ValueError: for a sigma of 0 or below.
    References: Dalca et al., Medical Image Analysis 57, 2019.
    """

    def __init__(self, labels: Sequence[int] | str, sigma: float = 1.0) -> None:
        super().__init__()
        self.labels = _ids(labels)
        if sigma <= 0:
            raise ValueError(f"expected a sigma above 0, got {sigma}")
        self.sigma = sigma

    def forward(self, ddf: Tensor, moving: Tensor, fixed: Tensor) -> Tensor:
        """The negative log likelihood up to constants, a scalar.

        Args:
            ddf: shape (B, D, *S), voxels, fixed to moving.
            moving, fixed: integer label maps, shape (B, 1, *S), or soft maps, (B, K, *S), floating.
        Raises:
            ValueError: unless both maps are integers (B, 1, *S), or both soft (B, K, *S).
        """
        kinds = [(labels.is_floating_point(), labels.shape) for labels in (moving, fixed)]
        if kinds[0] != kinds[1] or not (kinds[0][0] or moving.shape[1] == 1):
            raise ValueError(
                f"expected two integer maps (B, 1, *S) or two soft maps (B, K, *S), "
                f"got {moving.dtype} {tuple(moving.shape)} and {fixed.dtype} {tuple(fixed.shape)}"
            )
        if not moving.is_floating_point():
            ids = self.labels
            if isinstance(ids, str):
                ids = torch.cat([moving.flatten(), fixed.flatten()]).unique().tolist()
            moving, fixed = (label_indicators(labels, ids).to(ddf.dtype) for labels in (moving, fixed))
        difference = warp(moving, ddf, padding="border") - fixed
        return difference.square().sum(1).mean() / self.sigma**2


def _ids(labels: object) -> list[int] | str:
    """Labels that count: "all", or a list of ids."""
    listed = list(labels) if isinstance(labels, Iterable) and not isinstance(labels, str) else []
    if labels == "all":
        return "all"
    if not listed or not all(isinstance(label, int) and label >= 0 for label in listed):
        raise ValueError(f"expected labels 'all' or a list of ids from 0 on, got {labels!r}")
    return listed


def label_indicators(label_map: Tensor, labels: Sequence[int]) -> Tensor:
    """One channel for each label, (B, K, *S), bool, of a map (B, 1, *S)."""
    ids = filled(labels, label_map, torch.long).view(1, -1, *[1] * (label_map.ndim - 2))
    return label_map == ids


class _OverlapContext(FunctionCtx):
    saved_tensors: tuple[Tensor, ...]
    shape: torch.Size
    dtype: torch.dtype


class _Overlap(torch.autograd.Function):
    """sum_x m_k(phi(x)) f_k(x) and sum_x m_k(phi(x)) for every label k, both (B, K)."""

    @staticmethod
    def forward(ctx: _OverlapContext, ddf: Tensor, moving: Tensor, fixed: Tensor, num: int) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if ddf.dtype == torch.float64 else torch.float32
        neighbours, weights, inside = _neighbours(ddf.to(dtype), moving)
        overlap = label_sums(_interpolate([(n == fixed).to(dtype) for n in neighbours], weights), fixed, num)
        mass = torch.zeros_like(overlap)
        for i, labels in enumerate(neighbours):
            mass += label_sums(_corner(weights, i), labels, num)
        ctx.save_for_backward(fixed, *neighbours, *weights, *inside)
        ctx.shape, ctx.dtype = ddf.shape, ddf.dtype
        return overlap, mass

    @staticmethod
    @once_differentiable
    def backward(ctx: _OverlapContext, grad_overlap: Tensor, grad_mass: Tensor) -> tuple[Tensor | None, ...]:
        d = ctx.shape[1]
        fixed, saved = ctx.saved_tensors[0], ctx.saved_tensors[1:]
        neighbours, weights, inside = saved[: 2**d], saved[2**d : 2**d + d], saved[2**d + d :]
        gain = grad_overlap.gather(1, fixed.long())
        values = [grad_mass.gather(1, n.long()) + gain * (n == fixed) for n in neighbours]
        gradient = [_interpolate(values, weights, axis) * inside[axis] for axis in range(d)]
        return torch.stack(gradient, 1).view(ctx.shape).to(ctx.dtype), None, None, None


def _neighbours(ddf: Tensor, labels: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """For every voxel of a field, flattened to (B, N): the labels of the 2^D voxels around phi(x), the interpolation
    weight of the upper one along each axis, and whether phi(x) lies inside the map along each axis."""
    size = ddf.shape[2:]
    base = torch.zeros_like(labels, dtype=torch.long)
    weights, inside, offsets = [], [], [0]
    for axis, n in enumerate(size):
        index = torch.arange(n, device=ddf.device, dtype=ddf.dtype).view(-1, *[1] * (len(size) - 1 - axis))
        location = (ddf[:, axis] + index).flatten(1)
        clamped = location.clamp(0, n - 1)
        inside.append(location == clamped)
        lower = clamped.floor().clamp(max=max(n - 2, 0))
        weights.append(clamped - lower)
        base = base * n + lower.long()
        stride = size[axis + 1 :].numel() if n > 1 else 0
        offsets = [offset + step for offset in offsets for step in (0, stride)]
    return [labels.gather(1, base + offset) for offset in offsets], weights, inside


def _corner(weights: Sequence[Tensor], i: int) -> Tensor:
    """The interpolation weight of neighbour i; the first axis is the highest bit of i."""
    bits = [i >> (len(weights) - 1 - axis) & 1 for axis in range(len(weights))]
    return torch.stack([w if bit else 1 - w for w, bit in zip(weights, bits, strict=True)]).prod(0)


def _interpolate(values: Sequence[Tensor], weights: Sequence[Tensor], derivative: int | None = None) -> Tensor:
    """Linear interpolation of the neighbours' values, or its derivative along one axis."""
    for axis, weight in enumerate(weights):
        half = len(values) // 2
        steps = [high - low for low, high in zip(values[:half], values[half:], strict=True)]
        if axis == derivative:
            values = steps
        else:
            values = [torch.addcmul(low, weight, step) for low, step in zip(values[:half], steps, strict=True)]
    return values[0]
