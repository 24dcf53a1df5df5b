"""The objective of registration in several steps, both ways."""

from __future__ import annotations

from torch import Tensor, nn

from ..fields import compose, per_channel
from ..vocabulary import Batch, Result
from .registration import NamedTerms


class MultiStepLoss(nn.Module):
    """Sum of a registration loss over the steps of `MultiStepInferer`, and the symmetry of `BothWaysInferer`.

    loss(phi_1) + ... + loss(phi_T) + symmetry * mean |phi_st o phi_ts - id|^2, in coordinates from 0 to 1 along each
    axis. Where both ways are there ("back"), the first part is the mean of both. The loss of the affine map that came
    first is added, if there is one.

    Args:
        loss: called as `loss(step, batch)`, a module with `terms` (`RegistrationLoss`).
        symmetry: weight; needs `pred["back"]`.
        affine: of the affine map (AVSM); needs `pred["affine"]`.
    References: Shen et al., Networks for joint affine and non-parametric image registration, CVPR 2019 (the sum of
        both ways, not the mean).
    """

    def __init__(self, loss: NamedTerms, symmetry: float = 0.0, affine: nn.Module | None = None) -> None:
        super().__init__()
        self.loss, self.symmetry, self.affine = loss, symmetry, affine

    def forward(self, pred: Result, batch: Batch) -> Tensor:
        """Total loss, a scalar; the weighted, detached terms, summed over the steps, are left in `pred["terms"]`.

        Raises:
            ValueError: if the symmetry is asked for and the inferer registered one way only.
        """
        back = pred.get("back")
        if self.symmetry and back is None:
            raise ValueError("the symmetry needs pred['back']: let the inferer register both ways (BothWaysInferer)")
        ways = [(pred, batch)] if back is None else [(pred, batch), (back, swapped(batch))]
        terms: dict[str, Tensor] = {}
        for way, targets in ways:
            for step in way["steps"]:
                for name, value in self.loss.terms(step, targets).items():
                    terms[name] = terms.get(name, 0.0) + value / len(ways)
        if self.symmetry and back is not None:
            terms["symmetry"] = self.symmetry * inconsistency(pred["ddf"], back["ddf"])
        if self.affine is not None:
            found = dict(pred["affine"])
            if back is not None:
                found["back"] = back["affine"]
            terms["affine"] = self.affine(found, batch)
        pred["terms"] = {name: value.detach() for name, value in terms.items()}
        return sum(terms.values())  # type: ignore[return-value]


def inconsistency(one: Tensor, two: Tensor) -> Tensor:
    """Mean |one o two - id|^2 of two displacement fields (B, D, *S), coordinates from 0 to 1 along each axis."""
    difference = compose(one, two)
    scale = per_channel([max(n - 1, 1) for n in one.shape[2:]], difference)
    return (difference / scale).square().sum(1).mean()


def swapped(batch: Batch) -> dict[str, Tensor]:
    """The batch of the other way round: moving is fixed, fixed is moving."""
    other = {"moving": "fixed", "fixed": "moving"}
    swapped = {}
    for key, value in batch.items():
        stem, _, role = key.rpartition("_")
        swapped["_".join([stem, other[role]] if stem else [other[role]]) if role in other else key] = value
    return swapped
