"""The refinement that every bundle offers: one objective, for any deformation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from ..checks import check_number
from ..deformations.base import Deformation
from ..deformations.velocity import StationaryVelocity
from ..losses.gradients import NGF
from ..losses.information import NormalizedMutualInformation
from ..losses.pair import ENERGIES, pair_loss
from ..losses.similarity import LNCC, MIND, MutualInformation
from .contrast import LossByContrast
from .descent import Diffused
from .refinement import PairwiseOptimizer
from .relaxation import Relaxation
from .robust import RobustOptimizer, Trust

# By name: the similarity, and how much more the energy weighs than with LNCC (docs/contrasts.md).
SIMILARITIES: dict[str, tuple[Callable[[int], nn.Module], float]] = {
    "lncc": (LNCC, 1.0),
    "mind": (lambda window: MIND(), 10.0),
    "mi": (lambda window: MutualInformation(), 40.0),
    "nmi": (lambda window: NormalizedMutualInformation(), 40.0),
    "ngf": (lambda window: NGF(), 10.0),
}

Similarity = str | nn.Module

_OF_A_MODULE = 10.0  # the same of a similarity that is given as a component

_WEIGHTS = {"energy": 0.003, "bending": 1.0}  # of what is a term of the loss

_ACROSS = 2.0  # times the diffusion with LNCC: for all others, as forces come in units of their own

_STIFF = 8.0  # times the smoothness, of a registration that bends about no lesion


def refiner(
    deformation: Deformation,
    weight: float | None = None,
    *,
    smoothness: float = 1.0,
    regularized: str = "svf",
    iterations: int | Sequence[int] | str = (20, 20, 12),
    levels: int | Sequence[int] = (4, 2, 1),
    finest: int = 0,
    exact: bool = False,
    similarity: Similarity = "auto",
    robust: bool = False,
    landmark_weight: float = 0.0,
    least_gain: float = 0.05,
    guide_weight: float = 1.0,
    relaxation: bool = False,
    progress: bool = False,
) -> PairwiseOptimizer | RobustOptimizer:
    """Refine a deformation for a pair.

    A velocity or a displacement descends from 1 - LNCC in windows of 5 voxels by smooth steps, and diffuses
    (`descent.SmoothDescent`). A momentum or a B-spline minimises 1 - LNCC in windows of 9 voxels + weight * energy
    + 30 * folding penalty by L-BFGS.

    Args:
        deformation: parameters to fields.
        weight: of the regularisation: the variance of a full step's diffusion in squared voxels (default: 1), or the
            factor of the energy (default: 0.003; of a B-spline's bending 1).
        smoothness: factor of the weight; larger values make smoother fields, 0 takes none.
        regularized: what is searched and regularised: "svf", "ddf", "energy", that of a momentum, or "bending", that of
            a B-spline.
        iterations, levels: as for `PairwiseOptimizer`.
        finest: iterations at one more level, of half the spacing of the grid on which the start was found, where the
            images have it; none if there are no others.
        exact: take the velocity's own gradient there, too, see `PairwiseOptimizer.exact`.
        similarity: "lncc", "mind", "mi", "nmi" or "ngf"; "auto" takes LNCC for images of the same contrast and
            normalised gradients (NGF) otherwise; or any module that is called as those. All but LNCC come with a larger
            weight of the regularisation.
        robust: find out first where the images do not show the same, and leave that out (`robust.RobustOptimizer`).
        landmark_weight: of the mean distance of the landmarks in mm, if the pair has some.
        least_gain: what a field must gain to be taken, see `PairwiseOptimizer`.
        guide_weight: of 1 - the mean Dice of the label maps that guide the pair, if it has some.
        relaxation: search the velocities of a `TimeVelocity` by `relaxation.Relaxation`.
        progress: show a progress bar.
    Raises:
        ValueError: for another word for the similarity, or a negative weight or smoothness.
    """
    named_similarity("lncc" if similarity == "auto" else similarity)
    is_term = regularized in ENERGIES
    weight = _WEIGHTS.get(regularized, 1.0) if weight is None else weight
    for key, number in (("weight", weight), ("smoothness", smoothness)):
        check_number(key, number, least=0)
    same, across = (
        _loss(name, weight * smoothness, regularized)
        for name in (("lncc", "ngf") if similarity == "auto" else (similarity,) * 2)
    )
    factors: list[float] = [levels] if isinstance(levels, int) else [*levels]
    counts = iterations if isinstance(iterations, str) else _counts(iterations, len(factors))
    if finest and any(counts):
        factors, counts = [*factors, 0.5], counts if isinstance(counts, str) else [*counts, finest]
    optimizer = PairwiseOptimizer(
        deformation,
        LossByContrast(same, across) if similarity == "auto" else same,
        levels=factors,
        iterations=counts,
        method=Relaxation() if relaxation else "lbfgs" if is_term else "adam",
        guidance={"landmarks": landmark_weight, "labels": guide_weight},
        progress=progress,
    )
    optimizer.exact, optimizer.least_gain = exact, least_gain
    if not robust:
        return optimizer
    return trusting(optimizer, smoothness, similarity, bridged=not is_term)


def trusting(
    optimizer: PairwiseOptimizer, smoothness: float, similarity: Similarity, *, bridged: bool = False
) -> RobustOptimizer:
    """An optimiser that leaves out where two images do not show the same; arguments as for `refiner`."""
    trust = Trust(_coarse(smoothness, similarity), _coarse(_STIFF * smoothness, similarity))
    return RobustOptimizer(optimizer, trust, bridged=bridged)


def named_similarity(similarity: Similarity) -> tuple[Callable[[int], nn.Module], float]:
    """What makes a similarity for a window, and how much more the energy weighs than with LNCC.

    Raises:
        ValueError: for a name that is not in `SIMILARITIES`.
    """
    if isinstance(similarity, nn.Module):
        return lambda window: similarity, _OF_A_MODULE
    if similarity not in SIMILARITIES:
        raise ValueError(f"expected similarity auto, {', '.join(SIMILARITIES)} or a module, got {similarity!r}")
    return SIMILARITIES[similarity]


def _loss(name: Similarity, weight: float, regularized: str) -> nn.Module:
    """The objective with a similarity."""
    make, factor = named_similarity(name)
    if regularized in ENERGIES:
        return pair_loss(weight * factor, regularized=regularized, similarity=make(9), folding_weight=30.0)
    variance = weight * (1.0 if name == "lncc" else _ACROSS)
    return Diffused(pair_loss(0.0, regularized=regularized, similarity=make(5)), variance)


def _coarse(smoothness: float, similarity: Similarity) -> PairwiseOptimizer:
    """A quick registration from zero, whatever the deformation is that will be refined."""
    found = refiner(StationaryVelocity(), smoothness=smoothness, similarity=similarity, levels=(4, 2), iterations=12)
    assert isinstance(found, PairwiseOptimizer)
    return found


def _counts(iterations: int | Sequence[int], levels: int) -> list[int]:
    return [iterations] * levels if isinstance(iterations, int) else list(iterations)
