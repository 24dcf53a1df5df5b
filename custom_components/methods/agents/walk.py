"""The walk of an agent: step by step to where no step gains any more."""

from __future__ import annotations

import torch
from torch import Tensor

from ...inference.prediction import Network, Precision
from .moves import Moves


class Walk:
    """The greedy walk of an agent.

    It begins with the largest step, always takes the action of the highest value, and goes on to the next smaller step
    as soon as all values are negative, or the state would be one that was there before, or one where it may not go
    (`Moves.may`). It ends after the smallest step, or after `limit` actions. The values may be the mean over a pair and
    its mirror image along the first axis (`mirror`).

    Args:
        moves: the actions.
        limit: largest number of actions.
        mirror: ask for the mirrored pair, too.
        precision: of the network, see `inference.prediction.Precision`.
    Raises:
        ValueError: for a mirror that the moves do not have.
    """

    def __init__(self, moves: Moves, *, limit: int = 200, mirror: bool = False, precision: str = "float32") -> None:
        self.moves, self.limit, self.mirror = moves, limit, mirror
        self.precision = Precision(precision)
        self.mirrored = moves.mirrored if mirror else None
        if mirror and self.mirrored is None:
            raise ValueError(f"expected mirror false: the actions of {type(moves).__name__} have no mirror images")

    @torch.no_grad()
    def __call__(self, image: Tensor, network: Network) -> list[list[Tensor]]:
        """For each pair of a batch (B, 2, *S) the states on the way, the first one without any motion."""
        return [self.one(image[i : i + 1], network) for i in range(len(image))]

    def one(self, image: Tensor, network: Network) -> list[Tensor]:
        """The states on the way of a pair (1, 2, *S)."""
        state = self.moves.start(1, image.device)
        way, level = [state[0]], 0
        while level < len(self.moves.steps) and len(way) <= self.limit:
            value, action = self.values(image, state, network)[:, level].max(1)
            step = self.moves.steps[level]
            after = self.moves.after(state, action, step)
            goes = float(value) > 0 and self.moves.may(after, image.shape[2:])
            if not goes or any(self._near(after, one[None], step) for one in way[-4:]):
                level += 1
                continue
            state = after
            way.append(state[0])
        return way

    def values(self, image: Tensor, state: Tensor, network: Network) -> Tensor:
        """The values (B, steps, actions) of pairs (B, 2, *S) where states have led."""
        shown = self.moves.seen(image, state)
        found: Tensor = self.precision.ask(network, shown).float()
        if self.mirrored is None:
            return found
        other: Tensor = self.precision.ask(network, shown.flip(2)).float()
        return (found + other[:, :, self.mirrored]) / 2

    def _near(self, a: Tensor, b: Tensor, step: float) -> bool:
        return float(self.moves.distance(self.moves.missing(a, b))) < step / 4
