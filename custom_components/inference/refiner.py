"""The refinement that every bundle offers: one objective, for any deformation."""

from __future__ import annotations

from collections.abc import Sequence

from ..deformations.base import Deformation
from ..losses.pair import pair_loss
from ..losses.similarity import MIND
from .contrast import LossByContrast
from .refinement import PairwiseOptimizer


def refiner(
    deformation: Deformation,
    weight: float,
    *,
    regularized: str = "svf",
    iterations: int | Sequence[int] | str = (30, 30, 20),
    levels: int | Sequence[int] = (4, 2, 1),
    method: str | None = None,
    across_contrasts: bool = False,
    landmark_weight: float = 0.0,
    progress: bool = False,
) -> PairwiseOptimizer:
    """Refine a deformation for a pair: 1 - LNCC + weight * regularisation + 30 * folding penalty.

    Args:
        deformation: parameters to fields.
        weight: of the regularisation.
        regularized: the field that is regularised: "svf" or "ddf" by its gradient, "energy" (of a momentum) by its
            mean.
        iterations, levels: as for `PairwiseOptimizer`.
        method: "adam" or "lbfgs"; by default L-BFGS for momenta, Adam otherwise.
        across_contrasts: compare images of different contrast by MIND, with twice the weight.
        landmark_weight: of the mean distance of the landmarks in mm, if the pair has some.
        progress: show a progress bar.
    """
    same = pair_loss(weight, regularized=regularized, folding_weight=30.0)
    across = pair_loss(2 * weight, regularized=regularized, similarity=MIND(), folding_weight=30.0)
    return PairwiseOptimizer(
        deformation,
        LossByContrast(same, across) if across_contrasts else same,
        levels=levels,
        iterations=iterations,
        method=method or ("lbfgs" if regularized == "energy" else "adam"),
        landmark_weight=landmark_weight,
        progress=progress,
    )
