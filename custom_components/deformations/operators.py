"""Differential operators of shooting, with adjoints in closed form.

Convention: fields have shape (B, C, *S); differences are central. "Neumann" takes them as 0 at the border.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def coadjoint(momentum: Tensor, velocity: Tensor, voxels: Tensor, spacing: Sequence[float]) -> Tensor:
    """-div(m (x) v) - (Dv)^T m; the velocity in the length unit of the spacing and in voxels."""
    return transport(momentum, voxels) + stretch(momentum, velocity, spacing)


def transport(values: Tensor, velocity: Tensor) -> Tensor:
    """-div(f (x) v) for each channel of f (B, C, *S); v (B, D, *S) in voxels. Neumann borders. Differentiable."""
    return _Transport.apply(values, velocity)


def stretch(momentum: Tensor, velocity: Tensor, spacing: Sequence[float]) -> Tensor:
    """-(Dv)^T m, both (B, D, *S), v in the length unit of the spacing. Neumann borders. Differentiable."""
    return _Stretch.apply(momentum, velocity, tuple(spacing))


def advect(values: Tensor, velocity: Tensor) -> Tensor:
    """-Df v for each channel of f (B, C, *S); v (B, D, *S) in voxels. One-sided differences at the border.
    Differentiable."""
    return _Advect.apply(values, velocity)


# The differential operators carry their own derivatives: they keep only their inputs, and need no graph of slices.


class _Context(FunctionCtx):
    saved_tensors: tuple[Tensor, ...]
    spacing: tuple[float, ...]


class _Transport(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, f: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(f, w)
        result = torch.zeros_like(f)
        for j in range(w.shape[1]):
            _add_difference(result, f * w[:, j : j + 1], j + 2, -1.0)
        return result

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, Tensor]:
        f, w = ctx.saved_tensors
        grad_f, grad_w = torch.zeros_like(f), torch.empty_like(w)
        for j in range(w.shape[1]):
            back = _add_transposed(torch.zeros_like(grad), grad, j + 2, 1.0)
            grad_f.addcmul_(w[:, j : j + 1], back, value=-1)
            grad_w[:, j] = -(f * back).sum(1)
        return grad_f, grad_w


class _Stretch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, m: Tensor, v: Tensor, spacing: tuple[float, ...]) -> Tensor:
        ctx.save_for_backward(m, v)
        ctx.spacing = spacing
        result = torch.empty_like(m)
        for k, h in enumerate(spacing):
            result[:, k] = _add_difference(torch.zeros_like(v), v, k + 2, -1 / h).mul_(m).sum(1)
        return result

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        m, v = ctx.saved_tensors
        grad_m, grad_v = torch.zeros_like(m), torch.zeros_like(v)
        for k, h in enumerate(ctx.spacing):
            one = grad[:, k : k + 1]
            grad_m.addcmul_(one, _add_difference(torch.zeros_like(v), v, k + 2, -1 / h))
            _add_transposed(grad_v, one * m, k + 2, -1 / h)
        return grad_m, grad_v, None


class _Advect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, f: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(f, w)
        result = torch.zeros_like(f)
        for j in range(w.shape[1]):
            slope = _add_difference(torch.zeros_like(f), f, j + 2, 1.0, one_sided=True)
            result.addcmul_(w[:, j : j + 1], slope, value=-1)
        return result

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, Tensor]:
        f, w = ctx.saved_tensors
        grad_f, grad_w = torch.zeros_like(f), torch.empty_like(w)
        for j in range(w.shape[1]):
            slope = _add_difference(torch.zeros_like(f), f, j + 2, 1.0, one_sided=True)
            grad_w[:, j] = -(grad * slope).sum(1)
            _add_transposed(grad_f, grad * w[:, j : j + 1], j + 2, -1.0, one_sided=True)
        return grad_f, grad_w


def _add_difference(total: Tensor, f: Tensor, axis: int, factor: float, *, one_sided: bool = False) -> Tensor:
    """Add factor times the central difference along an axis, per voxel; at the ends nothing or one-sided ones."""
    n = f.shape[axis]
    if n > 2:
        middle = f.narrow(axis, 2, n - 2) - f.narrow(axis, 0, n - 2)
        total.narrow(axis, 1, n - 2).add_(middle, alpha=factor / 2)
    if one_sided and n > 1:
        for place, ahead in ((0, 1), (n - 1, n - 1)):
            end = f.narrow(axis, ahead, 1) - f.narrow(axis, ahead - 1, 1)
            total.narrow(axis, place, 1).add_(end, alpha=factor)
    return total


def _add_transposed(total: Tensor, g: Tensor, axis: int, factor: float, *, one_sided: bool = False) -> Tensor:
    """Add the transpose of `_add_difference`."""
    n = g.shape[axis]
    if n > 2:
        middle = g.narrow(axis, 1, n - 2)
        total.narrow(axis, 2, n - 2).add_(middle, alpha=factor / 2)
        total.narrow(axis, 0, n - 2).sub_(middle, alpha=factor / 2)
    if one_sided and n > 1:
        for place, ahead in ((0, 1), (n - 1, n - 1)):
            end = g.narrow(axis, place, 1)
            total.narrow(axis, ahead, 1).add_(end, alpha=factor)
            total.narrow(axis, ahead - 1, 1).sub_(end, alpha=factor)
    return total
