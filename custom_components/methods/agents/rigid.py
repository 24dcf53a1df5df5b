"""Rigid moves: small shifts and turns.

Convention: maps (B, D, D + 1) take fixed to moving voxels, counted from the centre of the fixed grid; all grids have
voxels of equal edges. An action a comes first: the map so far T becomes T o a. The distance of a map from the true one
is the root mean square, over the points of a ball about the centre, of how far the fixed points lie from where they
should, in voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...affine import ball_displacement, compose_affine, invert_affine, rotation_matrix
from ...checks import check_number
from ...constants import filled
from ...deformations.affine import AffineMap
from .moves import Moves


class RigidMoves(Moves):
    """The actions of a rigid agent: shifts along each axis, to the one and to the other side, then turns in the same
    way about each axis (2-D: in the plane): 12 in 3-D, 6 in 2-D. States are maps (B, D, D + 1).

    A step of s voxels shifts by s, or turns so far that the points of the ball move by s, root mean square.

    Args:
        spatial_dims: 2 or 3.
        steps: in voxels, large to small.
        radius: of the ball, voxels.
    Raises:
        ValueError: for another dimension, steps that do not fall, or a radius that is not above the largest step.
    """

    def __init__(
        self, spatial_dims: int = 3, steps: Sequence[float] = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125), radius: float = 20.0
    ) -> None:
        super().__init__(spatial_dims, steps)
        check_number("radius", radius, above=max(steps))
        self.radius = radius

    @property
    def count(self) -> int:
        return 2 * (self.spatial_dims + self.turns)

    @property
    def turns(self) -> int:
        """The number of axes to turn about."""
        return 3 if self.spatial_dims == 3 else 1

    def start(self, batch: int, device: torch.device | str | None = None) -> Tensor:
        return identity(batch, self.spatial_dims, device)

    def after(self, state: Tensor, action: Tensor, step: float) -> Tensor:
        return compose_affine(state, self.actions(step, state)[action])

    def missing(self, state: Tensor, truth: Tensor) -> Tensor:
        """The maps that are missing: the true ones are state o missing."""
        return compose_affine(invert_affine(state), truth)

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

    def distance(self, missing: Tensor) -> Tensor:
        """How far maps (B, D, D + 1) are from the identity, (B,), voxels."""
        return ball_displacement(missing, self.radius)

    def gains(self, missing: Tensor) -> Tensor:
        """What each action gains, (B, steps, count): by how much it reduces the distance, in units of its step.

        Args:
            missing: (B, D, D + 1), see `missing`.
        """
        before = self.distance(missing)[:, None]
        found = []
        for step in self.steps:
            back = invert_affine(self.actions(step, missing))
            after = [self.distance(compose_affine(a.expand(len(missing), -1, -1), missing)) for a in back[:, None]]
            found.append((before - torch.stack(after, 1)) / step)
        return torch.stack(found, 1)

    @property
    def deformation(self) -> AffineMap:
        return AffineMap()

    def parameters(self, state: Tensor, size: Sequence[int]) -> Tensor:
        return centred(state, size)

    def may(self, state: Tensor, size: Sequence[int]) -> bool:
        """Not further from the identity than the ball's radius, or a quarter of the grid."""
        return float(self.distance(state)) <= min(self.radius, sum(size) / len(size) / 4)

    @property
    def mirrored(self) -> list[int]:
        """Of shifts the one along the first axis changes its side, of turns those about the other axes (in 2-D the only
        one)."""
        d = self.spatial_dims
        changes = [True] + [False] * (d - 1) + ([False, True, True] if d == 3 else [True])
        return [number ^ changes[number // 2] for number in range(self.count)]


def identity(batch: int, spatial_dims: int, device: torch.device | str | None = None) -> Tensor:
    """Maps that do nothing, (B, D, D + 1)."""
    return torch.eye(spatial_dims, spatial_dims + 1, device=device).repeat(batch, 1, 1)


def centred(matrix: Tensor, size: Sequence[int]) -> Tensor:
    """Maps about the grid's centre, in voxels, in centred coordinates (`affine.centred_to_voxel`), (B, D, D + 1)."""
    unit = max(max(size) - 1, 1) / 2
    return torch.cat([matrix[:, :, :-1], matrix[:, :, -1:] / unit], 2)
