"""The refinement that every bundle offers: one objective, for any deformation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from ..deformations.base import Deformation
from ..losses.gradients import NGF
from ..losses.pair import pair_loss
from ..losses.registration import RegistrationLoss
from ..losses.similarity import LNCC, MIND, MutualInformation
from .contrast import LossByContrast
from .refinement import PairwiseOptimizer

# By name: the similarity, and how much smoother its answers must be than those of LNCC (docs/contrasts.md).
SIMILARITIES: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "lncc": (lambda: LNCC(9), 1.0),
    "mind": (MIND, 10.0),
    "mi": (MutualInformation, 40.0),
    "ngf": (NGF, 10.0),
}


def refiner(
    deformation: Deformation,
    weight: float,
    *,
    regularized: str = "svf",
    iterations: int | Sequence[int] | str = (30, 30, 20),
    levels: int | Sequence[int] = (4, 2, 1),
    method: str | None = None,
    similarity: str = "auto",
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
        similarity: "lncc", "mind", "mi" or "ngf"; "auto" takes LNCC for images of the same contrast and normalised
            gradients (NGF) otherwise. All but LNCC come with a larger weight of the regularisation.
        landmark_weight: of the mean distance of the landmarks in mm, if the pair has some.
        progress: show a progress bar.
    Raises:
        ValueError: for another word for the similarity.
    """
    if similarity not in ("auto", *SIMILARITIES):
        raise ValueError(f"expected similarity auto, {', '.join(SIMILARITIES)}, got {similarity!r}")

    def loss(name: str) -> RegistrationLoss:
        make, factor = SIMILARITIES[name]
        return pair_loss(factor * weight, regularized=regularized, similarity=make(), folding_weight=30.0)

    return PairwiseOptimizer(
        deformation,
        LossByContrast(loss("lncc"), loss("ngf")) if similarity == "auto" else loss(similarity),
        levels=levels,
        iterations=iterations,
        method=method or ("lbfgs" if regularized == "energy" else "adam"),
        landmark_weight=landmark_weight,
        progress=progress,
    )
