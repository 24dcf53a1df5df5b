"""Objectives whose weights are inputs (HyperMorph), and criteria by which to choose these weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ...evaluation.metrics import foreground_mask
from ...fields import jacobian_determinant
from ...losses.overlap import LabelDice
from ...losses.registration import RegistrationLoss
from ...losses.similarity import LNCC, MutualInformation
from ...vocabulary import Batch, Pred, Result


class HyperLoss(nn.Module):
    """Mean over the samples of each one's objective, weighted by its hyper-parameters.

    With one hyper-parameter, lambda:  (1 - lambda) (similarity + segmentation) + lambda regularization
    with two, lambda and gamma:        (1 - lambda) ((1 - gamma) similarity + gamma segmentation)
                                       + lambda regularization

    Each term comes with the constant weight that `loss` gives it: these set where in [0, 1] the useful values lie.
    Where `loss` has no labels (the refinement of a network trained with them), gamma has nothing to weigh and leaves
    the images' term whole. A folding term, if `loss` has one, keeps its weight whatever lambda.

    Args:
        loss: the terms.
        names: of the hyper-parameters, in the order of `batch["hyper"]`. "lambda" and "gamma" weigh the terms, "window"
            makes the similarity LNCC and sets its window (`lncc_window`), "bins" makes it mutual information and sets
            its bins (`mi_bins`); any other needs an entry in `settings`.
        settings: by name, a function of the loss and the value in [0, 1] that changes the loss before a sample's terms
            are computed.
    Raises:
        ValueError: if a name is unknown; on a call, if `batch["hyper"]` does not fit.
    References: Hoopes et al., IPMI 2021; MELBA 2022.
    """

    def __init__(
        self,
        loss: RegistrationLoss,
        names: Sequence[str] = ("lambda",),
        settings: Mapping[str, Callable[[RegistrationLoss, float], None]] | None = None,
    ) -> None:
        super().__init__()
        self.loss, self.names = loss, tuple(names)
        known = {"window": lncc_window, "bins": mi_bins, **(settings or {})}
        self.settings = {name: known[name] for name in self.names if name in known}
        for name in self.names:
            if name not in (*self.settings, "lambda", "gamma"):
                raise ValueError(f"hyper-parameter {name!r} is neither lambda nor gamma and has no setting")

    def forward(self, pred: Result, batch: Batch) -> Tensor:
        """As `RegistrationLoss`; the batch also has "hyper", (B, H) or (1, H) for all, in [0, 1].

        Raises:
            ValueError: for hyper-parameters of another shape.
        """
        hyper, num = batch["hyper"], len(pred["ddf"])
        if hyper.ndim == 2 and len(hyper) == 1:
            hyper = hyper.expand(num, -1)
        if hyper.shape != (num, len(self.names)):
            raise ValueError(f"expected hyper-parameters ({num}, {len(self.names)}), got shape {tuple(hyper.shape)}")
        totals: dict[str, Tensor] = {}
        for i in range(num):
            values = dict(zip(self.names, hyper[i], strict=True))
            if self.loss.overlap is None:
                values.pop("gamma", None)
            for name, apply in self.settings.items():
                apply(self.loss, float(values[name]))
            terms = self.loss.terms(_one(pred, i, num), _one(batch, i, num))
            for name, factor in term_weights(values).items():
                if name in terms:
                    terms[name] = factor * terms[name]
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + value / num
        pred["terms"] = {name: value.detach() for name, value in totals.items()}
        return torch.stack(list(totals.values())).sum()


class LabelCriterion(nn.Module):
    """1 - mean Dice of the warped labels: chooses hyper-parameters where there are labels.

    Args:
        labels: ids that count, or "all" for every id, 0 included.
    """

    def __init__(self, labels: Sequence[int] | str) -> None:
        super().__init__()
        self.dice = LabelDice(labels)

    def forward(self, pred: Pred, batch: Batch) -> Tensor:
        return self.dice(pred["ddf"], batch["label_moving"], batch["label_fixed"])


class RegularityCriterion(nn.Module):
    """The best match at a tolerable irregularity: chooses hyper-parameters without labels.

    similarity(warped, fixed) + weight * max(0, SD of log det J - limit), SD within the foreground (`foreground_mask`).
    Determinants below 0.01, folds among them, count as 0.01 (`metrics.sd_log_jacobian` leaves folds out instead).

    Args:
        similarity: called as `similarity(warped, fixed, mask)`.
        limit: of the standard deviation of log det J.
        weight: large against what the similarity gains by exceeding the limit.
    """

    def __init__(self, similarity: nn.Module, limit: float = 0.5, weight: float = 10.0) -> None:
        super().__init__()
        self.similarity, self.limit, self.weight = similarity, limit, weight

    def forward(self, pred: Pred, batch: Batch) -> Tensor:
        inside = foreground_mask(batch).to(pred["ddf"].dtype)
        logarithm = jacobian_determinant(pred["ddf"]).clamp(min=0.01).log()
        axes = tuple(range(1, inside.ndim))
        count = inside.sum(axes, keepdim=True).clamp(min=1)
        centred = (logarithm - (logarithm * inside).sum(axes, keepdim=True) / count) * inside
        # The floor keeps the gradient finite where the determinant is the same everywhere.
        spread = (centred.square().sum(axes) / count.flatten()).clamp(min=1e-12).sqrt().mean()
        similarity = self.similarity(pred["warped"], batch["fixed"], batch.get("mask_fixed"))
        return similarity + self.weight * (spread.to(similarity.dtype) - self.limit).clamp(min=0)


Number = float | Tensor


def term_weights(hyper: Mapping[str, Number]) -> dict[str, Number]:
    """Factor of each term of the objective for the hyper-parameters "lambda" and "gamma", as far as they are given."""
    images: Number = 1.0
    labels: Number = 1.0
    if "gamma" in hyper:
        images, labels = 1 - hyper["gamma"], hyper["gamma"]
    factors: dict[str, Number] = {"similarity": images, "segmentation": labels, "regularization": 1.0}
    if "lambda" in hyper:
        factors = {name: factor * (1 - hyper["lambda"]) for name, factor in factors.items()}
        factors["regularization"] = hyper["lambda"]
    return factors


def lncc_window(loss: RegistrationLoss, value: float) -> None:
    """Window of the local correlation: odd, from 3 (value 0) to 15 voxels (value 1)."""
    loss.similarity = LNCC(3 + 2 * round(6 * value))


def mi_bins(loss: RegistrationLoss, value: float) -> None:
    """Bins of the mutual information, from 8 (value 0) to 64 (value 1)."""
    loss.similarity = MutualInformation(round(8 * 8**value))


def _one(things: Pred, i: int, num: int) -> dict[str, Tensor]:
    """Sample i of all tensors; those of one sample serve all."""
    sizes = {k: len(v) for k, v in things.items() if isinstance(v, Tensor) and v.ndim}
    return {k: things[k][i : i + 1] if size == num else things[k] for k, size in sizes.items() if size in (1, num)}
