"""Geodesic shooting: from an initial momentum to the deformation it drives.

An equation of motion, a `Flow`, says how a momentum m and what moves along with it change in time, and which velocity v
they drive. `shoot` integrates it over unit time together with the maps phi_t = -Dphi v (the pull-back, fixed to moving:
our "ddf") and psi_t = v o psi (its inverse).

Two flows are here. `EPDiff` is the geodesic of a kernel K: v = K m and

    m_t = -div(m (x) v) - (Dv)^T m.

The energy <m, K m> is constant along the way, and sqrt(<m, K m>) is the length of the geodesic. In `StationaryFlow`
the velocity of the initial momentum stays.

Convention: momenta and velocities are in the length unit of `spacing` (mm, or voxels for spacing 1), maps in voxels.
Derivatives are central differences; those of m and v are 0 at the border nodes (Neumann), those of the map one-sided
(a map is continued linearly). Time goes from 0 to 1 in Runge-Kutta steps of fourth order. Everything is computed in
float32 or float64, also under autocast.

References: Miller et al., Journal of Mathematical Imaging and Vision 24, 2006 (EPDiff); the discretisation is that of
the `mermaid` package, without its limits on momentum and velocity.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from ..fields import at_least_float32, per_channel, warp
from .kernels import Spacing, per_axis
from .late import LateReadings
from .operators import advect, coadjoint

State = tuple[Tensor, ...]


# K as a function of a field and the spacing: a kernel, or what does its work.
Operator = Callable[[Tensor, tuple[float, ...]], Tensor]


# Runge-Kutta with central differences is stable up to 2 sqrt(2).
_COURANT = 2.0

_DIVERGED = "shooting has diverged: momentum or map are not finite"

logger = logging.getLogger(__name__)


class ShootingError(RuntimeError):
    """The momentum cannot be shot: too large for the grid, or not finite."""


class Flow(ABC):
    """An equation of motion: how a state changes in time, and which velocity it drives.

    A state is a tuple of tensors (B, ..., *S). The first is the momentum, (B, D, *S), in the length unit of the
    spacing; a flow may add what moves along with it.

    Args:
        spacing: of the grid, one number or one for each axis.
    """

    def __init__(self, spacing: Spacing = 1.0) -> None:
        self.spacing = spacing

    @abstractmethod
    def start(self, momentum: Tensor) -> tuple[State, Tensor]:
        """The state at time 0, and its velocity (B, D, *S) in the length unit of the spacing."""

    @abstractmethod
    def __call__(self, state: State) -> tuple[State, Tensor]:
        """Time derivatives of the state's parts, and the velocity in voxels.

        The derivative of a part that stays may be a zero of shape ().
        """

    def spacing_of(self, field: Tensor) -> tuple[float, ...]:
        """The spacing along each axis of a field (B, C, *S)."""
        return per_axis(self.spacing, field.ndim - 2)


class EPDiff(Flow):
    """The geodesic equation v = K m, m_t = -div(m (x) v) - (Dv)^T m; the state is (m,).

    Args:
        kernel: K.
        spacing: see `Flow`.
    """

    def __init__(self, kernel: Operator, spacing: Spacing = 1.0) -> None:
        super().__init__(spacing)
        self.kernel = kernel

    def start(self, momentum: Tensor) -> tuple[State, Tensor]:
        return (momentum,), self.kernel(momentum, self.spacing_of(momentum))

    def __call__(self, state: State) -> tuple[State, Tensor]:
        spacing = self.spacing_of(state[0])
        velocity = self.kernel(state[0], spacing)
        voxels = velocity / per_channel(spacing, velocity)
        return (coadjoint(state[0], velocity, voxels, spacing),), voxels


class StationaryFlow(Flow):
    """A velocity v = K m(0) that stays: m_t = 0 (the vector-momentum stationary velocity field, vSVF).

    The state is (m, v), so that K is applied once.

    Args:
        kernel: K.
        spacing: see `Flow`.
    References: Shen et al., CVPR 2019.
    """

    def __init__(self, kernel: Operator, spacing: Spacing = 1.0) -> None:
        super().__init__(spacing)
        self.kernel = kernel

    def start(self, momentum: Tensor) -> tuple[State, Tensor]:
        velocity = self.kernel(momentum, self.spacing_of(momentum))
        return (momentum, velocity), velocity

    def __call__(self, state: State) -> tuple[State, Tensor]:
        zero = torch.zeros((), dtype=state[1].dtype, device=state[1].device)
        return (zero, zero), state[1] / per_channel(self.spacing_of(state[1]), state[1])


class Shot(NamedTuple):
    """What `shoot` returns: displacements in voxels, (B, D, *S), and the flow's own quantities in its length unit.

    Attributes:
        ddf: displacement of the pull-back, fixed to moving.
        inverse_ddf: that of its inverse; None unless it was asked for.
        state: the flow's state at time 1.
        velocity: at time 0.
        energy: shape (B,), the mean of <m, v> over the voxels at time 0.
        num_steps: number of steps taken.
        is_sound: of a shot that is read late, whether it counts, a scalar; else None.
    """

    ddf: Tensor
    inverse_ddf: Tensor | None
    state: State
    velocity: Tensor
    energy: Tensor
    num_steps: int
    is_sound: Tensor | None = None

    @property
    def momentum(self) -> Tensor:
        """The momentum at time 1."""
        return self.state[0]


def shoot(
    flow: Flow,
    momentum: Tensor,
    *,
    num_steps: int = 10,
    inverse: bool = False,
    checkpoint: bool = True,
    max_steps: int = 200,
    checked: bool = True,
) -> Shot:
    """Follow an equation of motion from an initial momentum over unit time.

    Args:
        flow: the equation.
        momentum: shape (B, D, *S), in the length unit of the flow's spacing.
        num_steps: Runge-Kutta steps. Where a velocity crosses more than two voxels in a step (summed over the axes, any
            sample of the batch) the integration starts again with as many steps as it takes.
        inverse: also integrate the inverse map.
        checkpoint: recompute each step in the backward pass, so that memory does not grow with the stages of all steps.
        max_steps: limit for the steps.
        checked: False takes the steps as they are and looks at no value, so that a GPU never makes the host wait; what
            diverges is then not finite.

    A GPU makes the host wait once, for the speeds of all steps. Inside of `LateReadings.on` it does not: a shot that
    needs more steps, or is not finite, becomes the identity and leaves the end of the state at its start, as its
    `is_sound` says; eight shots later its speeds are read, and further shots take as many steps as it needed.

    Raises:
        ValueError: if the momentum is not a vector field, or there is no step.
        ShootingError: if a velocity stops being finite or would need more than `max_steps` steps.
    """
    d = momentum.ndim - 2
    if d not in (2, 3) or momentum.shape[1] != d:
        raise ValueError(f"expected a momentum of shape (B, 2, H, W) or (B, 3, D, H, W), got {tuple(momentum.shape)}")
    if num_steps < 1:
        raise ValueError(f"expected num_steps of at least 1, got {num_steps}")
    momentum = at_least_float32(momentum)
    with torch.autocast(momentum.device.type, enabled=False):
        start, velocity = flow.start(momentum)
        maps = [torch.zeros_like(velocity)] * (2 if inverse else 1)
        carrying, begin = _Carrying(flow, len(maps)), (*start, *maps)
        late, is_sound = LateReadings.current, None
        if checked and late is not None and momentum.device != torch.device("cpu"):
            num_steps = max(num_steps, late.steps)
            end, is_sound = _read_late(late, carrying, begin, num_steps, checkpoint, max_steps)
        elif checked:
            end, num_steps = _restarted(carrying, begin, num_steps, checkpoint, max_steps)
        else:
            end, _ = _steps_taken(carrying, begin, num_steps, checkpoint)
        energy = (momentum * velocity).sum(1).flatten(1).mean(1)
    ddf, *back = end[len(start) :]
    return Shot(ddf, back[0] if inverse else None, end[: len(start)], velocity, energy, num_steps, is_sound)


class _Carrying:
    """A flow together with the maps that its velocity moves; they are the last parts of the state."""

    def __init__(self, flow: Flow, num_maps: int) -> None:
        self.flow, self.num_maps = flow, num_maps

    def __call__(self, state: State) -> tuple[State, Tensor]:
        own, maps = state[: -self.num_maps], state[-self.num_maps :]
        rates, voxels = self.flow(own)
        rates = (*rates, advect(maps[0], voxels) - voxels)
        return (*rates, *[warp(voxels, inverse, padding="border") for inverse in maps[1:]]), voxels


class _TooFast(Exception):
    """A velocity crosses too many voxels in a step; the argument is the number of steps that would do."""


def _restarted(flow: _Carrying, state: State, num_steps: int, checkpoint: bool, max_steps: int) -> tuple[State, int]:
    """The state at time 1, and the number of steps it took: `num_steps`, or more where these are too long."""
    while True:
        try:
            return _integrated(flow, state, num_steps, checkpoint), num_steps
        except _TooFast as error:
            needed = int(error.args[0])
            if needed > max_steps:
                raise ShootingError(_too_large(needed, max_steps)) from error
            num_steps = needed


def _read_late(
    late: LateReadings, flow: _Carrying, begin: State, num_steps: int, checkpoint: bool, max_steps: int
) -> tuple[State, Tensor]:
    """The state at time 1, or that at time 0 where the steps were too long, and whether it counts."""
    end, speeds = _steps_taken(flow, begin, num_steps, checkpoint)
    finite = torch.stack([torch.isfinite(part).all() for part in end]).all()
    for (*earlier, was_finite), steps in late.add(torch.stack([*speeds, finite.to(speeds[0])]), num_steps):
        try:
            for speed in earlier:
                _check_speed(speed, 1 / steps)
        except _TooFast as error:
            late.steps = max(late.steps, int(error.args[0]))
            if late.steps > max_steps:
                raise ShootingError(_too_large(late.steps, max_steps)) from error
            logger.warning("a shot of %d steps was too fast, and counted for nothing: %d now", steps, late.steps)
        else:
            if not was_finite:
                raise ShootingError(_DIVERGED)
    is_sound = finite & (torch.stack(speeds).max() / num_steps <= _COURANT)  # a speed that is none is not below
    return tuple(torch.where(is_sound, after, before) for after, before in zip(end, begin, strict=True)), is_sound


def _steps_taken(
    flow: _Carrying, state: State, num_steps: int, checkpoint: bool, look: Callable[[Tensor], None] | None = None
) -> tuple[State, list[Tensor]]:
    """The state at time 1, and the largest speed at the start of each step, of which each gets a look."""
    dt = 1 / num_steps
    step: Callable[..., tuple[Tensor, ...]] = _runge_kutta
    speeds: list[Tensor] = []
    for _ in range(num_steps):
        if checkpoint and torch.is_grad_enabled():
            *new, fastest = recompute(step, flow, dt, *state, use_reentrant=False, preserve_rng_state=False)
        else:
            *new, fastest = step(flow, dt, *state)
        state = tuple(new)
        speeds.append(fastest)
        if look is not None:
            look(fastest)
    return state, speeds


def _integrated(flow: _Carrying, state: State, num_steps: int, checkpoint: bool) -> State:
    """The state at time 1, of steps that were not too long."""
    dt = 1 / num_steps
    # A GPU goes on to the end before the host asks, once.
    at_once = state[0].device == torch.device("cpu")
    look = (lambda speed: _check_speed(float(speed), dt)) if at_once else None
    state, speeds = _steps_taken(flow, state, num_steps, checkpoint, look)
    finite = torch.stack([torch.isfinite(part).all() for part in state]).all()
    *numbers, is_finite = torch.stack([*speeds, finite.to(speeds[0])]).tolist()
    for speed in numbers:
        _check_speed(speed, dt)
    if not is_finite:
        raise ShootingError(_DIVERGED)
    return state


def _too_large(needed: int, allowed: int) -> str:
    return f"the momentum is too large for this grid: {needed} integration steps needed, {allowed} allowed"


def _check_speed(speed: float, dt: float) -> None:
    if not math.isfinite(speed):
        raise ShootingError("the momentum or its velocity is not finite")
    if speed * dt > _COURANT:
        # A fifth more than the speed asks for: on the way it may rise.
        raise _TooFast(math.ceil(1.2 * speed / _COURANT))


def _runge_kutta(flow: _Carrying, dt: float, *state: Tensor) -> tuple[Tensor, ...]:
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
