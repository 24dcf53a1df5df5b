"""Smoothing kernels K of the momentum models, applied in Fourier space: v = K m.

A kernel is a symmetric, positive operator on fields (B, C, *S); with it <m, K m> is the squared length of the velocity
v = K m. Lengths are in the unit of the grid's `spacing` (mm on a model grid, voxels for spacing 1). Kernels are frozen
dataclasses: their `repr` is stored beside momenta and weights, which have no meaning with another kernel.

Fourier transforms are periodic, so that opposite borders are coupled unless there is `padding`: "zeros" takes the
momentum as 0 beyond the grid, "reflect" mirrors it at the grid's ends (both are symmetric operators, too).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from ..fields import at_least_float32, pad_ends

Spacing = float | Sequence[float]


def per_axis(spacing: Spacing, spatial_dims: int) -> tuple[float, ...]:
    """A spacing as one positive number for each axis.

    Raises:
        ValueError: if there is another number of axes, or a spacing is not above 0.
    """
    values = (spacing,) * spatial_dims if isinstance(spacing, int | float) else tuple(spacing)
    if len(values) != spatial_dims or not all(h > 0 for h in values):
        raise ValueError(f"expected a positive spacing, one number or {spatial_dims}, got {spacing!r}")
    return tuple(float(h) for h in values)


@dataclass(frozen=True)
class Kernel(ABC):
    """What all kernels share: called as `kernel(field, spacing)`, it smooths each channel of (B, C, *S).

    Args:
        padding: "none" (periodic), "zeros" or "reflect", see above.
    """

    padding: str = field(default="none", kw_only=True)

    def __post_init__(self) -> None:
        if self.padding not in ("none", "zeros", "reflect"):
            raise ValueError(f"expected padding none, zeros or reflect, got {self.padding!r}")

    def __call__(self, values: Tensor, spacing: Spacing = 1.0) -> Tensor:
        """K values: same shape; float32 (also under autocast) or float64. Differentiable."""
        return _Multiply.apply(values, self, per_axis(spacing, values.ndim - 2), 1.0, 0.0)

    def powered(self, values: Tensor, exponent: float, spacing: Spacing = 1.0, *, floor: float = 0.0) -> Tensor:
        """(K + floor)^exponent values, of a periodic kernel; the floor is a share of the kernel's gain.

        Without a floor, negative exponents suit `HelmholtzKernel`, whose inverse is a differential operator; the
        inverse of a Gaussian has no bound.

        Raises:
            ValueError: if the kernel has padding.
        """
        if self.padding != "none":
            raise ValueError(f"only a kernel without padding has powers, not {self}")
        return _Multiply.apply(values, self, per_axis(spacing, values.ndim - 2), float(exponent), floor)

    @abstractmethod
    def reach(self) -> float:
        """Distance at which the kernel has all but vanished."""

    @abstractmethod
    def symbol(self, size: Sequence[int], spacing: Sequence[float]) -> Tensor:
        """The kernel's Fourier transform on a periodic grid, in the layout of `rfftn`: real, (*S_r) or (D, D, *S_r)."""


