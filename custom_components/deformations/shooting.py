"""Geodesic shooting: from an initial momentum to the deformation it drives.

With v = K m, the momentum follows EPDiff, m_t = -div(m (x) v) - (Dv)^T m, and the maps phi_t = -Dphi v (the pull-back,
fixed to moving: our "ddf") and psi_t = v o psi (its inverse). The energy <m, K m> is constant along the way, and
sqrt(<m, K m>) is the length of the geodesic.

Convention: momenta and velocities are in the length unit of `spacing` (mm, or voxels for spacing 1), maps in voxels.
Derivatives are central differences; those of m and v are 0 at the border nodes (Neumann), those of the map one-sided
(a map is continued linearly). Time goes from 0 to 1 in Runge-Kutta steps of fourth order. Everything is computed in
float32 or float64, also under autocast.

References: Miller et al., Journal of Mathematical Imaging and Vision 24, 2006 (EPDiff); the discretisation is that of
the `mermaid` package, without its limits on momentum and velocity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from ..fields import spatial_gradient, warp
from .kernels import Spacing, per_axis

State = tuple[Tensor, ...]


# K as a function of a field and the spacing: a kernel, or what does its work.
Operator = Callable[[Tensor, tuple[float, ...]], Tensor]


# Runge-Kutta with central differences is stable up to 2 sqrt(2).
_COURANT = 2.0


class Shot(NamedTuple):
    """What `shoot` returns: displacements in voxels, (B, D, *S); momentum and velocity in the spacing's length unit.

    `inverse_ddf` is None unless asked for; `momentum` is the one at time 1; `velocity` that at time 0; `energy`, (B,),
    is the mean over the voxels of <m, K m> at time 0; `num_steps` the number of steps taken.
    """

    ddf: Tensor
    inverse_ddf: Tensor | None
    momentum: Tensor
    velocity: Tensor
    energy: Tensor
    num_steps: int


class ShootingError(RuntimeError):
    """The momentum cannot be shot: too large for the grid, or not finite."""


class TooFast(Exception):
    """A velocity crosses too many voxels in a step; the argument is the number of steps that would do."""


def shoot(
    momentum: Tensor,
    kernel: Operator,
    *,
    spacing: Spacing = 1.0,
    num_steps: int = 10,
    image: Tensor | None = None,
    stationary: bool = False,
    inverse: bool = False,
    checkpoint: bool = True,
    max_steps: int = 200,
) -> Shot:
    """Shoot an initial momentum over unit time.

    Args:
        momentum: shape (B, D, *S); with `image` (B, C, *S).
        kernel: K.
        spacing: of the grid, one number or one for each axis.
        num_steps: Runge-Kutta steps. Where a velocity crosses more than two voxels in a step (summed over the axes, any
            sample of the batch) the integration starts again with as many as it takes.
        image: the moving image (B, C, *S) of the scalar-momentum model: m = sum over channels of momentum_c grad
            image_c at all times, both transported along.
        stationary: v = K m stays as it is (the vector-momentum stationary velocity field, vSVF).
        inverse: also integrate the inverse map.
        checkpoint: recompute each step in the backward pass, so that memory does not grow with the stages of all steps.
        max_steps: limit for the steps.
    Raises:
        ValueError: if shapes do not fit, or `stationary` is combined with `image`.
        ShootingError: if a velocity stops being finite or would need more than `max_steps` steps.
    """
    momentum = momentum if momentum.dtype in (torch.float32, torch.float64) else momentum.float()
    d = momentum.ndim - 2
    if d not in (2, 3) or momentum.shape[1] != (d if image is None else image.shape[1]):
        raise ValueError(
            f"expected a momentum of shape (B, 2, H, W) or (B, 3, D, H, W), or one channel for each of the image's, "
            f"got {tuple(momentum.shape)}"
        )
    if num_steps < 1 or (image is not None and (stationary or image.shape != momentum.shape)):
        raise ValueError(
            f"expected num_steps of at least 1 and, for the scalar model, an image like the momentum, not stationary; "
            f"got {num_steps} steps, stationary={stationary}, image {None if image is None else tuple(image.shape)}"
        )
    h = per_axis(spacing, d)
    with torch.autocast(momentum.device.type, enabled=False):
        if image is not None:
            image = image.to(momentum)
            initial = _scalar_to_vector(momentum, image, h)
            flow: VectorFlow = _ScalarFlow(kernel, h, inverse)
            state: State = (momentum, image)
        else:
            initial = momentum
            flow = _StationaryFlow(kernel, h, inverse) if stationary else VectorFlow(kernel, h, inverse)
            state = (momentum,)
        velocity = kernel(initial, h)
        zero = torch.zeros_like(velocity)
        state = (*state, *([velocity] if stationary else []), zero, *([zero] if inverse else []))
        state_1, num_steps = integrate(flow, state, num_steps, checkpoint=checkpoint, max_steps=max_steps)
        fields = state_1[len(state_1) - 1 - inverse :]
        final = state_1[0] if image is None else _scalar_to_vector(state_1[0], state_1[1], h)
        energy = (initial * velocity).sum(1).flatten(1).mean(1)
    return Shot(fields[0], fields[1] if inverse else None, final, velocity, energy, num_steps)


class VectorFlow:
    """Right-hand side for the state (m, ddf[, inverse ddf]); in others the maps come last, too."""

    def __init__(self, kernel: Operator, spacing: tuple[float, ...], inverse: bool) -> None:
        self.kernel, self.spacing, self.inverse = kernel, spacing, inverse

    def velocity(self, state: State) -> Tensor:
        return self.kernel(state[0], self.spacing)

    def __call__(self, state: State) -> tuple[State, Tensor]:
        """Time derivatives of the state, and the velocity in voxels."""
        velocity = self.velocity(state)
        voxels = velocity / _column(self.spacing, velocity)
        return (*self.carried(state, velocity, voxels), *self.mapped(state, voxels)), voxels

    def mapped(self, state: State, voxels: Tensor) -> State:
        """The rates of the maps, the last parts of the state."""
        maps = state[len(state) - 1 - self.inverse :]
        rate = _Advect.apply(maps[0], voxels) - voxels
        return (rate, warp(voxels, maps[1], padding="border")) if self.inverse else (rate,)

    def carried(self, state: State, velocity: Tensor, voxels: Tensor) -> State:
        return (coadjoint(state[0], velocity, voxels, self.spacing),)


class _StationaryFlow(VectorFlow):
    """The state is (m, v, ddf[, inverse ddf]); m and v stay."""

    def velocity(self, state: State) -> Tensor:
        return state[1]

    def carried(self, state: State, velocity: Tensor, voxels: Tensor) -> State:
        zero = torch.zeros((), dtype=velocity.dtype, device=velocity.device)
        return zero, zero


class _ScalarFlow(VectorFlow):
    """The state is (scalar momentum, image, ddf[, inverse ddf])."""

    def velocity(self, state: State) -> Tensor:
        return self.kernel(_scalar_to_vector(state[0], state[1], self.spacing), self.spacing)

    def carried(self, state: State, velocity: Tensor, voxels: Tensor) -> State:
        return _Transport.apply(state[0], voxels), _Advect.apply(state[1], voxels)


def coadjoint(momentum: Tensor, velocity: Tensor, voxels: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """-div(m (x) v) - (Dv)^T m; the velocity in the length unit of the spacing and in voxels."""
    return _Transport.apply(momentum, voxels) + _Stretch.apply(momentum, velocity, spacing)


def integrate(flow: VectorFlow, state: State, num_steps: int, *, checkpoint: bool, max_steps: int) -> tuple[State, int]:
    """The state at time 1, and the number of steps it took: `num_steps`, or more where they are too long (see `shoot`).

    Raises:
        ShootingError: see `shoot`.
    """
    while True:
        try:
            return _integrate(flow, state, num_steps, checkpoint), num_steps
        except TooFast as error:
            needed = int(error.args[0])
            if needed > max_steps:
                raise ShootingError(
                    f"the momentum is too large for this grid: {needed} integration steps needed, {max_steps} allowed"
                ) from error
            num_steps = needed


def _integrate(flow: VectorFlow, state: State, num_steps: int, checkpoint: bool) -> State:
    dt = 1 / num_steps
    step: Callable[..., Any] = _runge_kutta
    for _ in range(num_steps):
        if checkpoint and torch.is_grad_enabled():
            *new, fastest = recompute(step, flow, dt, *state, use_reentrant=False, preserve_rng_state=False)
        else:
            *new, fastest = step(flow, dt, *state)
        speed = float(fastest)
        if not math.isfinite(speed):
            raise ShootingError("the momentum or its velocity is not finite")
        if speed * dt > _COURANT:
            raise TooFast(math.ceil(1.2 * speed / _COURANT))
        state = tuple(new)
    if not all(bool(torch.isfinite(part).all()) for part in state):
        raise ShootingError("shooting has diverged: momentum or map are not finite")
    return state


def _runge_kutta(flow: VectorFlow, dt: float, *state: Tensor) -> tuple[Tensor, ...]:
    """One step, and the largest speed at its start, in voxels per unit time summed over the axes."""
    first, voxels = flow(state)
    second, _ = flow(_ahead(state, first, dt / 2))
    third, _ = flow(_ahead(state, second, dt / 2))
    fourth, _ = flow(_ahead(state, third, dt))
    new = tuple(
        s + (a + 2 * (b + c) + d) * (dt / 6) for s, a, b, c, d in zip(state, first, second, third, fourth, strict=True)
    )
    return (*new, voxels.detach().abs().sum(1).max())


def _ahead(state: State, rates: State, dt: float) -> State:
    return tuple(torch.add(s, rate, alpha=dt) for s, rate in zip(state, rates, strict=True))


def _scalar_to_vector(scalar: Tensor, image: Tensor, spacing: tuple[float, ...]) -> Tensor:
    gradient = spatial_gradient(image)
    return (scalar.unsqueeze(2) * gradient).sum(1) / _column(spacing, gradient)


def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
    return like.new_tensor(values).view(1, -1, *[1] * len(values))


# The differential operators carry their own derivatives: they keep only their inputs, and need no graph of slices.


class _Transport(torch.autograd.Function):
    """-div(f (x) w) for each channel of f (B, C, *S); w (B, D, *S) in voxels. Neumann borders."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(f, w)
        result = torch.zeros_like(f)
        for j in range(w.shape[1]):
            _add_difference(result, f * w[:, j : j + 1], j + 2, -1.0)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        f, w = ctx.saved_tensors
        grad_f, grad_w = torch.zeros_like(f), torch.empty_like(w)
        for j in range(w.shape[1]):
            back = _add_transposed(torch.zeros_like(grad), grad, j + 2, 1.0)
            grad_f.addcmul_(w[:, j : j + 1], back, value=-1)
            grad_w[:, j] = -(f * back).sum(1)
        return grad_f, grad_w


