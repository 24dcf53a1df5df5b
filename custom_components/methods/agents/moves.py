"""What an agent can do: small steps of a rigid map, and what each of them gains.

Convention: maps (B, D, D + 1) take fixed to moving voxels, counted from the centre of the fixed grid; all grids have
voxels of equal edges. An action a comes first: the map so far T becomes T o a. The distance of a map from the true one
is the root mean square, over the points of a ball about the centre, of how far the fixed points lie from where they
should, in voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...affine import ball_displacement, compose_affine, invert_affine, rotation_matrix
from ...checks import check_number
from ...constants import filled


@dataclass(frozen=True)
class Moves:
    """The actions of an agent, by number: shifts along each axis, to the one and to the other side, then turns in the
    same way about each axis (2-D: in the plane): 12 in 3-D, 6 in 2-D.

    A step of s voxels shifts by s, or turns so far that the points of the ball move by s, root mean square.

    Args:
        spatial_dims: 2 or 3.
        steps: in voxels, large to small.
        radius: of the ball, voxels.
    Raises:
        ValueError: for another dimension, steps that do not fall, or a radius that is not above the largest step.
    """

    spatial_dims: int = 3
    steps: Sequence[float] = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125)
    radius: float = 20.0

    def __post_init__(self) -> None:
        if self.spatial_dims not in (2, 3):
            raise ValueError(f"expected spatial_dims 2 or 3, got {self.spatial_dims}")
        if not self.steps or list(self.steps) != sorted(set(self.steps), reverse=True) or min(self.steps) <= 0:
            raise ValueError(f"expected steps above 0, large to small, got {list(self.steps)}")
        check_number("radius", self.radius, above=max(self.steps))

    @property
    def count(self) -> int:
        """The number of actions."""
        return 2 * (self.spatial_dims + self.turns)

    @property
    def turns(self) -> int:
        """The number of axes to turn about."""
        return 3 if self.spatial_dims == 3 else 1

    def actions(self, step: float, like: Tensor) -> Tensor:
        """The maps of all actions of a step, (count, D, D + 1), on the device and in the type of a tensor."""
        d, turns = self.spatial_dims, self.turns
        sides = filled([step, -step], like)
        shifts = (torch.eye(d, dtype=like.dtype, device=like.device)[:, None] * sides[:, None]).flatten(0, 1)
        # The inverse of `ball_displacement` of a turn.
        angle = 2 * torch.asin(sides / (2 * self.radius) * ((d + 2) / 2) ** 0.5)
        axes = (torch.eye(turns, dtype=like.dtype, device=like.device)[:, None] * angle[:, None]).flatten(0, 1)
        none = torch.zeros(2 * turns, d, dtype=like.dtype, device=like.device)
        still = torch.zeros(2 * d, turns, dtype=like.dtype, device=like.device)
        rotations = rotation_matrix(torch.cat([still, axes]))
        return torch.cat([rotations, torch.cat([shifts, none])[:, :, None]], 2)

    def distance(self, offset: Tensor) -> Tensor:
        """How far maps (B, D, D + 1) are from the identity, (B,), voxels."""
        return ball_displacement(offset, self.radius)

    def gains(self, offset: Tensor) -> Tensor:
        """What each action gains, (B, steps, count): by how much it reduces the distance, in units of its step.

        Args:
            offset: what is still missing, (B, D, D + 1): the true map is T o offset.
        """
        before = self.distance(offset)[:, None]
        found = []
        for step in self.steps:
            back = invert_affine(self.actions(step, offset))
            after = [self.distance(compose_affine(a.expand(len(offset), -1, -1), offset)) for a in back[:, None]]
            found.append((before - torch.stack(after, 1)) / step)
        return torch.stack(found, 1)

    def chosen(self, action: Tensor, step: float) -> Tensor:
        """The maps of the actions of a batch by number (B,)."""
        return self.actions(step, torch.zeros((), device=action.device))[action]


def identity(batch: int, spatial_dims: int, device: torch.device | str | None = None) -> Tensor:
    """Maps that do nothing, (B, D, D + 1)."""
    return torch.eye(spatial_dims, spatial_dims + 1, device=device).repeat(batch, 1, 1)
