"""Pairwise optimisation of a deformation's parameters: instance-specific refinement and training-free registration."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..checks import check_number
from ..deformations.base import Deformation
from ..losses.guidance import GUIDES, Guided, LabelGuide, soft_maps
from ..losses.landmarks import LandmarkDistance
from .contrast import LossByContrast
from .descent import Diffused, SmoothDescent, StepRule, force_of_a_voxel, loss_of_a_voxel
from .level import DirectEvaluation, Evaluation, Loss, Steps
from .pyramid import at_level, shrink
from .readings import Readings

logger = logging.getLogger(__name__)


_MOST_SMOOTH = 20  # of "auto" where steps shrink to nothing: with more planned, a level would end at full steps
# By name: what a pair must bring along, and the term.
_TERMS = {"landmarks": ("landmarks_fixed", LandmarkDistance), "labels": ("guide_fixed", LabelGuide)}
_AT_THE_END = 10**9  # iterations after which no schedule changes any more


class ScheduledLoss(ABC):
    """A loss that changes in the course of an optimisation: `PairwiseOptimizer` tells it the iteration."""

    @abstractmethod
    def on_iteration(self, iteration: int) -> bool:
        """Called before each iteration.

        Args:
            iteration: number of iterations before it, over all levels; beyond any schedule where given parameters are
                refined.
        Returns:
            Whether the loss is another one from now on, so that its earlier values tell nothing about it.
        """


class Level(NamedTuple):
    """Of an optimisation.

    Args:
        factor: by which its images are shrunk.
        iterations: how many, at most.
        is_finer: whether its grid is finer than the one on which the start was found.
    """

    factor: int
    iterations: int
    is_finer: bool


class PairwiseOptimizer:
    """Minimise a registration loss over the parameters of a deformation, for one pair (or a batch of pairs).

    Starts from zero, coarse to fine, or from given parameters (a network's output). Each sample of a batch is optimised
    on its own; the batch only shares the loss that a `LossByContrast` chooses, the step size and the stopping rule, and
    with "lbfgs" the curvature. Called as
    `optimizer(moving, fixed, parameters=None)` it returns the optimised parameters, without gradient.

    A level ends when the loss falls by less than `tolerance` of itself over ten iterations; with iterations "auto" also
    when the similarity of the images, averaged over five iterations, falls by less than `worth` of itself from one five
    to the next, or after `most` iterations (20 of a `Diffused` loss), and the parameters of the lowest loss are kept.
    The log then says how many iterations there were. A `Diffused` loss with a number of iterations takes all of them.

    Of a `Diffused` loss a field must gain `least_gain` of what a misalignment by one voxel costs, or
    none is taken, and the log says so: two images of one person then stay where they are. A change of few voxels within
    them stays unseen, too; set `least_gain` to 0 to look for one. Levels finer than the start's take the gradient of a
    small motion before the map (`level.DirectEvaluation`), or with `exact` the parameters' own, in twice the time.

    Args:
        deformation: parameters to fields. Its `to_unknown` says what is searched, its `resize` and `on_grid` take
            parameters and units from level to level.
        loss: called as `loss(pred, batch)`, as in training; a `ScheduledLoss` follows the iterations, and a
            `LossByContrast` is asked for each batch.
        levels: shrink factors of the images, coarse to fine, or one. Where a start was found on a coarser grid, they
            count from there: 0.5 then is a level of twice as many voxels along each axis, and is left out elsewhere.
        iterations: at each level; one number serves all levels. All zero: the start is returned unchanged. "auto": as
            many as are worth it, see above.
        learning_rate: Adam's step, about the voxels of the parameters' grid that a vector moves in an iteration.
        method: "adam", "lbfgs" or steps of its own; a `Diffused` loss is minimised by `SmoothDescent`.
        guidance: what terms that a pair brings along weigh: its "landmarks", a millimetre of their mean distance, and
            its "labels", 1 - the mean Dice of the label maps that guide it. 0 leaves them out.
        progress: show a progress bar.
    Raises:
        ValueError: if there are not as many iterations as levels, or the method or a word for iterations is unknown.
    References: the starting point and the objective are the network's, as in Balakrishnan et al., IEEE TMI 38(8), 2019
        (instance-specific optimisation); the parameters are a velocity, not the displacement.
    """

    tolerance: float = 1e-4
    worth: float = 0.01
    most: int = 100
    least_gain: float = 0.05
    exact: bool = False

    def __init__(
        self,
        deformation: Deformation,
        loss: Loss | LossByContrast,
        *,
        levels: float | Sequence[float] = (4, 2, 1),
        iterations: int | Sequence[int] | str = (30, 30, 20),
        learning_rate: float = 0.2,
        method: str | Steps = "adam",
        guidance: Mapping[str, float] | None = None,
        progress: bool = False,
    ) -> None:
        self.guidance = dict(guidance or {})
        for name, number in self.guidance.items():
            check_number(f"the weight of the {name}", number, least=0)
        if isinstance(iterations, str) and iterations != "auto":
            raise ValueError(f"expected iterations as numbers or 'auto', got {iterations!r}")
        self.auto = isinstance(iterations, str)
        levels = [levels] if isinstance(levels, int | float) else list(levels)
        iterations = self.most if isinstance(iterations, str) else iterations
        iterations = [iterations] * len(levels) if isinstance(iterations, int) else list(iterations)
        if len(iterations) != len(levels):
            raise ValueError(f"expected iterations for {len(levels)} levels, got {len(iterations)}")
        whole = all(level > 0 and max(level, 1 / level).is_integer() for level in map(float, levels))
        if min(iterations, default=0) < 0 or not whole:
            raise ValueError(f"expected iterations of at least 0 and levels as 2, 1 or 0.5, got {iterations}, {levels}")
        if isinstance(method, str) and method not in ("adam", "lbfgs"):
            raise ValueError(f"expected method adam or lbfgs, got {method!r}")
        self.deformation, self.loss = deformation, loss
        self.levels, self.iterations = levels, iterations
        self.learning_rate, self.method, self.progress = learning_rate, method, progress

    @torch.enable_grad()
    def __call__(
        self,
        moving: Tensor,
        fixed: Tensor,
        parameters: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
        constants: Mapping[str, Tensor] | None = None,
        deformation: Deformation | None = None,
        finer: int = 1,
    ) -> Tensor:
        """Optimise.

        Args:
            moving, fixed: shape (B, C, *S), intensities in [0, 1].
            parameters: start, shape (B, P, *S'), any resolution; None for zero. Channels beyond the deformation's own
                (for example a log variance) are passed through unchanged; their grid must be the deformation's.
                Channels that are missing start at zero.
            masks: "mask_moving", "mask_fixed", shape (B, 1, *S), the landmarks of `losses.landmarks`, and the guides of
                `losses.guidance`.
            constants: what else the loss needs of the batch and has no resolution ("hyper").
            deformation: in place of the optimiser's own, for one that depends on the pair.
            finer: the start was found with so many times fewer voxels along each axis; a contrast is judged there.
        Returns:
            Parameters at the deformation's resolution for images of size S.
        Raises:
            RuntimeError: if the loss stops being finite.
            ValueError: if there are further channels on another grid.
        """
        if parameters is not None and not any(self.iterations):
            return parameters
        deformation = self.deformation if deformation is None else deformation
        batch = {"moving": moving.detach(), "fixed": fixed.detach(), **(masks or {})}
        batch = self._prepared(batch, finer)
        start, passed_through = _split(parameters, fixed, deformation)
        objective = self._objective(at_level(batch, finer), start, deformation)
        plan = self._plan(objective, finer)
        if start is not None and isinstance(objective, Diffused):
            start = self._or_none(start, plan[0].factor, deformation, objective, batch, constants or {})
        found = self._descend(plan, start, deformation, objective, batch, constants or {})
        if found is not None and isinstance(objective, Diffused):
            # Where guides count, too: they are no finer than the grid on which the start was found.
            last = max(plan[-1].factor, finer) if GUIDES[0] in batch else plan[-1].factor
            found = self._or_none(found, last, deformation, objective, batch, constants or {})
        return torch.cat([_fitted(found, fixed, deformation), *passed_through], 1)

    def _prepared(self, batch: dict[str, Tensor], finer: int) -> dict[str, Tensor]:
        """The batch as it is compared: guiding label maps as soft maps, no finer than where the start was found."""
        maps = soft_maps(batch, lambda one: shrink(one, finer)) if self.guidance.get("labels") else {}
        return {key: value for key, value in batch.items() if key not in GUIDES} | maps

    @torch.no_grad()
    def _objective(self, batch: dict[str, Tensor], start: Tensor | None, deformation: Deformation) -> Loss:
        """The loss for this pair, chosen where the start has brought the moving image."""
        if not isinstance(self.loss, LossByContrast):
            return self.loss
        ddf = None if start is None else deformation(start, batch["fixed"].shape[2:])["ddf"]
        return self.loss.choose(batch, ddf)

    @torch.no_grad()
    def _or_none(
        self,
        parameters: Tensor,
        factor: int,
        deformation: Deformation,
        objective: Loss,
        batch: dict[str, Tensor],
        constants: Mapping[str, Tensor],
    ) -> Tensor:
        """The parameters, but zero for samples whose images, at a level, are as alike as they are.

        A local correlation of an image with itself falls a little when the image is blurred or contracted; that is no
        reason to move it.
        """
        level = at_level(batch, factor) | dict(constants)
        coarse = deformation.on_grid(batch["fixed"].shape[2:], level["fixed"].shape[2:])
        loss = self._loss(objective, level)
        better = parameters.clone()
        for i in range(len(parameters)):
            one = {key: value[i : i + 1] if len(value) == len(parameters) else value for key, value in level.items()}
            given = _fitted(parameters[i : i + 1], one["fixed"], coarse)
            evaluation = Evaluation(coarse, loss, one, given)
            least = self.least_gain * loss_of_a_voxel(coarse, objective, one)
            if evaluation.value_at_rest() - evaluation.value() < max(least, 0.0):
                logger.info("what was found makes the images hardly more alike: it is left out")
                better[i] = 0
        return better

    def _descend(
        self,
        plan: Sequence[Level],
        start: Tensor | None,
        deformation: Deformation,
        objective: Loss,
        batch: dict[str, Tensor],
        constants: Mapping[str, Tensor],
    ) -> Tensor | None:
        """Level by level; the parameters on the last level's grid."""
        parameters, size = start, batch["fixed"].shape[2:]
        on_iteration = objective.on_iteration if isinstance(objective, ScheduledLoss) else _unchanged
        total, done = sum(level.iterations for level in plan), 0 if start is None else _AT_THE_END
        with tqdm(total=total, desc="optimizing", disable=not self.progress, leave=False) as bar:
            for factor, iterations, is_finer in plan:
                level = at_level(batch, factor) | dict(constants)
                coarse = deformation.on_grid(size, level["fixed"].shape[2:])
                begin = _fitted(parameters, level["fixed"], coarse)
                kind = (
                    DirectEvaluation if is_finer and not self.exact and isinstance(objective, Diffused) else Evaluation
                )
                loss = self._loss(objective, level)
                evaluation = kind(coarse, loss, level, begin, keeps_best=self.auto)
                self._minimize(evaluation, range(done, done + iterations), on_iteration, bar)
                parameters, done = evaluation.found(), done + iterations
                bar.set_postfix_str(f"level 1/{factor} done")
        return parameters

    def _plan(self, objective: Loss, finer: int) -> list[Level]:
        """The levels that the images have, and the iterations of each, at most."""
        most = _MOST_SMOOTH if self.auto and isinstance(objective, Diffused) else math.inf
        levels = [(level * finer, count, level < 1) for level, count in zip(self.levels, self.iterations, strict=True)]
        return [Level(round(factor), int(min(count, most)), below) for factor, count, below in levels if factor >= 1]

    def _loss(self, objective: Loss, batch: Mapping[str, Tensor]) -> Loss:
        """The objective, with the terms that the pair brings along and that weigh something."""
        terms = {name: make() for name, (key, make) in _TERMS.items() if self.guidance.get(name) and key in batch}
        if not terms:
            return objective
        if isinstance(objective, Diffused):
            return Diffused(Guided(objective.loss, terms, self.guidance), objective.variance)
        return Guided(objective, terms, self.guidance)

    def _steps(self, evaluation: Evaluation, iterations: int) -> Callable[[], Tensor]:
        """A function that makes one step and returns the loss before it."""
        if not isinstance(self.method, str):
            return self.method(evaluation, iterations)
        unknown, objective = evaluation.unknown, evaluation.objective
        if isinstance(objective, Diffused):
            rule = StepRule()
            unit = force_of_a_voxel(evaluation.deformation, objective.images_alone, evaluation.batch, rule.smoothing)
            descent = SmoothDescent(evaluation, unit, iterations, objective.variance, rule)
            return lambda: descent.step(evaluation)
        if self.method == "adam":
            adam = torch.optim.Adam([unknown], lr=self.learning_rate, eps=1e-3)
            return lambda: adam.step(evaluation)
        lbfgs = torch.optim.LBFGS([unknown], lr=1.0, max_iter=1, max_eval=5, line_search_fn="strong_wolfe")
        return lambda: lbfgs.step(evaluation.tried)

    def _minimize(
        self, evaluation: Evaluation, iterations: range, on_iteration: Callable[[int], bool], bar: tqdm
    ) -> None:
        step = self._steps(evaluation, len(iterations)) if iterations else None
        readings = Readings(evaluation.voxels)
        for number, iteration in enumerate(iterations, start=1):
            if on_iteration(iteration):
                evaluation.last = evaluation.best = None
                readings.clear()
            assert step is not None
            loss = step()
            bar.update()
            assert evaluation.last is not None
            readings.add(number, loss, evaluation.last.similarity)
            if any(self._is_last(n, readings, evaluation) for n in readings.read(at_last=number == len(iterations))):
                bar.update(len(iterations) - number)
                break
        similarities = readings.similarities
        if self.auto and similarities:
            logger.info("%d iterations, similarity term %.4f to %.4f", number, similarities[0], min(similarities))

    def _is_last(self, number: int, readings: Readings, evaluation: Evaluation) -> bool:
        """Whether the search ends with an iteration whose values have been read."""
        if not math.isfinite(readings.losses[-1]):
            raise RuntimeError(f"the registration loss became {readings.losses[-1]} in iteration {number}")
        similarities = readings.similarities if self.auto else []
        return self._is_done(readings.losses, similarities, isinstance(evaluation.objective, Diffused))

    def _is_done(self, losses: Sequence[float], similarities: Sequence[float], diffuses: bool) -> bool:
        # A field that diffuses may pay for its smoothness with a larger loss.
        if not diffuses and len(losses) > 10 and losses[-11] - losses[-1] < self.tolerance * abs(losses[-11]):
            return True
        before, after = (sum(part) / 5 for part in (similarities[-10:-5], similarities[-5:]))
        return len(similarities) >= 10 and before - after < self.worth * abs(before)


def _unchanged(iteration: int) -> bool:
    """For a loss without a schedule."""
    return False


def _split(parameters: Tensor | None, image: Tensor, deformation: Deformation) -> tuple[Tensor | None, list[Tensor]]:
    """The channels that are the deformation's, and the further ones, if there are any."""
    channels = deformation.parameter_channels(image.ndim - 2)
    if parameters is None or parameters.shape[1] <= channels:
        return parameters, []
    wanted = deformation.parameter_size(image.shape[2:])
    if list(parameters.shape[2:]) != list(wanted):
        raise ValueError(
            f"expected parameters of size {tuple(wanted)} with further channels, got shape {tuple(parameters.shape)}"
        )
    return parameters[:, :channels], [parameters[:, channels:].detach()]


def _fitted(parameters: Tensor | None, image: Tensor, deformation: Deformation) -> Tensor:
    """Parameters on the deformation's grid for an image; what is missing is zero."""
    size, channels = deformation.parameter_size(image.shape[2:]), deformation.parameter_channels(image.ndim - 2)
    if parameters is None:
        return image.new_zeros(image.shape[0], channels, *size, dtype=torch.float32)
    parameters = deformation.resize(parameters.detach(), size)
    missing = channels - parameters.shape[1]
    if missing <= 0:
        return parameters
    return torch.cat([parameters, parameters.new_zeros(len(parameters), missing, *size)], 1)
