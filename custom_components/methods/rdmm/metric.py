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

from collections.abc import Callable, Sequence
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor

from ...deformations.base import Fields
from ...deformations.kernels import MultiGaussianKernel, Spacing, per_axis, smooth_weighted
from ...deformations.momentum import MomentumGrid
from ...deformations.shooting import State, VectorFlow, coadjoint, integrate, shoot
from ...fields import at_least_float32, resize_field, resize_map, spatial_gradient
from .weights import border_mask, normalized, smooth_weights, softmax_weights, weighted_linear_softmax


class RegionShot(NamedTuple):
    """What `shoot_regions` returns: as `shooting.Shot`, and the weights w at time 0 and pre-weights h at time 1."""

    ddf: Tensor
    inverse_ddf: Tensor | None
    momentum: Tensor
    velocity: Tensor
    energy: Tensor
    num_steps: int
    weights: Tensor
    pre_weights: Tensor


def shoot_regions(
    momentum: Tensor,
    pre_weights: Tensor,
    kernel: MultiGaussianKernel,
    *,
    weight_sigma: float,
    spacing: Spacing = 1.0,
    num_steps: int = 10,
    mask: Tensor | None = None,
    inverse: bool = False,
    checkpoint: bool = True,
    max_steps: int = 200,
) -> RegionShot:
    """Shoot an initial momentum over unit time in a metric that moves along.

    Args:
        momentum: shape (B, D, *S), in the unit of the spacing.
        pre_weights: h at time 0, shape (B or 1, N, *S), one channel for each Gaussian.
        kernel: the Gaussians K_i; the kernel's own weights are not used.
        weight_sigma: standard deviation of G, in the unit of the spacing; 0 for none.
        mask: a factor M, shape (1, 1, *S), that stays where it is: v = M sum_i w_i K_i (w_i M m).
        spacing, num_steps, inverse, checkpoint, max_steps: see `deformations.shooting.shoot`.
    Raises:
        ValueError: if shapes do not fit.
        ShootingError: see `deformations.shooting.shoot`.
    """
    momentum, pre_weights = at_least_float32(momentum), at_least_float32(pre_weights)
    d, n = momentum.ndim - 2, len(kernel.sigmas)
    if d not in (2, 3) or momentum.shape[1] != d:
        raise ValueError(f"expected a momentum of shape (B, 2, H, W) or (B, 3, D, H, W), got {tuple(momentum.shape)}")
    batch, size = momentum.shape[0], momentum.shape[2:]
    if pre_weights.shape[0] not in (1, batch) or pre_weights.shape[1:] != (n, *size):
        raise ValueError(
            f"expected pre-weights of shape ({batch} or 1, {n}, {', '.join(map(str, size))}), "
            f"got {tuple(pre_weights.shape)}"
        )
    if num_steps < 1:
        raise ValueError(f"expected num_steps of at least 1, got {num_steps}")
    h = per_axis(spacing, d)
    pre_weights = pre_weights.to(momentum.dtype).expand(batch, -1, *size)
    with torch.autocast(momentum.device.type, enabled=False):
        flow = _RegionFlow(kernel, weight_sigma, h, mask, inverse)
        weights = smooth_weights(pre_weights, weight_sigma, h)
        velocity, _ = flow.respond(momentum, weights)
        zero = torch.zeros_like(momentum)
        state: State = (momentum, pre_weights, zero, *([zero] if inverse else []))
        state, num_steps = integrate(flow, state, num_steps, checkpoint=checkpoint, max_steps=max_steps)
        energy = (momentum * velocity).sum(1).flatten(1).mean(1)
    back = state[3] if inverse else None
    return RegionShot(state[2], back, state[0], velocity, energy, num_steps, weights, state[1])


