"""Gaussian distributions over velocity fields: the prior's smoothness, and posteriors with smoothed noise.

The prior is N(0, (lambda L)^-1) for each component, L = D - A the Laplacian of the grid graph (voxels are neighbours
along the axes; a voxel's degree in D is 2 * axes inside, less at faces, edges and corners). A posterior has a mean and
a log variance at each voxel: v = mean + C (exp(log_variance / 2) * eps), eps white noise, C a Gaussian smoothing.

Convention: C's kernel has unit energy (the squares of its weights add up to 1 away from the border), not unit sum as in
the paper. This shifts the log variance by a constant and makes exp(log_variance) the variance of v itself where it is
constant, with and without smoothing. Nothing lies beyond the grid: near a border, v varies less.

References: Dalca et al., MICCAI 2018; Medical Image Analysis 57, 2019; the trace of the smoothed posterior is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def default_smoothing(prior_precision: float, spatial_dims: int) -> float:
    """Standard deviation of C in voxels, by our reading of the paper's rule: the kernel's peak is 1 / (2 D lambda).

    The paper's formula, 1 / sqrt(2 pi sigma^(3/2)) = 1 / (6 lambda), gives 8 or 69 voxels if taken literally, for
    lambda = 10 and depending on what sigma stands for. The peak of a 3-D Gaussian of unit sum, (2 pi sigma^2)^(-3/2),
    gives 1.56 voxels; in 2-D, where the degree is 4, 2.52.
    """
    peak = 1 / (2 * spatial_dims * prior_precision)
    return peak ** (-1 / spatial_dims) / math.sqrt(2 * math.pi)


def smooth(noise: Tensor, smoothing: float) -> Tensor:
    """C applied to (B, C, *S): white noise keeps its variance; `smoothing` 0 returns the noise itself."""
    if smoothing == 0:
        return noise
    return _along_axes(noise, [_powered(n, smoothing, 1, noise) for n in noise.shape[2:]])


def smoothed_variance(variance: Tensor, smoothing: float) -> Tensor:
    """Variance of C (sqrt(variance) * eps) at each voxel, (B, C, *S): the diagonal of C diag(variance) C^T."""
    if smoothing == 0:
        return variance
    return _along_axes(variance, [_powered(n, smoothing, 2, variance) for n in variance.shape[2:]])


def prior_trace(size: Sequence[int], smoothing: float, *, like: Tensor) -> Tensor:
    """kappa_j = c_j^T L c_j for the columns c_j of C, shape (1, 1, *size): trace(C^T L C diag(s)) = sum_j kappa_j s_j.

    Without smoothing c_j is a unit vector and kappa the degree of voxel j. C is a product over the axes and L a sum, so
    kappa is a sum over the axes of one axis' slope times the other axes' energies, exact up to the border.

    Args:
        like: a tensor of the wanted type and device.
    """
    return _prior_trace(tuple(size), smoothing, like.dtype, like.device)[None, None]


# Kept on the device: a copy to a GPU at each call would make the host wait.
@lru_cache(maxsize=16)
@torch.inference_mode(False)
@torch.no_grad()
def _prior_trace(size: tuple[int, ...], smoothing: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    energy, slope = [], []
    for axis, n in enumerate(size):
        columns = torch.eye(n, dtype=torch.float64) if smoothing == 0 else _matrix(n, smoothing)
        shape = [-1, *[1] * (len(size) - 1 - axis)]
        energy.append(columns.square().sum(0).view(shape))
        slope.append(columns.diff(dim=0).square().sum(0).view(shape))
    total = torch.zeros(size, dtype=torch.float64)
    for axis in range(len(size)):
        total += math.prod([*energy[:axis], slope[axis], *energy[axis + 1 :]])
    return total.to(dtype).to(device)


def kernel_energy(smoothing: float, spatial_dims: int) -> float:
    """Sum of the squared weights of the kernel of unit sum: exp(log variance) for our kernel is this times that of the
    paper's. 1 without smoothing."""
    kernel = _kernel(smoothing)
    return float(kernel.square().sum() / kernel.sum() ** 2) ** spatial_dims


def _kernel(smoothing: float) -> Tensor:
    radius = math.ceil(4 * smoothing)
    return torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / max(smoothing, 1e-6)) ** 2)


def _powered(n: int, smoothing: float, power: int, like: Tensor) -> Tensor:
    """The powers of the entries of `_matrix`, of the type and on the device of a tensor."""
    return _powered_on(n, smoothing, power, like.dtype, like.device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
@torch.no_grad()
def _powered_on(n: int, smoothing: float, power: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _matrix(n, smoothing).pow(power).to(dtype).to(device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # else what a first call in that mode made could not serve training
@torch.no_grad()
def _matrix(n: int, smoothing: float) -> Tensor:
    """One axis of C: column j is the kernel around voxel j, cut at the grid's ends; along one voxel nothing is done."""
    if n == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    kernel = _kernel(smoothing)
    radius = len(kernel) // 2
    index = torch.arange(n)
    offset = index - index.unsqueeze(1) + radius
    inside = (offset >= 0) & (offset < len(kernel))
    return kernel[offset.clamp(0, len(kernel) - 1)] * inside / kernel.square().sum().sqrt()


def _along_axes(values: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    # Autocast would round the noise to half precision.
    with torch.autocast(values.device.type, enabled=False):
        for axis, matrix in enumerate(matrices, start=2):
            values = torch.tensordot(values, matrix, dims=([axis], [1])).movedim(-1, axis)
    return values
