"""Terms that guide a registration beside its images: landmarks, label maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..vocabulary import Batch, Result
from .overlap import LabelDice

GUIDES = ("guide_moving", "guide_fixed")


class LabelGuide(nn.Module):
    """1 - mean Dice of the label maps that guide a pair; 0, the background, does not count."""

    def forward(self, ddf: Tensor, batch: Batch) -> Tensor:
        """The term, a scalar.

        Args:
            ddf: shape (B, D, *S), voxels, fixed to moving.
            batch: "guide_moving", "guide_fixed", integer label maps (B, 1, *S).
        """
        moving, fixed = (batch[key] for key in GUIDES)
        last = int(torch.maximum(moving.max(), fixed.max()))
        return LabelDice(range(1, last + 1))(ddf, moving, fixed) if last > 0 else 0 * ddf.sum()


class Guided(nn.Module):
    """A loss that compares images, and terms that a pair brings along, each times its weight.

    Args:
        loss: called as `loss(pred, batch)`.
        terms: by name, called as `term(ddf, batch)`.
        weights: of the terms, by the same names.
    """

    def __init__(
        self,
        loss: Callable[[Result, dict[str, Tensor]], Tensor],
        terms: Mapping[str, nn.Module],
        weights: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.loss, self.weights = loss, dict(weights)
        self.terms = nn.ModuleDict(terms)

    def forward(self, pred: Result, batch: dict[str, Tensor]) -> Tensor:
        """The sum; the terms stand in `pred["terms"]`, if the loss tells its own."""
        total = self.loss(pred, batch)
        terms = {name: self.weights[name] * term(pred["ddf"], batch) for name, term in self.terms.items()}
        if "terms" in pred:
            pred["terms"] = {**pred["terms"], **{name: term.detach() for name, term in terms.items()}}
        return sum(terms.values(), total)


def nearest_at(maps: Tensor, size: torch.Size) -> Tensor:
    """Label maps (B, 1, *S) on another grid with the same corners, by their nearest voxels."""
    for axis, (n, m) in enumerate(zip(maps.shape[2:], size, strict=True), start=2):
        index = torch.linspace(0, n - 1, m, device=maps.device).round().long()
        maps = maps.index_select(axis, index)
    return maps
