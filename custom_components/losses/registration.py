"""The objective of pairwise registration: similarity + weight * regularisation (+ folding, + labels)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from ..checks import check_number
from ..fields import warp
from ..vocabulary import Batch, Pred, Result
from .regularization import FoldingPenalty


class NamedTerms(Protocol):
    """A loss that is a sum of named terms."""

    def terms(self, pred: Pred, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms by name."""
        ...


class RegistrationLoss(nn.Module):
    """Similarity and regularisation, and optionally folding and segmentation terms, each with its weight.

    similarity_weight * similarity(warped, fixed) + weight * regularization(field) + folding_weight * folding(ddf)
    + segmentation_weight * overlap(labels)

    Masks in the batch (`mask_fixed`, `mask_moving`) restrict the similarity; the moving mask is warped too. The term is
    then multiplied by the share of the grid that counts: a mask takes away the pull of what lies outside and leaves
    that of what lies inside as it is, in proportion to the smoothness.

    Args:
        similarity: called as `similarity(warped, fixed, mask)`; None leaves the images out (SynthMorph).
        regularization: called with a field.
        weight: of the regularisation. Weights do not transfer between similarities (VoxelMorph: about 1 for LNCC, 0.01
            for MSE), nor between regularised fields.
        similarity_weight: of the similarity.
        regularized: key of the regularised field in `pred`: "svf" (the velocity on its own grid), "ddf", "energy", or
            whatever else the deformation gives.
        folding_weight: weight of `FoldingPenalty(0.2)` on the displacement; 0 leaves it out.
        overlap: called as `overlap(ddf, label_moving, label_fixed)` (`LabelDice`, `LabelLikelihood`); the batch then
            needs both integer maps. None gives the unsupervised objective.
        segmentation_weight: of the overlap.
    """

    def __init__(
        self,
        similarity: nn.Module | None,
        regularization: nn.Module,
        weight: float,
        *,
        similarity_weight: float = 1.0,
        regularized: str = "svf",
        folding_weight: float = 0.0,
        overlap: nn.Module | None = None,
        segmentation_weight: float = 0.01,
    ) -> None:
        super().__init__()
        for name, value in (("weight", weight), ("similarity_weight", similarity_weight)):
            check_number(name, value, least=0)
        for name, value in (("folding_weight", folding_weight), ("segmentation_weight", segmentation_weight)):
            check_number(name, value, least=0)
        self.similarity, self.similarity_weight = similarity, similarity_weight
        self.regularization, self.weight, self.regularized = regularization, weight, regularized
        self.folding, self.folding_weight = FoldingPenalty(0.2), folding_weight
        self.overlap, self.segmentation_weight = overlap, segmentation_weight

    @property
    def needs(self) -> tuple[str, ...]:
        """The keys of a batch that it needs besides the images."""
        return () if self.overlap is None else ("label_moving", "label_fixed")

    def forward(self, pred: Result, batch: Batch) -> Tensor:
        """Total loss, a scalar. The (weighted, detached) terms are left in `pred["terms"]` by name, for the logs.

        Args:
            pred: fields and "warped", as an inferer returns them.
            batch: "moving" and "fixed", (B, C, *S); optionally labels and masks, (B, 1, *S), and "channel_weights",
                (B, C, 1, ...), the same for all pairs.
        """
        terms = self.terms(pred, batch)
        pred["terms"] = {name: value.detach() for name, value in terms.items()}
        return sum(terms.values())  # type: ignore[return-value]

    def terms(self, pred: Pred, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms by name: those of `comparisons`, "regularization" and, if it has a weight, "folding"."""
        terms = self.comparisons(pred, batch)
        terms["regularization"] = self.weight * self.regularization(pred[self.regularized])
        if self.folding_weight:
            terms["folding"] = self.folding_weight * self.folding(pred["ddf"])
        return terms

    def comparisons(self, pred: Pred, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms that compare the two images: "similarity" and "segmentation", as configured.

        Raises:
            ValueError: if the overlap is wanted and the batch lacks a label map.
        """
        terms: dict[str, Tensor] = {}
        if self.similarity is not None:
            similarity = self._similarity(pred["warped"], batch, common_mask(pred["ddf"], batch))
            terms["similarity"] = self.similarity_weight * _masked_share(batch) * similarity
        if self.overlap is not None:
            terms["segmentation"] = self.segmentation_weight * compare(self.overlap, pred["ddf"], batch, "label")
        return terms

    def _similarity(self, warped: Tensor, batch: Batch, mask: Tensor | None) -> Tensor:
        """Of all channels together, or the weighted mean over channels."""
        assert self.similarity is not None
        fixed, weights = batch["fixed"], batch.get("channel_weights")
        if weights is None:
            return self.similarity(warped, fixed, mask)
        shares = weights[0].flatten() / weights[0].sum()
        channels = zip(warped.split(1, 1), fixed.split(1, 1), shares, strict=True)
        return torch.stack([share * self.similarity(a, b, mask) for a, b, share in channels if share > 0]).sum()


def compare(term: nn.Module, ddf: Tensor, batch: Batch, kind: str) -> Tensor:
    """`term(ddf, moving, fixed)` of the maps of one kind ("label", say) in the batch.

    Raises:
        ValueError: if a map that the term needs is missing.
    """
    for key in (f"{kind}_moving", f"{kind}_fixed"):
        if key not in batch:
            raise ValueError(f"this term of the loss needs {key!r}, and the batch has {sorted(batch)}")
    return term(ddf, batch[f"{kind}_moving"], batch[f"{kind}_fixed"])


def common_mask(ddf: Tensor, batch: Batch) -> Tensor | None:
    """Where both images count, on the fixed image's grid: the fixed mask times the warped moving one."""
    mask = batch.get("mask_fixed")
    if "mask_moving" in batch:
        warped = warp(batch["mask_moving"].to(ddf.dtype), ddf.detach())
        mask = warped if mask is None else mask * warped
    return mask


def _masked_share(batch: Batch) -> float | Tensor:
    """Mean of the masks' product before any motion: a constant, so that no motion lowers the loss by losing overlap."""
    masks = [batch[key].float() for key in ("mask_moving", "mask_fixed") if key in batch]
    return torch.stack(masks).prod(0).mean() if masks else 1.0
