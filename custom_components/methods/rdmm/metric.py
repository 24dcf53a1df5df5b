"""Region-specific diffeomorphic metric mapping (RDMM), and the stationary metrics of metric learning.

The metric differs from place to place: v = sum_i w_i K_i (w_i m), with the Gaussians K_i of a multi-Gaussian kernel and
maps of weights w_i. In RDMM it moves with the tissue: w_i(t) = G h_i(t), G a Gaussian, and the pre-weights h_i are
carried along, dh_i/dt + grad h_i . v = 0, that is h_i(t) = h_i(0) o phi_t. The geodesic is

    m_t = -div(m (x) v) - (Dv)^T m + sum_i G(m . K_i (w_i m)) grad h_i

and keeps <m, v> constant. Without the last term, or with grad h_i at time 0, it does not. The squares of the
pre-weights sum to one. Metric learning takes v = sum_i sqrt(w_i) K_i (sqrt(w_i) m), weights that sum to one, and a
velocity that stays. G mirrors the grid at its ends, so that constants stay as they are.

Convention: as in `shooting`; lengths (the deviations of K_i and G) are in the unit of the grid's spacing. The
pre-weights are part of the integrated state, with the differences of the force they exert: so, but for the border, the
energy drifts with the error of the time steps alone. With h(0) warped by the map it drifts a thousand times as much.

References: Shen, Vialard, Niethammer, Region-specific diffeomorphic metric mapping, NeurIPS 2019 (the force derived
here: the authors' code takes grad h at time 0); Niethammer, Kwitt, Vialard, Metric learning for image registration,
CVPR 2019.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...deformations.base import Fields
from ...deformations.kernels import MultiGaussianKernel, Spacing, smooth_weighted
from ...deformations.momentum import MomentumDeformation
from ...deformations.operators import coadjoint
from ...deformations.shooting import Flow, State, StationaryFlow
from ...fields import per_channel, resize_field, resize_map, spatial_gradient
from .weights import border_mask, normalized, smooth_weights, softmax_weights, weighted_linear_softmax

if TYPE_CHECKING:
    from typing_extensions import Self


class RegionFlow(Flow):
    """The geodesic of a metric that moves along (see above); the state is (m, h).

    Args:
        kernel: the Gaussians K_i; the kernel's own weights are not used.
        pre_weights: h at time 0, shape (B or 1, N, *S), one channel for each Gaussian.
        weight_sigma: standard deviation of G, in the unit of the spacing; 0 for none.
        spacing: of the grid, one number or one for each axis.
        mask: a factor M, shape (1, 1, *S), that stays where it is: v = M sum_i w_i K_i (w_i M m).
    Attributes:
        weights: w at time 0, shape (B or 1, N, *S).
    Raises:
        ValueError: on `start`, if the pre-weights do not fit the momentum.
    """

    def __init__(
        self,
        kernel: MultiGaussianKernel,
        pre_weights: Tensor,
        *,
        weight_sigma: float,
        spacing: Spacing = 1.0,
        mask: Tensor | None = None,
    ) -> None:
        super().__init__(spacing)
        self.kernel, self.pre_weights, self.weight_sigma, self.mask = kernel, pre_weights, weight_sigma, mask
        self.weights = smooth_weights(pre_weights, weight_sigma, self.spacing_of(pre_weights))

    def start(self, momentum: Tensor) -> tuple[State, Tensor]:
        batch, size, shape = len(momentum), momentum.shape[2:], self.pre_weights.shape
        wanted = (len(self.kernel.sigmas), *size)
        if shape[0] not in (1, batch) or shape[1:] != wanted:
            raise ValueError(
                f"expected pre-weights of shape ({batch} or 1, {', '.join(map(str, wanted))}), got {tuple(shape)}"
            )
        state = momentum, self.pre_weights.to(momentum.dtype).expand(batch, *wanted)
        return state, self.respond(momentum, self.weights.to(momentum.dtype))[0]

    def __call__(self, state: State) -> tuple[State, Tensor]:
        momentum, pre_weights = state
        spacing = self.spacing_of(momentum)
        weights = smooth_weights(pre_weights, self.weight_sigma, spacing)
        velocity, derivative = self.respond(momentum, weights)
        unit = per_channel(spacing, velocity)
        voxels = velocity / unit
        slopes = spatial_gradient(pre_weights)
        # G is symmetric: its transpose, which the chain rule asks for, is G.
        derivative = smooth_weights(derivative, self.weight_sigma, spacing)
        force = (derivative.unsqueeze(2) * slopes).sum(1) / unit
        momentum_rate = coadjoint(momentum, velocity, voxels, spacing) + force
        return (momentum_rate, -(slopes * voxels.unsqueeze(1)).sum(2)), voxels

    def respond(self, momentum: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """v, and the derivative of the energy (half of <m, v>) for the weights, m . K_i (w_i m)."""
        load = (momentum if self.mask is None else momentum * self.mask).unsqueeze(1)
        factors = weights.unsqueeze(2)
        response = self.kernel.each(factors * load, self.spacing_of(momentum))
        velocity = (factors * response).sum(1)
        return velocity if self.mask is None else velocity * self.mask, (load * response).sum(2)


@dataclass(frozen=True)
class MetricSettings:
    """How raw numbers x become the weights of a metric, and where its velocity stops.

    Args:
        weight_sigma: standard deviation of the Gaussian G that makes weights of the pre-weights, unit of the spacing.
        mapping: from x to the pre-weights: "softmax" (`softmax_weights`) or "linear" (`weighted_linear_softmax`).
        minimum: of the weights of the linear mapping; a stationary metric also raises G's result to it.
        weight_scale: x per unit of the unknown: at 1 an optimiser hardly moves the weights.
        margin: width of the border where the velocity is stopped, unit of the spacing, see `border_mask`; it is rounded
            to voxels of the parameters' grid. 0: none.
        margin_sigma: standard deviation of the mask's Gaussian, unit of the spacing; None: half of the margin.
    Raises:
        ValueError: for an unknown mapping, or lengths below 0.
    """

    # What interacts: `weight_scale` acts only with the deformation's quantity "momentum" (with "root" parameters are
    # searched as they are), `margin_sigma` only with a margin. A minimum must be below all base weights with "linear".
    weight_sigma: float
    mapping: str = "softmax"
    minimum: float = 1e-3
    weight_scale: float = 10.0
    margin: float = 0.0
    margin_sigma: float | None = None

    def __post_init__(self) -> None:
        if self.mapping not in ("softmax", "linear"):
            raise ValueError(f"expected mapping softmax or linear, got {self.mapping!r}")
        if self.weight_sigma < 0 or self.margin < 0 or (self.margin_sigma or 0) < 0 or self.weight_scale <= 0:
            raise ValueError(
                f"expected a margin and deviations of at least 0 and a weight scale above 0, "
                f"got {self.margin}, {self.weight_sigma}, {self.margin_sigma} and {self.weight_scale}"
            )

    def pre_weights(self, x: Tensor, base: Sequence[float], *, squared: bool) -> Tensor:
        """The mapping of x (B, N, *S); x = 0 gives the base (or its roots, if squares are to sum to one)."""
        if self.mapping == "softmax":
            return softmax_weights(x, base, squared=squared)
        return weighted_linear_softmax(x, base, squared=squared, minimum=self.minimum)

    def mask(self, like: Tensor, spacing: Sequence[float]) -> Tensor | None:
        """The border's mask for a field (B, C, *S); None without a margin."""
        if not self.margin:
            return None
        margins = [int(self.margin / h + 0.5) for h in spacing]
        sigma = self.margin / 2 if self.margin_sigma is None else self.margin_sigma
        return border_mask(like.shape[2:], margins, sigma, spacing, like=like)


