"""Whether weights beat others: paired intervals and the verdict of `benchmarks/weights.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.weights_measures import Rows
from benchmarks.weights_sets import Part


class Interval(NamedTuple):
    """A mean difference and its interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


def paired_interval(new: Rows, old: Rows, key: str, level: float = 0.95) -> Interval:
    """Mean difference of new from old and its t interval over pairs of people, both directions of a pair averaged."""
    from scipy.stats import t

    pairs: dict[frozenset[str], list[float]] = {}
    for a, b in zip(new, old, strict=True):
        if a["id"] != b["id"]:
            raise ValueError(f"expected the same pairs in the same order, got {a['id']} and {b['id']}")
        pairs.setdefault(frozenset((a["subject_moving"], a["subject_fixed"])), []).append(a[key] - b[key])
    differences = np.array([np.mean(both) for both in pairs.values()])
    mean, count = float(differences.mean()), len(differences)
    if count < 2:
        return Interval(mean, -np.inf, np.inf)
    half = float(t.ppf((1 + level) / 2, count - 1) * differences.std(ddof=1) / count**0.5)
    return Interval(mean, mean - half, mean + half)


class Verdict(NamedTuple):
    """Whether a checkpoint beats another one, and a sentence for each part that says so or speaks against it."""

    beats: bool
    reasons: list[str]


def verdict(
    parts: Sequence[Part],
    new: Mapping[tuple[str, str], Rows],
    old: Mapping[tuple[str, str], Rows],
    *,
    loss: float = 0.002,
    folds: float = 0.01,
) -> Verdict:
    """Compare rows by part and number of iterations, the first of which decides what is better.

    Args:
        parts: that count.
        new, old: rows by name of the part and label of the iterations.
        loss: a mean score that falls by no more is no loss.
        folds: percent of the brain by which folding may grow.
    """
    reasons, better, worse = [], 0, 0
    for part in parts:
        labels = [label for name, label in new if name == part.name]
        for label in labels:
            a, b = new[part.name, label], old[part.name, label]
            interval, where = paired_interval(a, b, part.score), f"{part.name}, {label} iterations"
            strict = paired_interval(a, b, part.score, 1 - 0.05 / len(parts))
            if label == labels[0]:
                better += strict.low > 0
                reasons.append(f"{where}: {'better' if strict.low > 0 else 'no better'} {strict}")
            if interval.high < 0 and interval.mean < -loss:
                worse += 1
                reasons.append(f"{where}: worse {interval}")
            more = paired_interval(a, b, "folding_percent").mean
            if more > folds:
                worse += 1
                reasons.append(f"{where}: {more:.3f} % more folds")
    return Verdict(better > 0 and not worse, reasons)