class _Stretch(torch.autograd.Function):
    """-(Dv)^T m, v in the length unit of the spacing. Neumann borders."""

    @staticmethod
    def forward(ctx: Any, m: Tensor, v: Tensor, spacing: tuple[float, ...]) -> Tensor:
        ctx.save_for_backward(m, v)
        ctx.spacing = spacing
        result = torch.empty_like(m)
        for k, h in enumerate(spacing):
            result[:, k] = _add_difference(torch.zeros_like(v), v, k + 2, -1 / h).mul_(m).sum(1)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        m, v = ctx.saved_tensors
        grad_m, grad_v = torch.zeros_like(m), torch.zeros_like(v)
        for k, h in enumerate(ctx.spacing):
            one = grad[:, k : k + 1]
            grad_m.addcmul_(one, _add_difference(torch.zeros_like(v), v, k + 2, -1 / h))
            _add_transposed(grad_v, one * m, k + 2, -1 / h)
        return grad_m, grad_v, None


class _Advect(torch.autograd.Function):
    """-Df w for each channel of f (B, C, *S); w (B, D, *S) in voxels. One-sided differences at the border."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(f, w)
        result = torch.zeros_like(f)
        for j in range(w.shape[1]):
            slope = _add_difference(torch.zeros_like(f), f, j + 2, 1.0, one_sided=True)
            result.addcmul_(w[:, j : j + 1], slope, value=-1)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
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
