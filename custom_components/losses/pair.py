"""The objective that most bundles share, in training and in refinement."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .overlap import LabelDice
from .registration import RegistrationLoss
from .regularization import GradientPenalty, MeanEnergy
from .similarity import LNCC

# What deformations say of themselves as one number a pair, and which is regularised by its mean.
ENERGIES = ("energy", "bending")


def pair_loss(
    weight: float,
    *,
    regularized: str = "svf",
    similarity: nn.Module | None = None,
    folding_weight: float = 0.0,
    labels: Sequence[int] | str | None = None,
    segmentation_weight: float = 0.01,
) -> RegistrationLoss:
    """1 - LNCC + weight * regularisation + folding_weight * folding + segmentation_weight * (1 - Dice).

    Args:
        weight: of the regularisation.
        regularized: the field that is regularised: "svf" or "ddf" by its squared gradient, "energy" (of a momentum) or
            "bending" (of a B-spline) by its mean.
        similarity: another one than LNCC in windows of 9 voxels.
        folding_weight: of the penalty on Jacobian determinants below 0.2.
        labels: ids of the labels to overlap, or "all"; None leaves this term out.
        segmentation_weight: of the labels' overlap.
    """
    return RegistrationLoss(
        LNCC(9) if similarity is None else similarity,
        MeanEnergy() if regularized in ENERGIES else GradientPenalty(),
        weight,
        regularized=regularized,
        folding_weight=folding_weight,
        overlap=None if labels is None else LabelDice(labels),
        segmentation_weight=segmentation_weight,
    )
