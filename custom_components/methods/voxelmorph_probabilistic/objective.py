"""Probabilistic VoxelMorph's objective, both ways, and its terms: the KL divergence and the surface distance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...fields import sample, transform_points, warp
from ...losses.multistep import swapped
from ...losses.overlap import LabelDice, LabelLikelihood
from ...losses.registration import RegistrationLoss, compare
from ...vocabulary import Batch, Result
from .gaussian import default_smoothing, kernel_energy, prior_trace


class ProbabilisticLoss(nn.Module):
    """A registration loss whose comparisons are the means of both directions, and a surface term.

    The second direction compares in the moving space, through the inverse field. Regularisation and folding count once.

    Args:
        loss: the terms.
        surface: called as `surface(ddf, distance_moving, distance_fixed)` (`SurfaceDistance`); the batch then needs
            these maps, (B, K, *S). None leaves it out.
        bidirectional: compare in both directions; `pred` then needs "inverse_ddf". If false, only in the fixed space.
    """

    def __init__(self, loss: RegistrationLoss, *, surface: nn.Module | None = None, bidirectional: bool = True) -> None:
        super().__init__()
        self.loss, self.surface, self.bidirectional = loss, surface, bidirectional

    def forward(self, pred: Result, batch: Batch) -> Tensor:
        """Total loss, a scalar; the weighted, detached terms are left in `pred["terms"]`, as `RegistrationLoss` does.

        Raises:
            ValueError: if the inverse field or a map is missing.
        """
        terms = self.loss.terms(pred, batch)
        ways = [(pred, batch)]
        if self.bidirectional:
            if "inverse_ddf" not in pred:
                raise ValueError("a bidirectional loss needs pred['inverse_ddf']: let the inferer make inverse fields")
            back: Result = {"ddf": pred["inverse_ddf"]}
            if self.loss.similarity is not None:
                back["warped"] = warp(batch["fixed"], back["ddf"])
            ways.append((back, swapped(batch)))
            terms |= {name: 0.5 * (terms[name] + value) for name, value in self.loss.comparisons(*ways[1]).items()}
        if self.surface is not None:
            values = [compare(self.surface, way["ddf"], targets, "distance") for way, targets in ways]
            terms["surface"] = torch.stack(values).mean()
        pred["terms"] = {name: value.detach() for name, value in terms.items()}
        return sum(terms.values())  # type: ignore[return-value]


def label_term(labels: Sequence[int] | str | None, sigma: float | None = None) -> nn.Module | None:
    """The overlap of labels: a Gaussian likelihood with this sigma, Dice without one; None without labels."""
    if labels is None:
        return None
    return LabelDice(labels) if sigma is None else LabelLikelihood(labels, sigma)


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
    Raises:
        ValueError: for a precision of 0 or below, a negative smoothing, or another trace.
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
        Raises:
            ValueError: for another number of channels.
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


class SurfaceDistance(nn.Module):
    """0.5 / sigma^2 * mean squared distance of warped surface points of one image from the same surface of the other.

    Points are drawn on the surfaces of the fixed labels, anew at each call; phi takes them into the moving space, where
    the moving label's signed distance map says how far they are from its surface. Labels missing from either image are
    ignored. The mean of both directions is the reference's 1 / (4 sigma^2) for each.

    Args:
        sigma_mm: standard deviation of the distance, in the maps' unit (mm, see `surfaces.SignedDistanced`).
        num_points: drawn for each sample of the batch, on all its surfaces together, large ones more often.
    References: Dalca et al., Medical Image Analysis 57, 2019.
    """

    def __init__(self, sigma_mm: float = 1.0, num_points: int = 5000) -> None:
        super().__init__()
        self.sigma_mm, self.num_points = sigma_mm, num_points

    def forward(self, ddf: Tensor, moving: Tensor, fixed: Tensor) -> Tensor:
        """The loss, a scalar; 0 if the images have no label in common.

        Args:
            ddf: shape (B, D, *S), voxels, fixed to moving.
            moving, fixed: signed distance maps of K labels, shape (B, K, *S), negative inside.
        Raises:
            ValueError: if maps and field differ in shape.
        """
        if moving.shape != fixed.shape or moving.shape[2:] != ddf.shape[2:]:
            raise ValueError(
                f"expected distance maps (B, K, *S) for a field of shape {tuple(ddf.shape)}, "
                f"got {tuple(moving.shape)} and {tuple(fixed.shape)}"
            )
        means = []
        for i in range(ddf.shape[0]):
            both = (moving[i].flatten(1).amin(1) < 0) & (fixed[i].flatten(1).amin(1) < 0)
            points, labels = draw_surface_points(fixed[i, both], self.num_points)
            if not len(points):
                continue
            warped = transform_points(points[None].to(ddf.dtype), ddf[i : i + 1])
            locations = warped.mT.unflatten(2, (-1, *[1] * (ddf.ndim - 3)))
            distance = sample(moving[i : i + 1, both], locations, padding="border")[0].flatten(1)
            means.append(distance.gather(0, labels[None]).square().mean())
        total = torch.stack(means).sum() if means else ddf.sum() * 0
        return 0.5 * total / (self.sigma_mm**2 * ddf.shape[0])


def draw_surface_points(
    distance: Tensor, num_points: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Random points of the surfaces: where a line between neighbouring voxels crosses the zero level.

    Args:
        distance: signed distance maps of K labels, shape (K, *S).
        num_points: drawn with replacement from all crossings of all labels.
        generator: of the random numbers; None takes torch's global one.
    Returns:
        Points (N, D), voxels, and the index of the label of each, (N,); N = 0 if there is no surface.
    """
    crossings, points = [], []
    for axis in range(1, distance.ndim):
        n = distance.shape[axis]
        low, high = distance.narrow(axis, 0, n - 1), distance.narrow(axis, 1, n - 1)
        found = ((low < 0) != (high < 0)).nonzero()
        at = tuple(found.T)
        offset = torch.zeros(len(found), distance.ndim - 1, dtype=distance.dtype, device=distance.device)
        offset[:, axis - 1] = low[at] / (low[at] - high[at])
        crossings.append(found[:, 0])
        points.append(found[:, 1:] + offset)
    labels, positions = torch.cat(crossings), torch.cat(points)
    if len(labels):
        drawn = torch.randint(len(labels), (num_points,), generator=generator, device=labels.device)
        labels, positions = labels[drawn], positions[drawn]
    return positions, labels
