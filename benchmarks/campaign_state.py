"""What a campaign leaves in its folder: the state of the jobs, their figures over time, and its lock."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from benchmarks.campaign_jobs import Job
from benchmarks.experiments import markdown
from custom_components.files import write_table

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Record(TypedDict):
    """What is known of a job.

    Attributes:
        state: waiting, running, stopped, failed or done.
        cpu_seconds, seconds: of its training so far.
        minutes, epochs: the budget, and the number of epochs that it pays for; 0 as long as it is not known.
        judged: the CPU seconds at the last judgement of the gate.
        message: why it failed.
    """

    state: str
    cpu_seconds: float
    seconds: float
    minutes: float
    epochs: int
    judged: float
    message: str


EMPTY: Record = {
    "state": "waiting",
    "cpu_seconds": 0.0,
    "seconds": 0.0,
    "minutes": 0.0,
    "epochs": 0,
    "judged": 0.0,
    "message": "",
}


def read_state(folder: Path) -> dict[str, Record]:
    """What is known of the jobs, by name."""
    path = folder / "state.json"
    return json.loads(path.read_text()) if path.exists() else {}


def last_line(path: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table, none if it is not there."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def read_curve(folder: Path) -> list[dict[str, str]]:
    """The rows of a training's curve: of the table besides `figures.csv`."""
    tables = [path for path in sorted(folder.glob("*.csv")) if path.name != "figures.csv"]
    return read_rows(tables[0]) if tables else []


def steps_of(row: Mapping[str, str]) -> int:
    """The training steps up to a row of a curve."""
    return int(float(row.get("iteration") or row.get("steps") or 0))


def scores_of(row: Mapping[str, str]) -> dict[str, float]:
    """The validation's scores in a row of a curve, the one that counts first; none where there was no validation."""
    names = [name for name in row if name == "score" or (name.startswith("dice_") and name != "dice_before")]
    return {name: float(row[name]) for name in names if row[name]}


def log_figures(folder: Path, cpu_seconds: float) -> None:
    """Add the scores that are new in a training's curve to `figures.csv`, at the CPU seconds of this moment."""
    rows = read_rows(folder / "figures.csv")
    known = max((steps_of(row) for row in rows), default=-1)
    curve = [row for row in read_curve(folder) if scores_of(row) and steps_of(row) > known]
    if curve:
        new = [{"cpu_seconds": round(cpu_seconds, 1), "steps": steps_of(row), **scores_of(row)} for row in curve]
        write_table(folder / "figures.csv", [*rows, *new])


def log_gate(folder: Path, cpu_seconds: float, table: Path, weights: Path, beats: bool) -> None:
    """Add what the gate found to `figures.csv`.

    Args:
        folder: of the training.
        cpu_seconds: of the training when its weights were judged.
        table: rows.csv of `benchmarks.weights`.
        weights: the file that was judged.
        beats: whether it beats the shipped one.
    """
    found: dict[str, list[float]] = {}
    for row in read_rows(table):
        if row["weights"] == str(weights):
            score = row.get("dice_after") or row.get("ncc_after") or "nan"
            found.setdefault(f"{row['part']}, {row['iterations']} iterations", []).append(float(score))
    rows, curve = read_rows(folder / "figures.csv"), read_curve(folder)
    figures = {name: round(statistics.mean(values), 5) for name, values in found.items()}
    steps = steps_of(curve[-1]) if curve else 0
    row = {"cpu_seconds": round(cpu_seconds, 1), "steps": steps, **figures, "beats_shipped": int(beats)}
    write_table(folder / "figures.csv", [*rows, row])


def status(folder: Path, jobs: Sequence[Job]) -> str:
    """A table of the jobs: state, CPU minutes, steps, scores, hours until each is done, and why one failed."""
    state, runs, hours = read_state(folder), holder(folder) is not None, 0.0
    rate = _seconds_of_a_cpu_second(state)
    lines = []
    for job in jobs:
        record = state.get(job.name, EMPTY)
        word = "cut" if record["state"] == "running" and not runs else record["state"]
        curve = read_curve(folder / job.name)
        scores = [next(iter(scores_of(row).values())) for row in curve if scores_of(row)]
        used, eta = record["cpu_seconds"] / 60, None
        if word not in ("done", "failed"):
            hours += max(0.0, job.minutes - used) / 60 * rate
            eta = f"{hours:.1f} h"
        cells = [job.name, word, f"{used:.1f} / {job.minutes:g}", steps_of(curve[-1]) if curve else 0]
        lines.append([*cells, *([scores[-1], max(scores)] if scores else [None] * 2), eta, record["message"][:100]])
    return markdown(["name", "state", "CPU min", "steps", "last score", "best score", "ETA", ""], lines)


def _seconds_of_a_cpu_second(state: Mapping[str, Record]) -> float:
    cpu, seconds = (sum(record[key] for record in state.values()) for key in ("cpu_seconds", "seconds"))
    return max(1.0, seconds / cpu) if cpu else 1.0


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, with the number of this process in it.

    Raises:
        ValueError: if another campaign does.
    """
    with open(folder / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{folder}: a campaign runs here already, process {holder(folder)}") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def holder(folder: Path) -> int | None:
    """The number of the process that holds a folder's lock."""
    path = folder / "lock"
    if not path.exists():
        return None
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return int(file.read() or 0)
    return None
