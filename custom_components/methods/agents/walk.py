"""The walk of an agent: step by step to where no step gains any more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...affine import affine_to_ddf, centred_to_voxel, compose_affine
from ...fields import warp
from ...inference.prediction import Network, Precision
from .moves import Moves, identity


def centred(matrix: Tensor, size: Sequence[int]) -> Tensor:
    """Maps about the grid's centre, in voxels, in centred coordinates (`affine.centred_to_voxel`), (B, D, D + 1)."""
    unit = max(max(size) - 1, 1) / 2
    return torch.cat([matrix[:, :, :-1], matrix[:, :, -1:] / unit], 2)


def seen(image: Tensor, matrix: Tensor) -> Tensor:
    """Pairs (B, 2, *S) whose moving images lie where the maps (B, D, D + 1) put them."""
    size = image.shape[2:]
    ddf = affine_to_ddf(centred_to_voxel(centred(matrix, size), size), size)
    return torch.cat([warp(image[:, :1], ddf), image[:, 1:]], 1)


class Walk:
    """The greedy walk of an agent.

    It begins with the largest step, always takes the action of the highest value, and goes on to the next smaller step
    as soon as all values are negative, or the map would be one that was there before, or further from the identity than
    the ball's radius or a quarter of the grid. It ends after the smallest step, or after `limit` actions. The values
    may be the mean over a pair and its mirror image along the first axis (`mirror`).

    Args:
        moves: the actions.
        limit: largest number of actions.
        mirror: ask for the mirrored pair, too.
        precision: of the network, see `inference.prediction.Precision`.
    """

    def __init__(self, moves: Moves, *, limit: int = 200, mirror: bool = False, precision: str = "float32") -> None:
        self.moves, self.limit, self.mirror = moves, limit, mirror
        self.precision = Precision(precision)
        self.mirrored = mirrored_actions(moves)

    @torch.no_grad()
    def __call__(self, image: Tensor, network: Network) -> list[list[Tensor]]:
        """For each pair of a batch (B, 2, *S) the maps (D, D + 1) on the way, the identity first."""
        return [self.one(image[i : i + 1], network) for i in range(len(image))]

    def one(self, image: Tensor, network: Network) -> list[Tensor]:
        """The maps on the way of a pair (1, 2, *S)."""
        matrix = identity(1, self.moves.spatial_dims, image.device)
        way, level = [matrix[0]], 0
        size = image.shape[2:]
        reach = min(self.moves.radius, sum(size) / len(size) / 4)
        while level < len(self.moves.steps) and len(way) <= self.limit:
            value, action = self.values(image, matrix, network)[:, level].max(1)
            step = self.moves.steps[level]
            after = compose_affine(matrix, self.moves.chosen(action, step))
            lost = float(self.moves.distance(after)) > reach
            if lost or float(value) <= 0 or any(self._near(after[0], one, step) for one in way[-4:]):
                level += 1
                continue
            matrix = after
            way.append(matrix[0])
        return way

    def values(self, image: Tensor, matrix: Tensor, network: Network) -> Tensor:
        """The values (B, steps, actions) of pairs (B, 2, *S) where maps have led."""
        shown = seen(image, matrix)
        found: Tensor = self.precision.ask(network, shown).float()
        if not self.mirror:
            return found
        other: Tensor = self.precision.ask(network, shown.flip(2)).float()
        return (found + other[:, :, self.mirrored]) / 2

    def _near(self, a: Tensor, b: Tensor, step: float) -> bool:
        d = self.moves.spatial_dims
        apart = (a - b).clone()
        apart[:, :d] += torch.eye(d, device=a.device)
        return float(self.moves.distance(apart[None])) < step / 4


def mirrored_actions(moves: Moves) -> list[int]:
    """The number of the action that a mirror along the first axis makes of each action: of shifts the one along that
    axis changes its side, of turns those about the other axes (in 2-D the only one)."""
    d = moves.spatial_dims
    changes = [True] + [False] * (d - 1) + ([False, True, True] if d == 3 else [True])
    return [number ^ changes[number // 2] for number in range(moves.count)]
