"""Sums over the voxels of each label, in the same order in each run."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

_RUN = 4096  # voxels that are added up in one product
_LARGEST = 2**25  # elements of the factors that are there at a time: 128 MiB in float32


def label_sums(values: Tensor, labels: Tensor, num: int) -> Tensor:
    """Sum of the values of each label's voxels.

    On a GPU voxels that are added to one place by atomic operations wait for one another, and the order of the sum
    changes from run to run. There a label is split into two digits, label = high * base + low, and the sums are
    products of the digits' indicators, sum_x [high(x) = i] value(x) [low(x) = j]: a product of matrices, in which
    nothing collides. On the CPU, where one thread adds, adding in place is many times faster.

    Args:
        values: shape (B, N), floating. Gradients flow to them.
        labels: shape (B, N), integer, from 0 to `num` - 1.
        num: number of labels.
    Returns:
        Shape (B, num), of the type of the values.
    """
    sums: Tensor = _LabelSums.apply(values, labels, num)
    return sums


class _LabelContext(FunctionCtx):
    saved_tensors: tuple[Tensor, ...]


class _LabelSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _LabelContext, values: Tensor, labels: Tensor, num: int) -> Tensor:
        ctx.save_for_backward(labels)
        return (_added if values.device.type == "cpu" else _multiplied)(values, labels, num)

    @staticmethod
    @once_differentiable
    def backward(ctx: _LabelContext, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.gather(1, ctx.saved_tensors[0].long()), None, None


def _added(values: Tensor, labels: Tensor, num: int) -> Tensor:
    """The sums, voxel by voxel: those of each run, then their sum, since float32 loses what a large sum gets."""
    batch, voxels = values.shape
    run = min(max(_RUN, num), voxels)
    whole = voxels - voxels % run if run else 0
    sums = values.new_zeros(batch, num).scatter_add_(1, labels[:, whole:].long(), values[:, whole:])
    if whole:
        rows = labels[:, :whole].reshape(-1, run).long()
        parts = values.new_zeros(len(rows), num).scatter_add_(1, rows, values[:, :whole].reshape(-1, run))
        sums += parts.view(batch, -1, num).sum(1)
    return sums


def _multiplied(values: Tensor, labels: Tensor, num: int) -> Tensor:
    """The sums by products of runs of voxels."""
    base = math.isqrt(max(num - 1, 0)) + 1
    highest = -(-num // base)
    batch, voxels = values.shape
    chunk = max(1, _LARGEST // (batch * (base + highest)) // _RUN) * _RUN
    sums = values.new_zeros(batch, highest, base)
    with torch.autocast(values.device.type, enabled=False):
        for start in range(0, voxels, chunk):
            kept = slice(start, min(start + chunk, voxels))
            run = min(_RUN, kept.stop - kept.start)
            beyond = -(kept.stop - kept.start) % run  # the last run is filled up with zeros
            value = torch.nn.functional.pad(values[:, kept], (0, beyond)).view(-1, 1, run)
            label = torch.nn.functional.pad(labels[:, kept], (0, beyond)).view(-1, 1, run)
            high = label.div(base, rounding_mode="floor")
            left = _indicators(high, highest, value.dtype) * value
            right = _indicators(label - high * base, base, value.dtype)
            sums += torch.bmm(left, right.mT).view(batch, -1, highest, base).sum(1)
    return sums.flatten(1)[:, :num]


def _indicators(digits: Tensor, num: int, dtype: torch.dtype) -> Tensor:
    """One row for each digit, (R, num, N), of digits (R, 1, N)."""
    return (digits == torch.arange(num, device=digits.device).view(-1, 1)).to(dtype)
