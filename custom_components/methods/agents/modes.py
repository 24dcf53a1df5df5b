"""Moves along modes of deformation: an agent that deforms (the idea of Krebs et al., MICCAI 2017).

Convention: modes are stationary velocities (M, D, *S') on a coarse grid over the extent of the images, in voxels of the
images, orthonormal: <a, b> is the mean over the grid of the product of vectors. A coefficient so is the root mean
square, in voxels, of the velocity that it adds. A state is the coefficients (B, M) of v, and the moving image is seen
through exp(v).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...checks import check_number
from ...deformations.velocity import StationaryVelocity
from ...fields import per_channel
from .moves import Moves
from .network import AgentNetwork

_FURTHEST = 3.0  # standard deviations of a coefficient to which an agent may go


class Modes(NamedTuple):
    """Principal modes of velocities.

    Args:
        fields: orthonormal, (M, D, *S').
        deviations: of the coefficients, (M,), voxels, large to small.
        explained: the share of the velocities' variance that the first 1, 2, ... modes explain, (M,).
    """

    fields: Tensor
    deviations: Tensor
    explained: Tensor


def principal_modes(velocities: Tensor, count: int) -> Modes:
    """The modes of velocities (N, D, *S'), about no motion: with each pair its swapped pair counts, whose velocity is
    the negative, so that the mean is 0.

    Args:
        velocities: of registrations, voxels.
        count: M, at most N.
    Raises:
        ValueError: for more modes than velocities.
    """
    check_number("count", count, least=1, whole=True)
    if count > len(velocities):
        raise ValueError(f"expected at most {len(velocities)} modes of as many velocities, got {count}")
    places = velocities[0, 0].numel()
    flat = velocities.flatten(1).double()
    # Of the Gram matrix: there are fewer fields than places.
    values, vectors = torch.linalg.eigh(flat @ flat.T / places)
    values, vectors = values.flip(0).clamp(min=1e-12), vectors.flip(1)
    fields = (vectors[:, :count].T @ flat) / values[:count, None].sqrt()
    return Modes(
        fields.view(count, *velocities.shape[1:]).to(velocities),
        (values[:count] / len(flat)).sqrt().to(velocities),
        (values.cumsum(0) / values.sum())[:count].to(velocities),
    )


def coefficients(fields: Tensor, velocities: Tensor) -> Tensor:
    """Those (B, M) with which orthonormal modes (M, D, *S') come closest to velocities (B, D, *S')."""
    return velocities.flatten(1) @ fields.flatten(1).T / fields[0, 0].numel()


class ModeAgent(nn.Module):
    """An `AgentNetwork` together with the modes that it moves along: they are learned from data, too, and stored in one
    file of weights.

    Args:
        modes: M.
        grid: S' of the modes; its length is the number of axes.
        steps: how many there are.
        widths, dense: see `AgentNetwork`.
    Shapes: input (B, 2, *S), output (B, steps, 2 M).
    """

    def __init__(
        self,
        modes: int = 12,
        grid: Sequence[int] = (20, 28),
        steps: int = 4,
        widths: Sequence[int] = (16, 32, 40),
        dense: int = 112,
    ) -> None:
        super().__init__()
        self.values = AgentNetwork(len(grid), steps=steps, actions=2 * modes, widths=widths, dense=dense)
        self.modes: Tensor
        self.deviations: Tensor
        self.register_buffer("modes", torch.zeros(modes, len(grid), *grid))
        self.register_buffer("deviations", torch.ones(modes))

    def forward(self, image: Tensor) -> Tensor:
        return self.values(image)

    def learn(self, modes: Modes) -> None:
        """Take modes that were found."""
        self.modes.copy_(modes.fields)
        self.deviations.copy_(modes.deviations)


class ModeMoves(Moves):
    """The actions of an agent that deforms: a step to the one or the other side along each mode, 2 M in all. States are
    coefficients (B, M).

    The distance of two states is the root mean square of the difference of their velocities, that is the length of the
    difference of the coefficients.

    Args:
        agent: has the modes.
        steps: in voxels, large to small.
    """

    def __init__(self, agent: ModeAgent, steps: Sequence[float] = (2.0, 1.0, 0.5, 0.25)) -> None:
        super().__init__(agent.modes.shape[1], steps)
        self.agent = agent

    @property
    def count(self) -> int:
        return 2 * len(self.agent.modes)

    def start(self, batch: int, device: torch.device | str | None = None) -> Tensor:
        return torch.zeros(batch, len(self.agent.modes), device=device)

    def after(self, state: Tensor, action: Tensor, step: float) -> Tensor:
        side = step * (1 - 2 * (action % 2)).to(state)
        return state.scatter_add(1, (action // 2)[:, None], side[:, None])

    def missing(self, state: Tensor, truth: Tensor) -> Tensor:
        return truth - state

    def distance(self, missing: Tensor) -> Tensor:
        return missing.norm(dim=1)

    def gains(self, missing: Tensor) -> Tensor:
        before = self.distance(missing)[:, None, None]
        found = []
        for step in self.steps:
            # |e -+ s 1_k|^2 = |e|^2 -+ 2 s e_k + s^2
            sides = torch.stack([missing, -missing], 2)
            squared = before.square() - 2 * step * sides + step**2
            found.append((before - squared.clamp(min=0).sqrt()).flatten(1) / step)
        return torch.stack(found, 1)

    def velocity(self, state: Tensor) -> Tensor:
        """The velocities (B, D, *S') of states, in voxels of the images."""
        return torch.einsum("bm,m...->b...", state, self.agent.modes.to(state))

    @property
    def deformation(self) -> StationaryVelocity:
        return StationaryVelocity()

    def parameters(self, state: Tensor, size: Sequence[int]) -> Tensor:
        """The velocities (B, D, *S') in voxels of their own grid."""
        velocity = self.velocity(state)
        factors = [(m - 1) / (n - 1) for m, n in zip(velocity.shape[2:], size, strict=True)]
        return velocity * per_channel(factors, velocity)

    def may(self, state: Tensor, size: Sequence[int]) -> bool:
        """Within 3 standard deviations of each coefficient."""
        return bool((state.abs() <= _FURTHEST * self.agent.deviations.to(state)).all())
