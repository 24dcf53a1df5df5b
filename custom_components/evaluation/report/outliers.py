"""Which results of a cohort stand out: robust scores of measures, and an order with the worst ones first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ...vocabulary import Metrics

LIMIT = 3.5  # robust standard deviations, as Iglewicz and Hoaglin (1993) advise

_FEWEST = 10  # results that have outliers

_MORE_IS_BETTER = ("dice", "ncc", "nmi", "image_ncc", "image_nmi")
_LESS_IS_BETTER = (
    "hd95",
    "tre",
    "landmark_error",
    "estimated_error",
    "folding",
    "sd_log_jacobian",
    "displacement",
    "inverse_consistency",
)


def as_float(value: object) -> float:
    """A number as it is, and NaN for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def robust_scores(values: Sequence[float]) -> list[float]:
    """How many robust standard deviations values lie above their median; NaN for those that are not finite.

    The deviation is 1.4826 times the median absolute deviation or, where that is 0, 1.2533 times the mean one. All are
    0 if the values are equal, or fewer than ten.
    """
    found = np.asarray(values, dtype=float)
    finite = found[np.isfinite(found)]
    if len(finite) < _FEWEST:
        return [0.0 if math.isfinite(value) else math.nan for value in found]
    centre = np.median(finite)
    apart = np.abs(finite - centre)
    scale = 1.4826 * np.median(apart) or 1.2533 * np.mean(apart)
    # Differences that only rounding makes are none.
    return [float(one) for one in (found - centre) / max(scale, 1e-6 * max(1.0, abs(centre)))]


def find_outliers(rows: Sequence[Metrics], measures: Sequence[str]) -> list[dict[str, float]]:
    """For each row the measures by which it is worse than the others, with their scores.

    Args:
        rows: numbers by measure; keys may differ.
        measures: which count. Of those whose better side is known only the worse side does; "before" says nothing about
            a registration.
    """
    found: list[dict[str, float]] = [{} for _ in rows]
    for measure in measures:
        if measure in ("id", "seconds") or "before" in measure.split("_"):
            continue
        scores = robust_scores([as_float(row.get(measure)) for row in rows])
        for flags, score in zip(found, scores, strict=True):
            bad = -score if measure.startswith(_MORE_IS_BETTER) else score
            bad = bad if measure.startswith((*_MORE_IS_BETTER, *_LESS_IS_BETTER)) else abs(bad)
            if bad > LIMIT:
                flags[measure] = score
    return found


def worst_first(rows: Sequence[Metrics], flags: Sequence[Mapping[str, float]]) -> list[int]:
    """Positions of rows: those that failed, then those with outliers by their largest, then those with warnings."""

    def concern(k: int) -> tuple[bool, float, bool]:
        return "failure" in rows[k], max(map(abs, flags[k].values()), default=0.0), bool(rows[k].get("warnings"))

    return sorted(range(len(rows)), key=concern, reverse=True)
