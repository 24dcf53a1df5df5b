"""Penalties on fields: smoothness and folding. Fields are (B, D, *S) in voxels of their own grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..fields import jacobian_determinant
from ..gaussian import default_smoothing, kernel_energy, prior_trace


class GradientPenalty(nn.Module):
    """Mean square (or absolute) forward difference of a field.

    Normalisation, as in the VoxelMorph reference: for each axis the mean over voxels and components, then the mean over
    the axes. The reference multiplies this by 2 when the velocity is integrated at half resolution (`multiplier`); the
    derivative of a field in its own voxels does not depend on resolution, so the factor is a convention.

    Args:
        penalty: "l2" or "l1".
        multiplier: constant factor.
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
    """Mean over the batch of a deformation's "energy" (B,): <m, K m>, the squared length of the geodesic."""

    def forward(self, energy: Tensor) -> Tensor:
        return energy.mean()


class GaussianKL(nn.Module):
    """KL divergence of a Gaussian velocity posterior from the smoothness prior N(0, (lambda L)^-1), constants left out.

    With N voxels, D axes, kappa as in `gaussian.prior_trace` (the degree if nothing is smoothed), mean over voxels and
    components, delta forward differences:

        exact:     D/2 * [mean(lambda kappa exp(l) - l) + lambda / (N D) * sum over axes of sum(delta mu)^2]
        reference: D/2 * [mean(lambda kappa exp(l) - l) + lambda / (2 D) * sum over axes of mean((delta mu)^2)]

    `exact` is the KL divergence divided by N, up to the terms that do not depend on mean and log variance. The
    reference implementation, for which the published lambdas (10 to 25) hold, weighs the smoothness of the mean by
    1 / (2 D) of that (and divides by the number of differences, n - 1 for n, along each axis). Both are least at
    mean = constant, l = -log(lambda kappa); the least value, D/2 (1 + mean log(lambda kappa)), is 7.64 in 3-D for
    lambda = 10 without smoothing and without borders (less with them). Values of different smoothings do not compare: a
    constant of C is left out. The prior is improper (L does not see a constant), so the divergence is up to a constant.

    The paper does not print the trace of the smoothed posterior. With the trace of the diagonal one (`trace="degree"`)
    the smoothed noise is pulled to the wrong size: with the paper's kernel, of unit sum, it all but vanishes.

    Args:
        prior_precision: lambda.
        smoothing: as in `GaussianVelocity`: None for the default, 0 for the diagonal posterior.
        exact: the weighting of the mean's smoothness.
        trace: "posterior" (right) or "degree" (naive, with the paper's kernel).
    References: Dalca et al., MICCAI 2018; Medical Image Analysis 57, 2019.
    """

    def __init__(
        self,
        prior_precision: float = 10.0,
        *,
        smoothing: float | None = None,
        exact: bool = False,
        trace: str = "posterior",
    ) -> None:
        super().__init__()
        if prior_precision <= 0:
            raise ValueError(f"expected a prior precision above 0, got {prior_precision}")
        if smoothing is not None and smoothing < 0:
            raise ValueError(f"expected a smoothing of at least 0, got {smoothing}")
        if trace not in ("posterior", "degree"):
            raise ValueError(f"expected trace posterior or degree, got {trace!r}")
        self.prior_precision, self.smoothing, self.exact, self.trace = prior_precision, smoothing, exact, trace

    def forward(self, posterior: Tensor) -> Tensor:
        """The divergence per voxel, a scalar, mean over the batch.

        Args:
            posterior: mean, then log variance, (B, 2 D, *S).
        """
        d = posterior.ndim - 2
        if posterior.shape[1] != 2 * d:
            raise ValueError(f"expected mean and log variance, {2 * d} channels, got shape {tuple(posterior.shape)}")
        mean, log_variance = (posterior.float() if posterior.dtype != torch.float64 else posterior).chunk(2, 1)
        size = mean.shape[2:]
        smoothing = default_smoothing(self.prior_precision, d) if self.smoothing is None else self.smoothing
        if self.trace == "posterior":
            kappa = prior_trace(size, smoothing, like=mean)
        else:
            # The variance that multiplies a kernel of unit sum is ours over that kernel's energy, which is below 1.
            kappa = prior_trace(size, 0, like=mean) / kernel_energy(smoothing, d)
        noise = (self.prior_precision * kappa * log_variance.exp() - log_variance).mean()
        slopes = [mean.diff(dim=axis).square() for axis in range(2, mean.ndim) if mean.shape[axis] > 1]
        if self.exact:
            smoothness = torch.stack([slope.sum() for slope in slopes]).sum() / mean.numel()
        else:
            smoothness = torch.stack([slope.mean() for slope in slopes]).sum() / (2 * d)
        return 0.5 * d * (noise + self.prior_precision * smoothness)
