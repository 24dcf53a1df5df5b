"""Terms that guide a registration beside its images: landmarks, label maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..fields import warp
from ..vocabulary import Batch, Result

GUIDES = ("guide_moving", "guide_fixed")
MOST_LABELS = 64  # each takes memory as an image does


class LabelGuide(nn.Module):
    """1 - mean Dice of the soft label maps that guide a pair, 2 sum(m f) / (sum(m^2) + sum(f^2)) for each label.

    With the squares it is best where the maps are equal. With plain sums soft maps would rather be sharp, and be drawn
    to where the voxels of one lie on those of the other.
    """

    def forward(self, ddf: Tensor, batch: Batch) -> Tensor:
        """The term, a scalar.

        Args:
            ddf: shape (B, D, *S), voxels, fixed to moving.
            batch: "guide_moving", "guide_fixed", shape (B, K, *S), as `soft_maps` gives them.
        """
        moving, fixed = (batch[key] for key in GUIDES)
        if not moving.shape[1]:
            return 0 * ddf.sum()
        warped, axes = warp(moving, ddf), tuple(range(2, ddf.ndim))
        size = (warped.square() + fixed.square()).sum(axes)
        return 1 - (2 * (warped * fixed).sum(axes) / size.clamp(min=1e-3)).mean()


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


def soft_maps(batch: Mapping[str, Tensor], make: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Guides (B, 1, *S) as one channel for each label above 0 that both show, (B, K, *S'), blurred by a voxel.

    The blur keeps a motion of less than a voxel from being drawn to whole ones.

    Args:
        batch: "guide_moving", "guide_fixed"; without both there are no maps.
        make: from a label's indicator (B, 1, *S) to the map on another grid (B, 1, *S').
    Raises:
        ValueError: if they have more than `MOST_LABELS` labels in common.
    """
    if not all(key in batch for key in GUIDES):
        return {}
    shown = [set(batch[key].unique().tolist()) for key in GUIDES]
    ids = sorted(label for label in shown[0] & shown[1] if label > 0)
    if len(ids) > MOST_LABELS:
        raise ValueError(
            f"expected guides of at most {MOST_LABELS} labels, got {len(ids)}: merge some, or leave them out"
        )
    maps = {key: [blurred(make((batch[key] == label).float())) for label in ids] for key in GUIDES}
    return {key: torch.cat(found, 1) if found else batch[key][:, :0].float() for key, found in maps.items()}


def blurred(maps: Tensor) -> Tensor:
    """The mean of each voxel and its neighbours along each axis, weighted 1, 2, 1; (B, K, *S)."""
    for axis in range(2, maps.ndim):
        n = maps.shape[axis]
        if n > 1:
            ends = [maps.narrow(axis, 0, 1), maps, maps.narrow(axis, n - 1, 1)]
            padded = torch.cat(ends, axis)
            maps = (padded.narrow(axis, 0, n) + 2 * maps + padded.narrow(axis, 2, n)) / 4
    return maps
