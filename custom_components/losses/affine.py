"""The objective of affine networks."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..fields import compose_affine


class AffineLoss(nn.Module):
    """Distance to a known map + similarity + penalty * |A - I|^2 + symmetry * |A_ts A_st - I|^2, each if it has weight.

    |A - I|^2 is the sum of the squared differences of all D (D + 1) entries from those of the identity, in centred
    coordinates. Where `pred["back"]` holds the prediction for the swapped pair, similarity and penalty are the mean of
    both directions. Means over the batch.

    Args:
        similarity: called as `similarity(warped, fixed, mask)`; None leaves the images out.
        points: weight of the mean squared distance, over the voxels of the grid, of where the map and batch["matrix"]
            put them, in squared centred units.
        penalty, symmetry: weights; the latter needs `pred["back"]`.
    References: Shen et al., Networks for joint affine and non-parametric image registration, CVPR 2019 (all but the
        points; sums of its two directions, not means).
    """

    def __init__(
        self,
        similarity: nn.Module | None = None,
        *,
        points: float = 0.0,
        penalty: float = 0.0,
        symmetry: float = 0.0,
    ) -> None:
        super().__init__()
        if similarity is None and not points:
            raise ValueError("expected a similarity or a weight of the points, got neither")
        self.similarity, self.points, self.penalty, self.symmetry = similarity, points, penalty, symmetry

    def forward(self, pred: MutableMapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
        """Total loss, a scalar; the weighted, detached terms are left in `pred["terms"]` by name.

        Args:
            pred: "matrix" (B, D, D + 1), fixed to moving, centred coordinates; "warped" and, if asked for, "back", a
                dictionary with the same of the swapped pair.
            batch: "moving" and "fixed", (B, C, *S), and "matrix" for the points.
        Raises:
            ValueError: if what a term needs is missing.
        """
        matrix, back = pred["matrix"], pred.get("back")
        if self.symmetry and back is None:
            raise ValueError("the symmetry needs pred['back']: let the inferer register both ways")
        if self.points and "matrix" not in batch:
            raise ValueError("the distance of points needs batch['matrix'], the map that is true")
        ways = [(pred, "fixed")] if back is None else [(pred, "fixed"), (back, "moving")]
        terms: dict[str, Tensor] = {}
        if self.points:
            size = batch["fixed"].shape[2:]
            terms["points"] = self.points * mean_square_distance(matrix, batch["matrix"], size).mean()
        if self.similarity is not None:
            values = [self.similarity(way["warped"], batch[target], None) for way, target in ways]
            terms["similarity"] = torch.stack(values).mean()
        if self.penalty:
            values = [_from_identity(way["matrix"]) for way, _ in ways]
            terms["penalty"] = self.penalty * torch.stack(values).mean()
        if self.symmetry and back is not None:
            terms["symmetry"] = self.symmetry * _from_identity(compose_affine(matrix, back["matrix"]))
        pred["terms"] = {name: value.detach() for name, value in terms.items()}
        return sum(terms.values())  # type: ignore[return-value]


def mean_square_distance(one: Tensor, two: Tensor, size: Sequence[int]) -> Tensor:
    """Mean over a grid's voxels x of |one(x) - two(x)|^2, in squared centred units, (B,).

    Args:
        one, two: affine maps (B, D, D + 1), centred coordinates.
        size: of the grid.
    """
    d = len(size)
    difference = one - two
    unit = max((max(size) - 1) / 2, 0.5)
    # The mean of x_k^2 over n voxels that are 1 / unit apart, about their middle.
    moments = difference.new_tensor([(n * n - 1) / 12 / unit**2 for n in size])
    return (difference[:, :, :d].square() * moments).sum((1, 2)) + difference[:, :, d].square().sum(1)


def _from_identity(matrix: Tensor) -> Tensor:
    identity = torch.eye(*matrix.shape[1:], dtype=matrix.dtype, device=matrix.device)
    return (matrix - identity).square().sum((1, 2)).mean()