class LocalMetricMomentum(MomentumDeformation):
    """Shooting in a metric whose weights differ from place to place; what both such metrics share.

    The parameters are the initial momentum, D channels, in voxels of its own grid, and N channels x, one for each
    Gaussian, that make the pre-weights: x = 0 makes them the kernel's own weights everywhere. Where pre-weights are
    given (`given`) or predicted (`predicted_by`) the parameters are the momentum alone.

    Returns the fields of `MomentumDeformation`, and on the parameters' grid "weights" (w at time 0) and "pre_weights",
    both (B or 1, N, *S'), "raw_weights" (x, unless pre-weights are given), "sigma" (B or 1, 1, *S'), the equivalent
    deviation in the unit of the spacing: the root of the mean of sigma_i^2 by each Gaussian's share, and "grid_spacing"
    (B, D).

    Args:
        kernel: the Gaussians K_i; its weights are the base.
        metric: what makes the weights.
        spacing, num_steps, stride, checkpoint, floor, quantity: see `MomentumDeformation`; powers are those of the base
            weights' kernel.
    References: the mask is on both sides of the metric: so it remains one.
    """

    kernel: MultiGaussianKernel
    # The powers of the weights that sum to one, and are the Gaussians' shares.
    power: int

    def __init__(
        self,
        kernel: MultiGaussianKernel,
        spacing: Spacing | None = None,
        num_steps: int = 10,
        stride: int = 2,
        *,
        metric: MetricSettings,
        checkpoint: bool | None = None,
        floor: float = 0.01,
        quantity: str = "momentum",
    ) -> None:
        super().__init__(kernel, spacing, num_steps, stride, checkpoint=checkpoint, floor=floor, quantity=quantity)
        self.metric = metric
        self.given_weights: Tensor | None = None
        self.predictor: Callable[[Tensor], Tensor] | None = None

    def description(self) -> dict[str, object]:
        return {**super().description(), "weight_sigma": self.metric.weight_sigma, "mapping": self.metric.mapping}

    @abstractmethod
    def flow_of(self, pre_weights: Tensor, mask: Tensor | None, spacing: tuple[float, ...]) -> tuple[Flow, Tensor]:
        """The equation of motion, and the weights at time 0, (B or 1, N, *S')."""

    def flow(self, parameters: Tensor, spacing: tuple[float, ...]) -> tuple[Flow, Fields]:
        own = {"grid_spacing": per_channel(spacing, parameters).flatten(1).expand(len(parameters), -1)}
        if self.given_weights is None:
            x = parameters[:, len(spacing) :] if self.predictor is None else self.predictor(parameters).to(parameters)
            pre_weights = self.metric.pre_weights(x, self.base_weights, squared=self.power == 2)
            own["raw_weights"] = x
        else:
            resized = resize_map(self.given_weights.to(parameters), parameters.shape[2:])
            pre_weights = normalized(resized, self.power)
        flow, weights = self.flow_of(pre_weights, self.metric.mask(parameters, spacing), spacing)
        variances = per_channel(self.kernel.sigmas, weights).square()
        own["sigma"] = (weights.pow(self.power) * variances).sum(1, keepdim=True).sqrt()
        return flow, {**own, "weights": weights, "pre_weights": pre_weights}

    @property
    def base_weights(self) -> Sequence[float]:
        """The kernel's own weights, which x = 0 stands for."""
        assert self.kernel.weights is not None
        return self.kernel.weights

    def given(self, pre_weights: Tensor) -> Self:
        """The same deformation with given pre-weights, (B or 1, N, *S') at any resolution.

        They are made to sum to one: they or, if the metric moves, their squares.
        """
        other = copy(self)
        other.given_weights, other.predictor = pre_weights, None
        return other

    def predicted_by(self, predictor: Callable[[Tensor], Tensor]) -> Self:
        """The same deformation with x = predictor(parameters), (B, N, *S'), of the D channels of its parameters."""
        other = copy(self)
        other.given_weights, other.predictor = None, predictor
        return other

    def parameter_channels(self, spatial_dims: int) -> int:
        """D, and N where the weights are part of the parameters."""
        own = self.given_weights is None and self.predictor is None
        return spatial_dims + (len(self.kernel.sigmas) if own else 0)

    def resize(self, parameters: Tensor, size: Sequence[int]) -> Tensor:
        # Vectors are rescaled, x is not.
        d = parameters.ndim - 2
        momentum = resize_field(parameters[:, :d], size)
        if parameters.shape[1] == d:
            return momentum
        return torch.cat([momentum, resize_map(parameters[:, d:], size).to(momentum)], 1)

    def _momentum(self, vectors: Tensor, spacing: tuple[float, ...]) -> Tensor:
        # Gaussians do not couple the axes: the power of their sum needs no unit of length.
        return self._powered(vectors, -0.5, spacing) if self.quantity == "root" else vectors

    def to_unknown(self, parameters: Tensor, size: Sequence[int]) -> Tensor:
        """(K + floor)^(1/2) m with the base weights' kernel, and x / weight_scale."""
        if self.quantity == "root":
            return parameters
        d = len(size)
        root = super().to_unknown(parameters[:, :d], size)
        return torch.cat([root, parameters[:, d:] / self.metric.weight_scale], 1)

    def from_unknown(self, unknown: Tensor, size: Sequence[int]) -> Tensor:
        if self.quantity == "root":
            return unknown
        d = len(size)
        momentum = super().from_unknown(unknown[:, :d], size)
        return torch.cat([momentum, unknown[:, d:] * self.metric.weight_scale], 1)


