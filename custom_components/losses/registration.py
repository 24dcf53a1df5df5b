"""The objective of pairwise registration: similarity + weight * regularisation (+ folding, + labels, + surfaces)."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..fields import warp
from .overlap import LabelDice, LabelLikelihood
from .regularization import FoldingPenalty


class RegistrationLoss(nn.Module):
    """Similarity, regularisation, and optionally folding, segmentation and surface terms, each with its weight.

    similarity_weight * similarity(warped, fixed) + weight * regularization(field) + folding_weight * folding(ddf)
    + segmentation_weight * overlap(labels) + surface(labels' distance maps)

    With `bidirectional`, similarity, overlap and surface terms are the mean of both directions, the second through the
    inverse field.
    Masks in the batch (`mask_fixed`, `mask_moving`) restrict the similarity: the moving mask is warped along.

    Args:
        similarity: called as `similarity(warped, fixed, mask)`; None leaves the images out (SynthMorph).
        similarity_weight: its weight.
        regularization: called with a field.
        weight: of the regularisation. Weights do not transfer between similarities (VoxelMorph: about 1 for LNCC, 0.01
            for MSE), nor between regularised fields.
        regularized: key of the regularised field in `pred`: "svf" (the velocity on its own grid), "ddf", or "posterior"
            (for `GaussianKL`).
        folding_weight: weight of `FoldingPenalty(folding_margin)` on the displacement; 0 leaves it out.
        folding_margin: Jacobian determinants below it are penalised.
        segmentation: labels to overlap (or "all"), None for the unsupervised objective; the batch then needs
            `label_moving` and `label_fixed`, integer maps.
        segmentation_weight: weight of the label term.
        pooled: the Dice of all labels together instead of the mean of theirs, see `LabelDice`.
        segmentation_sigma: a number takes `LabelLikelihood` with this standard deviation for the overlap, not Dice.
        surface: called as `surface(ddf, distance_moving, distance_fixed)` (`SurfaceDistance`); the batch then needs
            these maps, (B, K, *S).
        bidirectional: also compare in moving space; `pred` then needs "inverse_ddf".
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
        folding_margin: float = 0.2,
        segmentation: Sequence[int] | str | None = None,
        segmentation_weight: float = 0.01,
        pooled: bool = False,
        segmentation_sigma: float | None = None,
        surface: nn.Module | None = None,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.similarity, self.regularization = similarity, regularization
        self.weight, self.regularized = weight, regularized
        self.folding, self.folding_weight = FoldingPenalty(folding_margin), folding_weight
        self.overlap: nn.Module | None = None
        if segmentation is not None:
            if segmentation_sigma is None:
                self.overlap = LabelDice(segmentation, pooled=pooled)
            else:
                self.overlap = LabelLikelihood(segmentation, segmentation_sigma)
        self.similarity_weight, self.surface = similarity_weight, surface
        self.segmentation_weight = segmentation_weight
        self.bidirectional = bidirectional

    def forward(self, pred: MutableMapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
        """Total loss, a scalar. The (weighted, detached) terms are left in `pred["terms"]` by name, for the logs.

        Args:
            pred: fields and "warped", as an inferer returns them.
            batch: "moving" and "fixed", (B, C, *S); optionally labels and masks, (B, 1, *S).
        """
        terms = self.terms(pred, batch)
        pred["terms"] = {name: value.detach() for name, value in terms.items()}
        return sum(terms.values())  # type: ignore[return-value]

    def terms(self, pred: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The weighted terms by name: regularization and, as configured, similarity, folding, segmentation, surface."""
        if self.bidirectional and "inverse_ddf" not in pred:
            raise ValueError("a bidirectional loss needs pred['inverse_ddf']: let the inferer make inverse fields")
        terms: dict[str, Tensor] = {}
        if self.similarity is not None:
            similarity = self._similarity(pred["warped"], pred["ddf"], batch, "moving", "fixed")
            if self.bidirectional:
                warped_fixed = warp(batch["fixed"], pred["inverse_ddf"])
                backward = self._similarity(warped_fixed, pred["inverse_ddf"], batch, "fixed", "moving")
                similarity = 0.5 * (similarity + backward)
            terms["similarity"] = self.similarity_weight * similarity
        terms["regularization"] = self.weight * self.regularization(pred[self.regularized])
        if self.folding_weight:
            terms["folding"] = self.folding_weight * self.folding(pred["ddf"])
        for name, term, weight, key in (
            ("segmentation", self.overlap, self.segmentation_weight, "label"),
            ("surface", self.surface, 1.0, "distance"),
        ):
            if term is not None:
                value = _compare(term, pred["ddf"], batch, f"{key}_moving", f"{key}_fixed")
                if self.bidirectional:
                    backward = _compare(term, pred["inverse_ddf"], batch, f"{key}_fixed", f"{key}_moving")
                    value = 0.5 * (value + backward)
                terms[name] = weight * value
        return terms

    def _similarity(self, warped: Tensor, ddf: Tensor, batch: Mapping[str, Any], source: str, target: str) -> Tensor:
        mask = batch.get(f"mask_{target}")
        if f"mask_{source}" in batch:
            warped_mask = warp(batch[f"mask_{source}"].to(ddf.dtype), ddf.detach())
            mask = warped_mask if mask is None else mask * warped_mask
        assert self.similarity is not None
        return self.similarity(warped, batch[target], mask)


def _compare(term: nn.Module, ddf: Tensor, batch: Mapping[str, Any], source: str, target: str) -> Tensor:
    for key in (source, target):
        if key not in batch:
            raise ValueError(f"this term of the loss needs {key!r}, and the batch has {sorted(batch)}")
    return term(ddf, batch[source], batch[target])
