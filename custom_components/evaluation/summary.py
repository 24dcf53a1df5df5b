"""Measures of a whole cohort: their summary and their tables."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

from ..files import write_metrics, write_table
from ..vocabulary import Metrics, Row


def summarize(rows: Sequence[Metrics]) -> dict[str, dict[str, float]]:
    """Mean, sample SD and number of each numeric column over the rows where it is finite.

    Returns:
        Column to `{"mean", "sd", "n"}` in the order of first appearance; the SD of a single number is NaN.
    """
    columns = dict.fromkeys(key for row in rows for key, value in row.items() if is_number(value))
    summary = {}
    for key in columns:
        found = (row.get(key) for row in rows)
        values = [float(value) for value in found if is_number(value) and math.isfinite(value)]
        mean = math.fsum(values) / len(values) if values else math.nan
        variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) if len(values) > 1 else math.nan
        summary[key] = {"mean": mean, "sd": math.sqrt(variance), "n": len(values)}
    return summary


def write_cohort(folder: str | os.PathLike[str], rows: Sequence[Metrics]) -> dict[str, dict[str, float]]:
    """Write the metrics of a cohort: `metrics.csv` (one row a pair) and `metrics.json` (rows, mean, SD, number).

    Args:
        folder: made if needed.
        rows: one mapping for each pair: texts (`id`, ...) and numbers (of a pair); keys may differ.
    Returns:
        The summary, see `summarize`.
    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("expected at least one row of metrics, got none")
    folder = Path(folder)
    write_table(folder / "metrics.csv", rows)
    summary = summarize(rows)
    write_metrics(folder / "metrics.json", {"num_pairs": len(rows), "summary": summary, "pairs": list(rows)})
    return summary


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_runs(places: Sequence[str]) -> dict[str, list[Row]]:
    """The rows of other runs' tables, by the name of their folder, or of their file if it is not metrics.csv.

    Args:
        places: folders that hold metrics.csv, or paths of CSV files.
    Raises:
        FileNotFoundError: if there is no such table.
    """
    found = {}
    for place in map(Path, places):
        path = place / "metrics.csv" if place.is_dir() else place
        if not path.is_file():
            raise FileNotFoundError(f"--compare: there is no table {path}")
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{key: _cell(text) for key, text in row.items() if text} for row in csv.DictReader(file)]
        found[path.absolute().parent.name if path.name == "metrics.csv" else path.stem] = rows
    return found


def _cell(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