class RegionSpecificMomentum(LocalMetricMomentum):
    """RDMM: the metric moves along, v = sum_i w_i K_i (w_i m), and the squares of the pre-weights sum to one.

    Arguments and fields are those of `LocalMetricMomentum`.

    References: Shen et al., NeurIPS 2019 (optimised, given and learned weights).
    """

    power = 2

    def flow_of(self, pre_weights: Tensor, mask: Tensor | None, spacing: tuple[float, ...]) -> tuple[Flow, Tensor]:
        sigma = self.metric.weight_sigma
        flow = RegionFlow(self.kernel, pre_weights, weight_sigma=sigma, spacing=spacing, mask=mask)
        return flow, flow.weights


class StationaryMetricMomentum(LocalMetricMomentum):
    """Metric learning: v = sum_i sqrt(w_i) K_i (sqrt(w_i) m) at all times, and the pre-weights sum to one.

    Arguments and fields are those of `LocalMetricMomentum`.

    References: Niethammer et al., CVPR 2019.
    """

    power = 1

    def flow_of(self, pre_weights: Tensor, mask: Tensor | None, spacing: tuple[float, ...]) -> tuple[Flow, Tensor]:
        # The root has no slope at 0.
        weights = smooth_weights(pre_weights, self.metric.weight_sigma, spacing).clamp(min=self.metric.minimum)

        def metric(values: Tensor, spacing: tuple[float, ...]) -> Tensor:
            if mask is None:
                return smooth_weighted(values, weights, self.kernel, spacing)
            return mask * smooth_weighted(mask * values, weights, self.kernel, spacing)

        return StationaryFlow(metric, spacing), weights
