"""The objective of learning a template together with the registrations to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...constants import filled
from ...losses.overlap import label_indicators
from ...losses.regularization import GradientPenalty
from ...vocabulary import Batch, Result


class TemplateLoss(nn.Module):
    """A template like the scans, in the middle of them, with small and smooth displacements, optionally with labels.

    forward_weight * similarity(T o phi, scan) + backward_weight * similarity(scan o phi^-1, T)
    + mean_weight * |mean of u'|^2 + size_weight * |u|^2 + smoothness_weight * |grad u|^2 + label_weight * NLL

    phi = id + u lives on the scan's grid, phi^-1 = id + u' on the template's; the mean of u' is the running mean of
    `MeanStream`. |.|^2 are means over voxels and components, |grad u|^2 as in `GradientPenalty`. NLL is the mean
    negative log likelihood of the scan's labels under the template's label probabilities, warped by phi.
    The gradient of the backward term reaches the template, too: it makes it more like the mean of the warped scans.
    Masks count in the forward term only.

    Args:
        similarity: called as `similarity(a, b, mask)`.
        forward_weight, backward_weight, mean_weight, size_weight, smoothness_weight, label_weight: 0 leaves a term out.
        labels: ids of the template's label map, in its order; None for none.
    References: Dalca et al., NeurIPS 2019.
    """

    def __init__(
        self,
        similarity: nn.Module,
        *,
        forward_weight: float = 1.0,
        backward_weight: float = 0.0,
        mean_weight: float = 1.0,
        size_weight: float = 0.01,
        smoothness_weight: float = 1.0,
        labels: Sequence[int] | None = None,
        label_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.similarity, self.gradient = similarity, GradientPenalty()
        self.forward_weight, self.backward_weight, self.mean_weight = forward_weight, backward_weight, mean_weight
        self.size_weight, self.smoothness_weight = size_weight, smoothness_weight
        self.labels, self.label_weight = list(labels or []), label_weight

    def forward(self, pred: Result, batch: Batch) -> Tensor:
        """Total loss, a scalar. The (weighted, detached) terms are left in `pred["terms"]` by name, for the logs.

        Args:
            pred: as `TemplateInferer` returns it, with "mean_displacement" if that has a weight.
            batch: "moving", the scans (B, C, *S); optionally "mask_moving" and "label_moving" (B, 1, *S).
        Raises:
            ValueError: if labels are wanted and the batch has none, or the mean and the prediction has none.
        """
        scan, mask, u = batch["moving"], batch.get("mask_moving"), pred["inverse_ddf"]
        terms: dict[str, Tensor] = {}
        if self.forward_weight:
            terms["similarity"] = self.forward_weight * self.similarity(pred["warped_template"], scan, mask)
        if self.backward_weight:
            terms["backward"] = self.backward_weight * self.similarity(pred["warped"], pred["template"], None)
        if self.mean_weight:
            if "mean_displacement" not in pred:
                raise ValueError("the mean of the displacements needs an inferer with a mean stream")
            terms["mean"] = self.mean_weight * pred["mean_displacement"].square().mean()
        if self.size_weight:
            terms["size"] = self.size_weight * u.square().mean()
        if self.smoothness_weight:
            terms["smoothness"] = self.smoothness_weight * self.gradient(u)
        if self.labels and self.label_weight:
            if "label_moving" not in batch:
                raise ValueError("a template with labels needs a label map of every scan, and the batch has none")
            shares = pred["warped_template_labels"]
            likelihood = label_indicators(batch["label_moving"], self.labels).to(shares.dtype).mul(shares).sum(1)
            # Voxels of none of the labels add nothing to the mean.
            known = filled(self.labels, likelihood)
            inside = torch.isin(batch["label_moving"][:, 0].to(known), known)
            terms["labels"] = -self.label_weight * (likelihood.clamp(min=1e-4).log() * inside).mean()
        pred["terms"] = {name: value.detach() for name, value in terms.items()}
        return sum(terms.values())  # type: ignore[return-value]