class _RegionFlow(VectorFlow):
    """The state is (m, h, ddf[, inverse ddf])."""

    def __init__(
        self,
        kernel: MultiGaussianKernel,
        weight_sigma: float,
        spacing: tuple[float, ...],
        mask: Tensor | None,
        inverse: bool,
    ) -> None:
        super().__init__(kernel, spacing, inverse)
        self.gaussians, self.weight_sigma, self.mask = kernel, weight_sigma, mask

    def respond(self, momentum: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """v, and the derivative of the energy (half of <m, v>) for the weights, m . K_i (w_i m)."""
        load = (momentum if self.mask is None else momentum * self.mask).unsqueeze(1)
        factors = weights.unsqueeze(2)
        response = self.gaussians.each(factors * load, self.spacing)
        velocity = (factors * response).sum(1)
        return velocity if self.mask is None else velocity * self.mask, (load * response).sum(2)

    def __call__(self, state: State) -> tuple[State, Tensor]:
        momentum, pre_weights = state[:2]
        weights = smooth_weights(pre_weights, self.weight_sigma, self.spacing)
        velocity, derivative = self.respond(momentum, weights)
        unit = velocity.new_tensor(self.spacing).view(1, -1, *[1] * (velocity.ndim - 2))
        voxels = velocity / unit
        slopes = spatial_gradient(pre_weights)
        derivative = smooth_weights(derivative, self.weight_sigma, self.spacing)
        force = (derivative.unsqueeze(2) * slopes).sum(1) / unit
        rates = coadjoint(momentum, velocity, voxels, self.spacing) + force, -(slopes * voxels.unsqueeze(1)).sum(2)
        return (*rates, *self.mapped(state, voxels)), voxels


class RegionSpecificMomentum(MomentumGrid):
    """Shooting in a metric with weights that differ from place to place, and move along (RDMM) or stay (stationary).

    The parameters are the initial momentum, D channels, in voxels of its own grid, and N channels x, one for each
    Gaussian, that make the pre-weights: x = 0 makes them the kernel's own weights everywhere. Where pre-weights are
    given the parameters are the momentum alone.

    Returns the fields of `VectorMomentum`: "ddf", "momentum" (its D channels), "velocity" (voxels of its
    own grid), "energy" (B,), if asked for "inverse_ddf"; and on the parameters' grid "weights" (w at time 0) and
    "pre_weights", both (B or 1, N, *S'), "raw_weights" (x, where the parameters have it), "sigma" (B or 1, 1, *S'),
    the equivalent deviation sqrt(sum_i w_i^2 sigma_i^2) in the unit of the spacing, and "grid_spacing" (B, D).

    Args:
        kernel: the Gaussians K_i; its weights are the base.
        spacing: of the image grid, one number or one for each axis; None is 1.
        num_steps: see `deformations.shooting.shoot`.
        stride: as in `deformations.velocity.StationaryVelocity`.
        weight_sigma: standard deviation of the Gaussian G that makes weights of the pre-weights, unit of the spacing.
        pre_weights: (B or 1, N, *S'), any resolution; they are made to sum to one (their squares, unless stationary).
        mapping: from x to the pre-weights: "softmax" (`softmax_weights`) or "linear" (`weighted_linear_softmax`).
        stationary: metric learning: the velocity is sum_i sqrt(w_i) K_i (sqrt(w_i) m) at all times, the pre-weights sum
            to one.
        minimum: weights are raised to it before their root is taken (stationary), and see `weighted_linear_softmax`.
        margin: width of the border where the velocity is stopped, unit of the spacing, see `border_mask`; it is rounded
            to voxels of the parameters' grid. 0: none.
        margin_sigma: standard deviation of the mask's Gaussian, unit of the spacing; None: half of the margin.
        checkpoint: see `deformations.shooting.shoot`; None: in 3-D.
        floor: see `to_unknown`, a share of the kernel's gain.
        weight_scale: x per unit of the unknown, see `to_unknown`: at 1 an optimiser hardly moves the weights. Not used
            with the quantity "root".
        quantity: of the first D parameters: "momentum", or "root", that of `to_unknown`; then an optimiser searches the
            parameters as they are.
    Raises:
        ValueError: for unknown names; on a call, if channels are missing.
    References: Shen et al., NeurIPS 2019 (optimised, given and learned weights); Niethammer et al., CVPR 2019
        (stationary). The mask is on both sides of the metric: so it remains one.
    """

    def __init__(
        self,
        kernel: MultiGaussianKernel,
        spacing: Spacing | None = None,
        num_steps: int = 10,
        stride: int = 2,
        *,
        weight_sigma: float,
        pre_weights: Tensor | None = None,
        mapping: str = "softmax",
        stationary: bool = False,
        minimum: float = 1e-3,
        margin: float = 0.0,
        margin_sigma: float | None = None,
        checkpoint: bool | None = None,
        floor: float = 0.01,
        weight_scale: float = 10.0,
        quantity: str = "momentum",
    ) -> None:
        if mapping not in ("softmax", "linear"):
            raise ValueError(f"expected mapping softmax or linear, got {mapping!r}")
        if quantity not in ("momentum", "root"):
            raise ValueError(f"expected quantity momentum or root, got {quantity!r}")
        margin_sigma = margin / 2 if margin_sigma is None else margin_sigma
        if weight_sigma < 0 or margin < 0 or margin_sigma < 0 or weight_scale <= 0:
            raise ValueError(
                f"expected a margin and deviations of at least 0 and a weight scale above 0, "
                f"got {margin}, {weight_sigma}, {margin_sigma} and {weight_scale}"
            )
        self.kernel, self.spacing = kernel, 1.0 if spacing is None else spacing
        self.num_steps, self.stride = num_steps, stride
        self.weight_sigma, self.pre_weights, self.mapping = weight_sigma, pre_weights, mapping
        self.stationary, self.minimum = stationary, minimum
        self.margin, self.margin_sigma = margin, margin_sigma
        self.checkpoint, self.floor, self.quantity = checkpoint, floor, quantity
        self.weight_scale = weight_scale
        self.predictor: Callable[[Tensor], Tensor] | None = None

    def parameter_channels(self, spatial_dims: int) -> int:
        """D, and N where the weights are part of the parameters."""
        return spatial_dims + (len(self.kernel.sigmas) if self._has_weights() else 0)

    def _has_weights(self) -> bool:
        return self.pre_weights is None and self.predictor is None

    def __call__(self, parameters: Tensor, size: Sequence[int], *, inverse: bool = False) -> Fields:
        d = len(size)
        if parameters.ndim != d + 2 or parameters.shape[1] != self.parameter_channels(d):
            raise ValueError(
                f"expected parameters of {d} channels of momentum"
                f"{' and one for each Gaussian' if self._has_weights() else ''}, "
                f"{self.parameter_channels(d)} in {d}-D, got shape {tuple(parameters.shape)}"
            )
        parameters = at_least_float32(parameters)
        spacing = self.parameter_spacing(parameters, size)
        unit = parameters.new_tensor(spacing).view(1, -1, *[1] * d)
        with torch.autocast(parameters.device.type, enabled=False):
            if self.predictor is not None:
                parameters = torch.cat([parameters, self.predictor(parameters).to(parameters)], 1)
            momentum, pre_weights = self._momentum(parameters, size), self._pre_weights(parameters)
            checkpoint = d == 3 if self.checkpoint is None else self.checkpoint
            mask = None
            if self.margin:
                margins = [int(self.margin / h + 0.5) for h in spacing]
                mask = border_mask(momentum.shape[2:], margins, self.margin_sigma, spacing, like=momentum)
            if self.stationary:
                weights = smooth_weights(pre_weights, self.weight_sigma, spacing).clamp(min=self.minimum)

                def metric(values: Tensor, spacing: tuple[float, ...]) -> Tensor:
                    if mask is None:
                        return smooth_weighted(values, weights, self.kernel, spacing)
                    return mask * smooth_weighted(mask * values, weights, self.kernel, spacing)

                shot = shoot(
                    momentum * unit,
                    metric,
                    spacing=spacing,
                    num_steps=self.num_steps,
                    stationary=True,
                    inverse=inverse,
                    checkpoint=checkpoint,
                )
                ddf, inverse_ddf, _, velocity, energy, _ = shot
            else:
                ddf, inverse_ddf, _, velocity, energy, _, weights, _ = shoot_regions(
                    momentum * unit,
                    pre_weights,
                    self.kernel,
                    weight_sigma=self.weight_sigma,
                    spacing=spacing,
                    num_steps=self.num_steps,
                    mask=mask,
                    inverse=inverse,
                    checkpoint=checkpoint,
                )
            variances = weights.new_tensor(self.kernel.sigmas).square().view(1, -1, *[1] * d)
            shares = weights if self.stationary else weights.square()
            fields = {"ddf": resize_field(ddf, size), "momentum": momentum, "energy": energy}
            fields |= {"velocity": velocity / unit, "weights": weights, "pre_weights": pre_weights}
            fields["grid_spacing"] = parameters.new_tensor(spacing).expand(len(parameters), -1)
            fields["sigma"] = (shares * variances).sum(1, keepdim=True).sqrt()
            if self.pre_weights is None:
                fields["raw_weights"] = parameters[:, d:]
            if inverse_ddf is not None:
                fields["inverse_ddf"] = resize_field(inverse_ddf, size)
        return fields

    def given(self, pre_weights: Tensor | None) -> RegionSpecificMomentum:
        """The same deformation with other pre-weights; None: with those of its parameters."""
        other = copy(self)
        other.pre_weights, other.predictor = pre_weights, None
        return other

    def predicted_by(self, predictor: Callable[[Tensor], Tensor]) -> RegionSpecificMomentum:
        """The same deformation with x = predictor(parameters), (B, N, *S'), of the D channels of its parameters."""
        other = self.given(None)
        other.predictor = predictor
        return other

    def resize(self, parameters: Tensor, size: Sequence[int]) -> Tensor:
        """Bring parameters onto another grid over the same extent: vectors are rescaled, x is not."""
        d = parameters.ndim - 2
        momentum = resize_field(parameters[:, :d], size)
        if parameters.shape[1] == d:
            return momentum
        return torch.cat([momentum, resize_map(parameters[:, d:], size).to(momentum)], 1)

    def to_unknown(self, parameters: Tensor, size: Sequence[int]) -> Tensor:
        """What an optimiser had better search: (K + floor)^(1/2) m with the base weights' kernel (as
        `deformations.momentum.VectorMomentum`), and x / weight_scale."""
        if self.quantity == "root":
            return parameters
        d = len(size)
        return torch.cat([self._powered(parameters, size, 0.5), parameters[:, d:] / self.weight_scale], 1)

    def from_unknown(self, unknown: Tensor, size: Sequence[int]) -> Tensor:
        """The parameters of `to_unknown`."""
        if self.quantity == "root":
            return unknown
        d = len(size)
        return torch.cat([self._powered(unknown, size, -0.5), unknown[:, d:] * self.weight_scale], 1)

    def _momentum(self, parameters: Tensor, size: Sequence[int]) -> Tensor:
        if self.quantity == "root":
            return self._powered(parameters, size, -0.5)
        return parameters[:, : len(size)]

    def _powered(self, parameters: Tensor, size: Sequence[int], exponent: float) -> Tensor:
        """A power of the base weights' kernel, applied to the momentum's channels."""
        kernel = MultiGaussianKernel(self.kernel.sigmas, self.kernel.weights, self.kernel.nearest)
        spacing = self.parameter_spacing(parameters, size)
        return kernel.powered(parameters[:, : len(size)], exponent, spacing, floor=self.floor)

    def _pre_weights(self, parameters: Tensor) -> Tensor:
        if self.pre_weights is not None:
            given = resize_map(self.pre_weights.to(parameters), parameters.shape[2:])
            return normalized(given, 1 if self.stationary else 2)
        assert self.kernel.weights is not None
        x, base = parameters[:, parameters.ndim - 2 :], self.kernel.weights
        if self.mapping == "softmax":
            return softmax_weights(x, base, squared=not self.stationary)
        return weighted_linear_softmax(x, base, squared=not self.stationary, minimum=self.minimum)
