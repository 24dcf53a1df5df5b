"""The objective of networks that learn known fields."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...checks import check_number
from ...fields import at_least_float32
from ...vocabulary import Batch, Result
from .simulation import known_answers


class KnownFieldLoss(nn.Module):
    """sum_x M(x) |u(x) - v(x)| / sum_x M(x), u known, v the answer, M what counts; lengths of vectors, in voxels.

    Args:
        penalty: "l1", the length of the error; or "huber", half its square up to `threshold`, and from there the
            threshold times the length less half the threshold.
        threshold: of "huber", in voxels.
        bins: edges of classes of |u| in voxels, from 0 up; each class with voxels then counts as much as the others,
            and within it each voxel. None counts each voxel as much.
    Raises:
        ValueError: for another penalty, or edges that do not rise.
    References: Eppenhof and Pluim, IEEE TMI 38(5), 2019; Huber and classes: after Sokooti et al., arXiv 1908.10235.
    """

    def __init__(self, penalty: str = "l1", threshold: float = 1.0, bins: Sequence[float] | None = None) -> None:
        super().__init__()
        if penalty not in ("l1", "huber"):
            raise ValueError(f"expected penalty l1 or huber, got {penalty!r}")
        check_number("threshold", threshold, above=0)
        if bins is not None and (len(bins) < 1 or list(bins) != sorted(set(bins))):
            raise ValueError(f"expected edges that rise, got {bins}")
        self.penalty, self.threshold, self.bins = penalty, threshold, bins

    def forward(self, pred: Result, batch: Batch) -> Tensor:
        """Loss, a scalar, of pred["ddf"] (N, D, *S), batch["known_ddf"] (M, D, *S), batch["known_mask"] (M, 1, *S).

        Raises:
            ValueError: if the batch has no known fields.
        """
        if "known_ddf" not in batch:
            raise ValueError(f"this loss needs 'known_ddf', and the batch has {sorted(batch)}")
        known = batch["known_ddf"]
        error = length(known_answers(pred["ddf"], known.shape[0]) - known)
        weights = batch["known_mask"].to(error.dtype)
        if self.bins is not None:
            weights = balanced(weights, length(known), self.bins)
        if self.penalty == "huber":
            short = error.clamp(max=self.threshold)
            error = short * (error - short / 2)
        loss = (weights * error).sum() / weights.sum().clamp(min=1e-6)  # nothing counts in an empty mask
        pred["terms"] = {self.penalty: loss.detach()}
        return loss


def length(field: Tensor) -> Tensor:
    """Of the vectors of a field (B, D, *S), (B, 1, *S); where it is 0 its derivative is 0, too."""
    return (at_least_float32(field).square().sum(1, keepdim=True) + 1e-12).sqrt()


def balanced(weights: Tensor, lengths: Tensor, edges: Sequence[float]) -> Tensor:
    """Weights of the same shape, whose sum over each class of lengths is 1, or 0 where the class is empty."""
    result = torch.zeros_like(weights)
    for low, high in zip(edges, [*edges[1:], float("inf")], strict=True):
        own = weights * ((lengths >= low) & (lengths < high))
        result = result + own / own.sum().clamp(min=1e-6)
    return result