@dataclass(frozen=True)
class MultiGaussianKernel(Kernel):
    """Sum of Gaussians of unit gain: a constant field stays as it is.

    Each Gaussian is sampled on the grid, summed over its periodic copies, and divided by its sum.

    Args:
        sigmas: standard deviations.
        weights: of the Gaussians, positive; they are divided by their sum. None: in proportion to the deviations.
        nearest: only the nearest periodic copy counts, as in the `mermaid` package. Then a Gaussian that is wide for
            its grid has a kink, and the kernel may fail to be positive; padding avoids this.
    Raises:
        ValueError: if a deviation or weight is not above 0, or their numbers differ.
    """

    sigmas: Sequence[float] = (0.05, 0.1, 0.15, 0.2, 0.25)
    weights: Sequence[float] | None = None
    nearest: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        sigmas = tuple(float(s) for s in self.sigmas)
        weights = sigmas if self.weights is None else tuple(float(w) for w in self.weights)
        if not sigmas or len(sigmas) != len(weights) or min(*sigmas, *weights) <= 0:
            raise ValueError(
                f"expected positive standard deviations and as many weights, got {self.sigmas} and {self.weights}"
            )
        object.__setattr__(self, "sigmas", sigmas)
        total = sum(weights)
        if abs(total - 1) > 1e-12:  # else left alone, so that a kernel equals the one of its repr
            weights = tuple(w / total for w in weights)
        object.__setattr__(self, "weights", weights)

    def components(self) -> list[MultiGaussianKernel]:
        """The Gaussians, each as a kernel of unit gain."""
        return [MultiGaussianKernel((s,), (1.0,), self.nearest, padding=self.padding) for s in self.sigmas]

    def each(self, values: Tensor, spacing: Spacing = 1.0) -> Tensor:
        """K_i values_i for every Gaussian, regardless of its weight; differentiable.

        A Gaussian is a product over the axes: one small matrix for each, faster than a Fourier transform.

        Args:
            values: shape (B, N, C, *S), one group of channels for each Gaussian. spacing: of the grid.
        Raises:
            ValueError: if there is another number of groups.
        """
        if values.ndim < 4 or values.shape[1] != len(self.sigmas):
            raise ValueError(
                f"expected values of shape (B, {len(self.sigmas)}, C, *S), a group for each Gaussian, "
                f"got {tuple(values.shape)}"
            )
        values = at_least_float32(values)
        size, n = values.shape[3:], len(self.sigmas)
        steps = per_axis(spacing, len(size))
        with torch.autocast(values.device.type, enabled=False):
            values = values.transpose(0, 1)
            for length, h in zip(reversed(size), reversed(steps), strict=True):
                matrix = _matrices(self, length, h, values.dtype, values.device)
                smoothed = values.reshape(n, -1, length).bmm(matrix).view(values.shape)
                # The axis goes to the front of the others: after one round they are in order again.
                values = smoothed.movedim(-1, 3)
            return values.transpose(0, 1)

    def reach(self) -> float:
        return 4 * max(self.sigmas)

    def symbol(self, size: Sequence[int], spacing: Sequence[float]) -> Tensor:
        assert self.weights is not None
        total: Tensor | float = 0.0
        for sigma, weight in zip(self.sigmas, self.weights, strict=True):
            product = torch.ones((), dtype=torch.float64)
            for axis, (n, h) in enumerate(zip(size, spacing, strict=True)):
                response = _gaussian_response(n, sigma / h, self.nearest)
                if axis == len(size) - 1:
                    response = response[: n // 2 + 1]
                product = product.unsqueeze(-1) * response
            total = total + weight * product
        return torch.as_tensor(total)


def gaussian_kernel(sigma: float = 0.15, *, nearest: bool = False, padding: str = "none") -> MultiGaussianKernel:
    """One Gaussian of unit gain, see `MultiGaussianKernel`."""
    return MultiGaussianKernel((sigma,), (1.0,), nearest, padding=padding)


@dataclass(frozen=True)
class HelmholtzKernel(Kernel):
    """K = (gamma - alpha Laplacian - beta grad div)^-power, with the symbols of the differences on the grid.

    The gain (for a constant) is gamma^-power. alpha and beta are in squared length units where gamma is 1: sqrt(alpha /
    gamma) is the kernel's length. With beta, the Cauchy-Navier operator, components are coupled.

    Args:
        alpha, gamma: above 0.
        beta: at least 0.
        power: 1 or 2; from 2 on velocities are smooth enough for diffeomorphisms in the continuum.
    References: Beg et al., IJCV 61(2), 2005 (the operator); Yang et al., NeuroImage 158, 2017 use (0.01, 0.01, 0.001).
    """

    alpha: float = 0.01
    gamma: float = 0.001
    beta: float = 0.0
    power: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha <= 0 or self.gamma <= 0 or self.beta < 0 or self.power not in (1, 2):
            raise ValueError(f"expected alpha, gamma above 0, beta of at least 0, power 1 or 2, got {self}")
        if self.beta and self.padding == "reflect":
            raise ValueError(
                "a kernel that couples components (beta above 0) cannot mirror them: take padding zeros or none"
            )
        for name in ("alpha", "gamma", "beta"):  # equal kernels have equal reprs
            object.__setattr__(self, name, float(getattr(self, name)))

    def reach(self) -> float:
        return 6 * math.sqrt((self.alpha + self.beta) / self.gamma)

    def symbol(self, size: Sequence[int], spacing: Sequence[float]) -> Tensor:
        d = len(size)
        laplacian: Tensor | float = 0.0
        second, first = [], []
        for axis, (n, h) in enumerate(zip(size, spacing, strict=True)):
            m = n // 2 + 1 if axis == d - 1 else n
            omega = 2 * math.pi * torch.arange(m, dtype=torch.float64) / n
            shape = [-1, *[1] * (d - 1 - axis)]
            second.append(((2 - 2 * omega.cos()) / h**2).view(shape))
            first.append((omega.sin() / h).view(shape))
            laplacian = laplacian + second[-1]
        scalar = self.gamma + self.alpha * torch.as_tensor(laplacian)
        if self.beta == 0:
            return scalar**-self.power
        rows = []
        for i in range(d):
            row = [scalar + self.beta * second[i] if i == j else self.beta * first[i] * first[j] for j in range(d)]
            rows.append(torch.stack([entry.expand(scalar.shape) for entry in row]))
        matrix = torch.stack(rows).movedim((0, 1), (-2, -1))
        return torch.linalg.inv(torch.linalg.matrix_power(matrix, self.power)).movedim((-2, -1), (0, 1)).contiguous()


def smooth_weighted(
    momentum: Tensor, weights: Tensor, kernel: MultiGaussianKernel, spacing: Spacing = 1.0, *, form: str = "sqrt"
) -> Tensor:
    """Spatially varying multi-Gaussian: the sum over i of sqrt(w_i) K_i (sqrt(w_i) m), or of w_i K_i (w_i m).

    Both are symmetric and positive, which the sum of w_i (K_i m) is not. Constant weights give the ordinary
    multi-Gaussian with these weights (their squares in the second form).

    Args:
        momentum: shape (B, D, *S).
        weights: shape (B or 1, N, *S), not negative, one channel for each Gaussian; the kernel's own are not used.
            Where they may reach 0 the square root needs a floor.
        kernel, spacing: the Gaussians K_i, and the grid's spacing, one number or one for each axis.
        form: "sqrt" or "square".
    Raises:
        ValueError: for another form, or another number of channels of weights.
    References: Niethammer et al., CVPR 2019 (square roots); Shen et al., NeurIPS 2019 (squares).
    """
    if form not in ("sqrt", "square") or weights.shape[1] != len(kernel.sigmas):
        raise ValueError(
            f"expected form sqrt or square and {len(kernel.sigmas)} channels of weights, "
            f"got {form!r} and {weights.shape[1]}"
        )
    factors = (weights.sqrt() if form == "sqrt" else weights).unsqueeze(2)
    return (factors * kernel.each(factors * momentum.unsqueeze(1), spacing)).sum(1)


class _MultiplyContext(FunctionCtx):
    settings: tuple[Kernel, tuple[float, ...], float, float]


class _Multiply(torch.autograd.Function):
    """Multiply by a kernel's symbol; the operator is symmetric, so the gradient goes through the same."""

    @staticmethod
    def forward(
        ctx: _MultiplyContext, values: Tensor, kernel: Kernel, spacing: tuple[float, ...], power: float, floor: float
    ) -> Tensor:
        ctx.settings = kernel, spacing, power, floor
        return _multiply(values, kernel, spacing, power, floor)

    @staticmethod
    def backward(ctx: _MultiplyContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Multiply.apply(grad, *ctx.settings), None, None, None, None


def _multiply(values: Tensor, kernel: Kernel, spacing: tuple[float, ...], power: float, floor: float) -> Tensor:
    values = at_least_float32(values)
    size = tuple(values.shape[2:])
    padded = _padded_size(size, spacing, kernel)
    axes = list(range(2, values.ndim))
    if kernel.padding == "reflect":
        for axis in axes:
            values = torch.cat([values, values.flip(axis)], axis)
    elif padded != size:
        values = pad_ends(values, padded)
    symbol = _symbol(kernel, padded, spacing, power, floor, values.dtype, values.device)
    spectrum = torch.fft.rfftn(values, dim=axes)
    if symbol.ndim == len(size):
        spectrum *= symbol
    else:
        spectrum = torch.einsum("ij...,bj...->bi...", symbol.to(spectrum.dtype), spectrum)
    result = torch.fft.irfftn(spectrum, s=padded, dim=axes)
    if padded != size:
        result = result[(slice(None), slice(None), *[slice(n) for n in size])].contiguous()
    return result


def _padded_size(size: tuple[int, ...], spacing: tuple[float, ...], kernel: Kernel) -> tuple[int, ...]:
    if kernel.padding == "none":
        return size
    if kernel.padding == "reflect":
        return tuple(2 * n for n in size)
    # Zeros on one side suffice: the grid is periodic.
    return tuple(_fast_size(n + math.ceil(kernel.reach() / h)) for n, h in zip(size, spacing, strict=True))


def _fast_size(n: int) -> int:
    """The next number without prime factors above 5, for which Fourier transforms are fast."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1


@lru_cache(maxsize=64)
def _symbol(
    kernel: Kernel,
    size: tuple[int, ...],
    spacing: tuple[float, ...],
    power: float,
    floor: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    symbol = kernel.symbol(size, spacing)
    if power == 1 and floor == 0:
        return symbol.to(dtype).to(device)
    floor = floor * float(symbol.flatten()[0])
    if symbol.ndim == len(size):
        symbol = (symbol.clamp(min=0) + floor) ** power  # rounding leaves some just below 0
    else:
        values, vectors = torch.linalg.eigh(symbol.movedim((0, 1), (-2, -1)))
        symbol = (vectors * ((values.clamp(min=0) + floor) ** power).unsqueeze(-2)) @ vectors.mT
        symbol = symbol.movedim((-2, -1), (0, 1)).contiguous()
    return symbol.to(dtype).to(device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # else the matrices of a first call in that mode could not serve training
@torch.no_grad()
def _matrices(kernel: MultiGaussianKernel, n: int, spacing: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Each Gaussian along an axis of n voxels, symmetric matrices (N, n, n)."""
    unit = torch.eye(n, dtype=torch.float64).unsqueeze(1)
    return torch.stack([one(unit, spacing)[:, 0] for one in kernel.components()]).to(dtype).to(device)


@lru_cache(maxsize=256)
def _gaussian_response(n: int, sigma: float, nearest: bool) -> Tensor:
    """Fourier transform (real, length n) of a sampled periodic Gaussian of unit sum; sigma in samples."""
    offset = torch.arange(n, dtype=torch.float64)
    offset = torch.minimum(offset, n - offset)
    copies = 0 if nearest else math.ceil(8 * sigma / n) + 1
    values = sum(torch.exp(-0.5 * ((offset + k * n) / sigma) ** 2) for k in range(-copies, copies + 1))
    response = torch.fft.fft(torch.as_tensor(values)).real
    return response / response[0]
