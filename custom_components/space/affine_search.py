"""Affine alignment by many starts at once, climbing the mutual information of sampled points.

Convention: as in `information`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .affine_judge import belief, distances
from .affine_levels import Level, spread_of
from .information import Maps, SampledInformation, Slopes

STAGES = ("translation", "rigid", "similarity", "affine")

SURROUND = 0.4  # share of samples that may lie anywhere: outlines guide, and tell a head from one in a wrong pose

# Of the refinement: level, samples, bins, and share of samples that may lie anywhere; less at last, for scalps differ.
_FINER = ((1, 2**14, 12, SURROUND), (2, 2**15, 32, 0.15))

_APART = 0.3  # distance of two maps that are not the same candidate, in radii of the object

_KEPT = 4  # candidates that the search hands on

_TURN_DEGREES, _TURN_FINER_DEGREES = 25.0, 8.0  # of the second round of starts, and of the third, on a finer grid


def generators_of(stage: str, radius_mm: float, d: int) -> Tensor:
    """The linear changes (K, D, D) that a stage may make; each moves a point at the radius by about 1 mm."""
    turns = []
    for i, j in itertools.combinations(range(d), 2):
        turn = torch.zeros(d, d, dtype=torch.float64)
        turn[i, j], turn[j, i] = 1, -1
        turns.append(turn)
    if stage == "affine":
        found = list(torch.eye(d * d, dtype=torch.float64).view(-1, d, d))
    else:
        found = {"translation": [], "rigid": turns, "similarity": [*turns, torch.eye(d, dtype=torch.float64)]}[stage]
    return torch.stack(found) / radius_mm if found else torch.zeros(0, d, d, dtype=torch.float64)


def climb(
    measure: SampledInformation,
    maps: Maps,
    generators: Tensor,
    *,
    iterations: int,
    longest_mm: float,
    shortest_mm: float,
) -> tuple[Maps, Tensor]:
    """Levenberg-Marquardt steps of all maps at once, each accepted if its information rises.

    Returns:
        The maps and the information of each, shape (B,).
    """
    state = measure.slopes(maps, generators)
    damping = torch.full((len(maps),), 0.01, dtype=torch.float64)
    for _ in range(iterations):
        step = _step(state, damping, longest_mm)
        trial = maps.moved(generators, step)
        found = measure.slopes(trial, generators)
        better = found.information > state.information
        damping = torch.where(better, damping / 4, damping * 8).clamp(1e-4, 1e6)
        maps = Maps(_where(better, trial.linear, maps.linear), _where(better, trial.target, maps.target))
        state = Slopes(
            _where(better, found.information, state.information),
            _where(better, found.gradient, state.gradient),
            _where(better, found.curvature, state.curvature),
        )
        if bool((step.norm(dim=1) < shortest_mm).all()):
            break
    return maps, state.information


def _step(state: Slopes, damping: Tensor, longest_mm: float) -> Tensor:
    diagonal = state.curvature.diagonal(dim1=1, dim2=2)
    floor = 1e-6 * diagonal.mean(1, keepdim=True) + 1e-12
    damped = state.curvature + torch.diag_embed(damping[:, None] * diagonal + floor)
    step = torch.linalg.solve(damped, state.gradient)
    return step * (longest_mm / step.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp(max=1)


def _where(which: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(which.view(-1, *[1] * (new.ndim - 1)), new, old)


def search(level: Level, stage: str, seed: int) -> Maps:
    """Climb from many starts on a coarse level, by a rigid map at most; the best few that differ, the best first.

    Starts are the headers as they are, the centres of the grids and the centres of mass laid on one another, each with
    all rotations by multiples of 90 degrees, for headers may be wrong, and the principal axes laid on one another. Such
    a rotation must be clearly better than what the headers say. Where the headers lead to is among the results: of a
    slab, the information alone does not say where it was cut from.
    """
    center, radius = level.center_and_radius
    rough, exact = (
        level.information(center, samples=n, num_bins=10, seed=seed, surround=SURROUND) for n in (2**10, 2**12)
    )
    rigid = generators_of(_at_most(stage, "rigid"), radius, len(center))
    maps = starts(level, stage)
    header, _ = climb(exact, maps[:1], rigid, iterations=20, **level.steps)
    maps, values = climb(rough, maps, rigid, iterations=8, **level.steps)
    maps, values = climb(exact, maps[values.argsort(descending=True)[:24]], rigid, iterations=12, **level.steps)
    if stage != "translation":
        best = distinct(maps, values * belief(maps), radius_mm=radius, count=3).and_turned(_TURN_DEGREES)
        better, higher = climb(exact, best, rigid, iterations=12, **level.steps)
        maps, values = Maps.joined([better, maps]), torch.cat([higher, values])
    return Maps.joined([distinct(maps, values * belief(maps), radius_mm=radius, count=_KEPT), header])


def distinct(maps: Maps, values: Tensor, *, radius_mm: float, count: int) -> Maps:
    """The best few maps that lead to different places, the best first."""
    kept: list[int] = []
    for k in values.argsort(descending=True).tolist():
        if len(kept) == count:
            break
        if all(distances(maps[k : k + 1], maps[j : j + 1], radius_mm)[0] > _APART * radius_mm for j in kept):
            kept.append(k)
    return maps[torch.tensor(kept)]


def _at_most(stage: str, limit: str) -> str:
    return STAGES[min(STAGES.index(stage), STAGES.index(limit))]


def shifts(level: Level) -> list[Maps]:
    """Starts that turn nothing: the headers as they are, centre of the grid on centre, centre of mass on centre."""
    d = len(level.fixed.grid.size)
    fixed, moving = (spread_of(scan.foreground(), scan.grid.affine)[0] for scan in (level.fixed, level.moving))
    offsets = [np.zeros(d), level.moving.grid.center - level.fixed.grid.center, moving - fixed]
    linear = torch.eye(d, dtype=torch.float64)[None]
    return [Maps(linear, torch.from_numpy(fixed + offset)[None]) for offset in offsets]


def starts(level: Level, stage: str) -> Maps:
    """Maps (B,) to start from, see `search`; the headers as they are come first."""
    plain = Maps.joined(shifts(level))
    if stage == "translation":
        return plain
    (_, spread), (moving, other) = (spread_of(s.foreground(), s.grid.affine) for s in (level.fixed, level.moving))
    turns = torch.from_numpy(quarter_turns(len(spread)))
    axes, other_axes = (torch.from_numpy(_principal_axes(covariance)) for covariance in (spread, other))
    turned = [Maps(turn.expand_as(plain.linear), plain.target) for turn in turns]
    along = Maps(other_axes @ turns @ axes.T, torch.from_numpy(moving).expand(len(turns), -1))
    return Maps.joined([*turned, along])


def _principal_axes(covariance: np.ndarray) -> np.ndarray:
    """Of a covariance (D, D), as the columns of a rotation."""
    axes: np.ndarray = np.linalg.eigh(covariance)[1]
    axes[:, 0] *= np.linalg.det(axes)
    return axes


def refine(levels: Sequence[Level], maps: Maps, stage: str, seed: int, *, samples: int = 2**13) -> tuple[Maps, Tensor]:
    """Climb on from several maps by rigid steps at most; the maps and the information of each, (B,)."""
    center, radius = levels[0].center_and_radius
    measure = levels[1].information(center, samples=samples, num_bins=12, seed=seed, surround=SURROUND)
    generators = generators_of(_at_most(stage, "rigid"), radius, len(center))
    return climb(measure, maps, generators, iterations=12, **levels[1].steps)


def turned_a_little(levels: Sequence[Level], maps: Maps, stage: str, seed: int) -> Maps:
    """The best of what turns of one map lead to, for a pose that is a little wrong is a trap."""
    if stage != "translation":
        maps = maps.and_turned(_TURN_FINER_DEGREES)
    found, values = refine(levels, maps, stage, seed, samples=2**14)
    return found[values.argmax()[None]]


def finish(levels: Sequence[Level], maps: Maps, stage: str, seed: int) -> Maps:
    """Climb on to the end of a stage."""
    center, radius = levels[0].center_and_radius
    middle, finest = (
        levels[k].information(center, samples=samples, num_bins=bins, seed=seed, surround=surround)
        for k, samples, bins, surround in _FINER
    )
    rigid, last = (generators_of(kind, radius, len(center)) for kind in (_at_most(stage, "rigid"), stage))
    maps, _ = climb(finest, maps, rigid, iterations=10, **levels[2].steps)
    if stage in ("similarity", "affine"):
        maps, _ = climb(middle, maps, last, iterations=20, **levels[1].steps)
        maps, _ = climb(finest, maps, last, iterations=15, **levels[2].steps)
    return maps


def quarter_turns(d: int) -> np.ndarray:
    """The rotations by multiples of 90 degrees, shape (24, 3, 3) or (4, 2, 2), the identity first."""
    turns = []
    for order, signs in itertools.product(itertools.permutations(range(d)), itertools.product((1, -1), repeat=d)):
        turn = np.zeros((d, d))
        turn[range(d), order] = signs
        if np.linalg.det(turn) > 0:
            turns.append(turn)
    return np.stack(turns)
