"""What a GPU does to the same numbers in each run: interpolation and pooling with their gradients, and medians.

Their CUDA kernels add the gradient of a voxel by atomic operations, in any order, and
`torch.use_deterministic_algorithms` refuses them. Where that is asked for, the functions here take another way
backward; the way forward is torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

_DEVICES = {"cuda"}  # whose kernels of gradients add in any order
_PADDINGS = {"zeros": 0, "border": 1}
_CHANNELS = 4  # of a gradient, at a time: its whole numbers take twice the memory
_LEAST = 1e-25  # a gradient whose largest number is smaller keeps fewer digits

_Whole = Callable[[Tensor], Tensor]
_Along = Callable[[Tensor, int], Tensor]

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


def grid_sample(image: Tensor, grid: Tensor, mode: str, padding: str) -> Tensor:
    """`torch.nn.functional.grid_sample` with aligned corners.

    The gradient of the image is a sum of whole numbers, which has no order: each addend is rounded to 2^-38 or less of
    the largest number of the gradient that comes in (of up to 8 million samples).

    Args:
        image, grid: (B, C, *S) and (B, *S', D), as torch wants them.
        mode: "bilinear" (in 3-D, too) or "nearest".
        padding: "zeros" or "border".
    """
    if mode == "bilinear" and _is_asked_for(image, grid):
        result: Tensor = _GridSample.apply(image, grid, padding)
        return result
    return F.grid_sample(image, grid, mode=mode, padding_mode=padding, align_corners=True)


def resize(
    values: Tensor, size: Sequence[int] | None = None, *, scale_factor: float | None = None, align_corners: bool = True
) -> Tensor:
    """Linear interpolation of (B, C, *S) onto a grid of `size`, or of `scale_factor` times as many voxels."""

    def whole(given: Tensor) -> Tensor:
        mode = _LINEAR[given.ndim]
        return F.interpolate(given, _tuple(size), scale_factor=scale_factor, mode=mode, align_corners=align_corners)

    def along(given: Tensor, axis: int) -> Tensor:
        one = None if size is None else size[axis]
        return F.interpolate(given, one, scale_factor=scale_factor, mode="linear", align_corners=align_corners)

    return _separable(values, whole, along)


def median(values: Tensor, axis: int) -> Tensor:
    """The lower median along an axis, which stays with length 1: torch's own, for which it also looks up a position, in
    any order."""
    middle = (values.shape[axis] - 1) // 2
    return values.sort(axis).values.narrow(axis, middle, 1)


def block_means(values: Tensor, block: Sequence[int], *, stride: int | None = None, padding: bool = False) -> Tensor:
    """Means of (B, C, *S) over blocks of voxels; with `padding`, of odd blocks around each voxel, inside alone.

    Args:
        values: shape (B, C, *S).
        block: voxels along each axis.
        stride: from block to block; by default a block.
    """
    pool = F.avg_pool2d if values.ndim == 4 else F.avg_pool3d
    beyond = [n // 2 if padding else 0 for n in block]

    def whole(given: Tensor) -> Tensor:
        return pool(given, tuple(block), stride, tuple(beyond), count_include_pad=False)

    def along(given: Tensor, axis: int) -> Tensor:
        return F.avg_pool1d(given, block[axis], stride or block[axis], beyond[axis], count_include_pad=False)

    return _separable(values, whole, along)


def cell_means(values: Tensor, cells: int) -> Tensor:
    """Means of (B, C, *S) over `cells` parts of each axis, as those of adaptive pooling."""
    pool = F.adaptive_avg_pool2d if values.ndim == 4 else F.adaptive_avg_pool3d
    return _separable(values, lambda given: pool(given, cells), lambda given, axis: F.adaptive_avg_pool1d(given, cells))


def _separable(values: Tensor, whole: _Whole, along: _Along) -> Tensor:
    if _is_asked_for(values):
        result: Tensor = _Separable.apply(values, whole, along)
        return result
    return whole(values)


def _is_asked_for(*tensors: Tensor) -> bool:
    return (
        torch.are_deterministic_algorithms_enabled()
        and torch.is_grad_enabled()
        and any(tensor.requires_grad for tensor in tensors)
        and tensors[0].device.type in _DEVICES
    )


def _tuple(size: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if size is None else tuple(size)


class _SeparableContext(FunctionCtx):
    along: _Along
    size: torch.Size
    dtype: torch.dtype


class _Separable(torch.autograd.Function):
    """A linear function that works axis by axis. Its gradient is a product with one matrix for each axis: what the
    function makes of unit vectors."""

    @staticmethod
    def forward(ctx: _SeparableContext, values: Tensor, whole: _Whole, along: _Along) -> Tensor:
        ctx.along, ctx.size, ctx.dtype = along, values.shape[2:], values.dtype
        return whole(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: _SeparableContext, gradient: Tensor) -> tuple[Tensor, None, None]:
        wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
        gradient = gradient.to(wide)
        with torch.autocast(gradient.device.type, enabled=False):
            for axis, n in enumerate(ctx.size):
                units = torch.eye(n, dtype=wide, device=gradient.device)
                matrix = ctx.along(units[None], axis)[0]  # (n, voxels of the result)
                gradient = (gradient.movedim(axis + 2, -1) @ matrix.mT).movedim(-1, axis + 2)
        return gradient.to(ctx.dtype), None, None


class _SampleContext(FunctionCtx):
    saved_tensors: tuple[Tensor, Tensor]
    needs_input_grad: tuple[bool, ...]
    padding: str


class _GridSample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _SampleContext, image: Tensor, grid: Tensor, padding: str) -> Tensor:
        ctx.save_for_backward(image, grid)
        ctx.padding = padding
        return F.grid_sample(image, grid, mode="bilinear", padding_mode=padding, align_corners=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: _SampleContext, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        image, grid = ctx.saved_tensors
        of_image = of_grid = None
        with _any_order():
            if ctx.needs_input_grad[0]:
                of_image = _scatter(gradient, grid, image.shape[2:], ctx.padding)
            if ctx.needs_input_grad[1]:  # each number of it has one thread: nothing is added up in any order
                kernel = torch.ops.aten.grid_sampler_2d_backward if image.ndim == 4 else None
                kernel = kernel or torch.ops.aten.grid_sampler_3d_backward
                of_grid = kernel(gradient, image, grid, 0, _PADDINGS[ctx.padding], True, [False, True])[1]
        return of_image, of_grid, None


@contextmanager
def _any_order() -> Iterator[None]:
    """Let torch take its usual kernels: of whole numbers, or of sums that nothing shares."""
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warns)


def _scatter(gradient: Tensor, grid: Tensor, size: Sequence[int], padding: str) -> Tensor:
    """The gradient of an image of `size` voxels, of that of its samples (B, C, *S'): each goes to its neighbours."""
    values = gradient.flatten(2)
    batch, channels, count = values.shape
    one = 2.0 ** min(40, 61 - math.ceil(math.log2(max(count, 2))))  # the sum of all stays below 2^62
    unit = values.abs().amax().clamp(min=_LEAST) / one
    found = []
    for part in values.split(_CHANNELS, 1):
        total = torch.zeros(batch, part.shape[1], math.prod(size), dtype=torch.int64, device=values.device)
        for corner in product(*_corners(grid, size, padding)):
            place = torch.zeros((), dtype=torch.int64, device=values.device)
            weight = torch.ones((), dtype=values.dtype, device=values.device) / unit
            for n, (index, share) in zip(size, corner, strict=True):
                place, weight = place * n + index, weight * share
            addend = (part * weight.unsqueeze(1)).round().to(torch.int64)
            total.scatter_add_(2, place.unsqueeze(1).expand(-1, part.shape[1], -1), addend)
        found.append(total.to(values.dtype) * unit)
    return torch.cat(found, 1).view(batch, channels, *size)


def _corners(grid: Tensor, size: Sequence[int], padding: str) -> list[list[tuple[Tensor, Tensor]]]:
    """For each axis the two voxels around each location, (B, N), and their shares of it."""
    found = []
    for axis, n in enumerate(size):
        location = (grid.flatten(1, -2)[..., len(size) - 1 - axis] + 1) / 2 * (n - 1)
        if padding == "border":
            location = location.clamp(0, n - 1)
        lower = location.floor()
        upper = location - lower
        sides = []
        for index, share in ((lower, 1 - upper), (lower + 1, upper)):
            inside = (index >= 0) & (index <= n - 1)
            sides.append((index.clamp(0, n - 1).long(), share * inside))
        found.append(sides)
    return found
