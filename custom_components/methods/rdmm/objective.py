"""Penalties on the weights of spatially varying metrics (`metric`), and the schedules of their own weights.

Weights are (B, N, *S), one channel for each Gaussian. Integrals over the domain are means over the voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...constants import filled
from ...deformations.kernels import Spacing, gaussian_kernel, per_axis
from ...fields import at_least_float32, per_channel, resize_map, spatial_gradient
from ...inference.refinement import ScheduledLoss
from ...losses.registration import NamedTerms
from ...training.schedules import falling_weight
from ...vocabulary import Batch, Pred, Result


class OMTPenalty(nn.Module):
    """Optimal mass transport to the widest Gaussian: mean of sum_i w_i |log(sigma_max / sigma_i)|^r, divided by the
    largest of these distances. 0 if all weight is on the widest, 1 if it is on the narrowest.

    Args:
        sigmas: standard deviations of the Gaussians, in the order of the weights.
        power: r.
        squared: of the weights' squares, for weights whose squares sum to one (RDMM).
    Raises:
        ValueError: if there are not at least two different positive deviations; on a call, if there is another number
            of weights.
    References: Niethammer et al., CVPR 2019; Shen et al., NeurIPS 2019.
    """

    def __init__(self, sigmas: Sequence[float], power: float = 1.0, *, squared: bool = False) -> None:
        super().__init__()
        if min(sigmas, default=0) <= 0 or min(sigmas) == max(sigmas) or power <= 0:
            raise ValueError(
                f"expected different positive standard deviations and a positive power, got {sigmas} and {power}"
            )
        spread = math.log(max(sigmas) / min(sigmas))
        self.costs = [(math.log(max(sigmas) / s) / spread) ** power for s in sigmas]
        self.squared = squared

    def forward(self, weights: Tensor) -> Tensor:
        weights = _checked(weights, len(self.costs))
        costs = per_channel(self.costs, weights)
        return (costs * (weights.square() if self.squared else weights)).sum(1).mean()


class RangePenalty(nn.Module):
    """Mean of sum_i (w_i - base_i)^2: how far the weights are from those of the ordinary multi-Gaussian.

    Args:
        base: weights of the multi-Gaussian; they are divided by their sum.
        squared: for weights whose squares sum to one (RDMM), from the roots of the base.
    Raises:
        ValueError: if the base is not positive; on a call, if there is another number of weights.
    References: Shen et al., NeurIPS 2019.
    """

    def __init__(self, base: Sequence[float], *, squared: bool = True) -> None:
        super().__init__()
        self.base = _shares(base, squared)

    def forward(self, weights: Tensor) -> Tensor:
        weights = _checked(weights, len(self.base))
        return (weights - per_channel(self.base, weights)).square().sum(1).mean()


class InputRangePenalty(nn.Module):
    """What `weights.weighted_linear_softmax` cuts off: mean of sum_i (e_i - clamp(e_i, minimum, 1))^2.

    e_i = base_i + x_i - mean(x); inside of the limits, where the clamps have a gradient, it is 0.

    Args:
        base, squared, minimum: those of the weighted linear softmax.
    Raises:
        ValueError: if the base is not positive; on a call, if there is another number of channels.
    References: Niethammer et al., CVPR 2019 (in the authors' code).
    """

    def __init__(self, base: Sequence[float], *, squared: bool = False, minimum: float = 1e-3) -> None:
        super().__init__()
        self.base, self.minimum = _shares(base, squared), minimum

    def forward(self, x: Tensor) -> Tensor:
        x = _checked(x, len(self.base))
        entries = per_channel(self.base, x) + x - x.mean(1, keepdim=True)
        return (entries - entries.clamp(self.minimum, 1)).square().sum(1).mean()


class WeightTotalVariation(nn.Module):
    """Total variation of the weights, which costs less where the image has an edge.

    sqrt(sum_i c_i^2), c_i = mean of gamma |grad w_i|, gamma = 1 / (1 + edges * |grad (G I)| * h) with a Gaussian G and
    the smallest spacing h; without an image gamma is 1. grad w are forward differences, 0 at the end of each axis, per
    unit of the spacing. c is of each sample, the result their mean.

    Args:
        edges: a of gamma.
        sigma: standard deviation of G, in the unit of the spacing.
        spacing: of the weights' grid, one number or one for each axis.
        coupled: False gives the sum of the c_i.
    Raises:
        ValueError: on a call, if image and weights do not fit.
    References: Niethammer et al., CVPR 2019 (colour total variation).
    """

    def __init__(
        self, edges: float = 10.0, sigma: float = 1.0, *, spacing: Spacing = 1.0, coupled: bool = True
    ) -> None:
        super().__init__()
        if edges < 0 or sigma < 0:
            raise ValueError(f"expected edges and sigma of at least 0, got {edges} and {sigma}")
        self.edges, self.sigma, self.spacing, self.coupled = edges, sigma, spacing, coupled

    def forward(self, weights: Tensor, image: Tensor | None = None, spacing: Spacing | None = None) -> Tensor:
        """The penalty, a scalar.

        Args:
            weights: shape (B, N, *S).
            image: shape (B, C, *any size), in [0, 1]; resampled to S. Of several channels the steepest edge counts.
            spacing: of this grid, instead of the one given before.
        """
        weights = at_least_float32(weights)
        d = weights.ndim - 2
        spacing = per_axis(self.spacing if spacing is None else spacing, d)
        square = torch.zeros_like(weights)
        for axis, h in enumerate(spacing, start=2):
            # The last difference is 0, not one across the border: a constant map must cost nothing.
            last = weights.narrow(axis, weights.shape[axis] - 1, 1)
            square = square + (weights.diff(dim=axis, append=last) / h).square()
        size = _root(square)
        if image is not None:
            size = size * self.edge_weight(image, weights, spacing)
        c = size.flatten(2).mean(2)
        if not self.coupled:
            return c.sum(1).mean()
        return _root(c.square().sum(1)).mean()

    def edge_weight(self, image: Tensor, weights: Tensor, spacing: Spacing | None = None) -> Tensor:
        """gamma, (B, 1, *S), without gradient."""
        if image.ndim != weights.ndim or image.shape[0] not in (1, weights.shape[0]):
            raise ValueError(
                f"expected an image for weights of shape {tuple(weights.shape)}, got shape {tuple(image.shape)}"
            )
        d = weights.ndim - 2
        spacing = per_axis(self.spacing if spacing is None else spacing, d)
        image = resize_map(at_least_float32(image.detach()), weights.shape[2:])
        if self.sigma:
            image = gaussian_kernel(self.sigma, padding="reflect")(image, spacing)
        slope = spatial_gradient(image) / filled(spacing, image).view(1, 1, -1, *[1] * d)
        steepest = slope.square().sum(2).sqrt().amax(1, keepdim=True)
        return (1 / (1 + self.edges * steepest * min(spacing))).to(weights)


class RegionLoss(nn.Module, ScheduledLoss):
    """A registration loss, and the penalties on the weights of its metric (RDMM).

    loss + range_weight(T) * base_range(w) + omt_weight(T) * omt(w)

    T is the epoch of training (set by `Schedule`), or half of the iterations of an optimisation (`on_iteration`): see
    the functions `range_weight` and `omt_weight`.

    Args:
        loss: a module with `terms` (`RegistrationLoss`).
        omt, base_range: penalties of the weights w (`OMTPenalty`, `RangePenalty`); None leaves one out.
        omt_weight, range_weight: theirs, those the schedule ends and starts with.
        static, rate, floor: of the schedule; `rate` None for none: both weights as given, all the time.
    References: Shen et al., NeurIPS 2019.
    """

    def __init__(
        self,
        loss: NamedTerms,
        *,
        omt: nn.Module | None = None,
        base_range: nn.Module | None = None,
        omt_weight: float = 1.0,
        range_weight: float = 1.0,
        static: int = 10,
        rate: float | None = 5.0,
        floor: float = 0.1,
    ) -> None:
        super().__init__()
        self.loss, self.omt, self.base_range = loss, omt, base_range
        self.omt_weight, self.range_weight = omt_weight, range_weight
        self.static, self.rate, self.floor = static, rate, floor
        self.epoch = 0

    @property
    def schedule(self) -> tuple[float, float] | None:
        """The factors of the range's and of the omt's weight at this epoch; None if they do not change."""
        if self.rate is None:
            return None
        falling = range_weight(self.epoch, static=self.static, rate=self.rate, floor=self.floor)
        rising = omt_weight(self.epoch, static=self.static, rate=self.rate, floor=self.floor)
        return falling, rising

    def on_iteration(self, iteration: int) -> bool:
        """Let the schedule follow an optimisation; whether that changed the weights."""
        if self.schedule is None:
            return False
        before, self.epoch = self.schedule, iteration // 2
        return self.schedule != before

    def forward(self, pred: Result, batch: Batch) -> Tensor:
        """Total loss, a scalar; the weighted, detached terms are left in `pred["terms"]`."""
        terms = self.terms(pred, batch)
        pred["terms"] = {name: value.detach() for name, value in terms.items()}
        return sum(terms.values())  # type: ignore[return-value]

    def terms(self, pred: Pred, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms by name: those of the loss, and as configured omt and range."""
        terms = dict(self.loss.terms(pred, batch))
        falling, rising = self.schedule or (1.0, 1.0)
        if self.omt is not None:
            terms["omt"] = self.omt_weight * rising * self.omt(pred["weights"])
        if self.base_range is not None:
            terms["range"] = self.range_weight * falling * self.base_range(pred["weights"])
        return terms


class MetricLearningLoss(nn.Module):
    """A registration loss, and the penalties on the weights of a learned metric (metric learning).

    loss + omt_weight * omt(w) + variation_weight * variation(h, moving) + input_range_weight * input_range(x)

    Args:
        loss: a module with `terms` (`RegistrationLoss`).
        omt: penalty of the weights w (`OMTPenalty`); None leaves a penalty out.
        variation: of the pre-weights h (`WeightTotalVariation`), the moving image says where its edges are; on the grid
            of `pred["grid_spacing"]`, (B, D), if that is there.
        input_range: of the raw weights x (`InputRangePenalty`), where there are any.
        omt_weight, variation_weight, input_range_weight: theirs.
    References: Niethammer et al., CVPR 2019.
    """

    def __init__(
        self,
        loss: NamedTerms,
        *,
        omt: nn.Module | None = None,
        variation: nn.Module | None = None,
        input_range: nn.Module | None = None,
        omt_weight: float = 1.0,
        variation_weight: float = 1.0,
        input_range_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.loss, self.omt, self.variation, self.input_range = loss, omt, variation, input_range
        self.omt_weight, self.variation_weight = omt_weight, variation_weight
        self.input_range_weight = input_range_weight

    def forward(self, pred: Result, batch: Batch) -> Tensor:
        """Total loss, a scalar; the weighted, detached terms are left in `pred["terms"]`."""
        terms = self.terms(pred, batch)
        pred["terms"] = {name: value.detach() for name, value in terms.items()}
        return sum(terms.values())  # type: ignore[return-value]

    def terms(self, pred: Pred, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms by name: those of the loss, and as configured omt, variation, input_range."""
        terms = dict(self.loss.terms(pred, batch))
        if self.omt is not None:
            terms["omt"] = self.omt_weight * self.omt(pred["weights"])
        if self.variation is not None:
            spacing = pred["grid_spacing"][0].tolist() if "grid_spacing" in pred else None
            variation = self.variation(pred["pre_weights"], batch["moving"], spacing)
            terms["variation"] = self.variation_weight * variation
        if self.input_range is not None and "raw_weights" in pred:
            terms["input_range"] = self.input_range_weight * self.input_range(pred["raw_weights"])
        return terms


def range_weight(epoch: int, start: float = 1.0, *, static: int = 10, rate: float = 5.0, floor: float = 0.1) -> float:
    """Weight of `RangePenalty`: start * max(s(epoch), floor).

    s is 1 at first, and from epoch `static` on k / (k + exp((epoch - static) / k)), k the rate. In optimisation the
    epoch is half of the iterations so far, over all levels, and the rate 10.

    References: Shen et al., NeurIPS 2019; the form is that of the authors' code.
    """
    return falling_weight(epoch, start, floor * start, static, rate)


def omt_weight(epoch: int, end: float = 1.0, *, static: int = 10, rate: float = 5.0, floor: float = 0.1) -> float:
    """Weight of `OMTPenalty`, end * (1 - max(s(epoch), floor)) with the s of `range_weight`: 0 at first, at last
    1 - floor of `end`."""
    return end - falling_weight(epoch, end, floor * end, static, rate)


def _root(square: Tensor) -> Tensor:
    """The square root, with slope 0 at 0: maps start constant, where an infinite slope times 0 would be NaN."""
    return torch.where(square > 0, square, 1).sqrt() * (square > 0)


def _shares(base: Sequence[float], squared: bool) -> list[float]:
    if min(base, default=0) <= 0:
        raise ValueError(f"expected positive base weights, got {base}")
    return [(b / sum(base)) ** (0.5 if squared else 1.0) for b in base]


def _checked(weights: Tensor, n: int) -> Tensor:
    if weights.ndim < 3 or weights.shape[1] != n:
        raise ValueError(f"expected {n} channels, one for each Gaussian, got shape {tuple(weights.shape)}")
    return at_least_float32(weights)
