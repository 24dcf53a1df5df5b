"""Measuring the contestants of `benchmarks/weights.py` pair by pair: weights, and the training-free optimiser."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.engines import IterationEvents

from benchmarks.experiments import measure_once
from benchmarks.weights_sets import Part
from custom_components.commands.bundles import overlay_path
from custom_components.commands.workflow import build_workflow
from custom_components.vocabulary import Entry

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Contestant:
    """A checkpoint of a bundle, or the optimiser without a network.

    Args:
        name: in the table.
        folder: of its measures; another content of a file is another folder.
        settings: of the bundle's inference.json.
        overlays: config files.
    """

    name: str
    folder: str
    settings: Mapping[str, object] = field(default_factory=dict)
    overlays: Sequence[str] = ()


class CpuClock:
    """CPU seconds of an evaluator's last forward pass, refinement and fields included."""

    def attach(self, engine: Engine) -> CpuClock:
        engine.add_event_handler(Events.ITERATION_STARTED, self._start)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._stop)
        return self

    def _start(self, engine: Engine) -> None:
        self.start = time.process_time()

    def _stop(self, engine: Engine) -> None:
        self.seconds = time.process_time() - self.start


def measure(bundle: str, part: Part, pair: Entry, settings: Mapping[str, object], overlays: Sequence[str]) -> Entry:
    """Register a pair by a bundle; its people and its measures, without those of single labels."""
    with tempfile.TemporaryDirectory() as folder:
        given = {"affine": "none", "refinement#progress": False, **part.settings, **settings, "output_dir": folder}
        workflow = build_workflow(bundle, [pair], [*overlays, overlay_path("evaluate")], given)
        clock = CpuClock().attach(workflow.parser.get_parsed_content("evaluator"))
        workflow.run()
        registration = workflow.parser.get_parsed_content("cohort").cohort[0]
        row = {key: pair[key] for key in ("id", "subject_moving", "subject_fixed")}
        row |= {k: v for k, v in registration.metrics.items() if isinstance(v, float) and not re.search(r"_\d+$", k)}
        if part.judge is not None:
            row |= part.judge(pair, registration.files["warped"])
    return {**row, "cpu_seconds": clock.seconds}


class Measurements:
    """The rows of every part, contestant and number of iterations; a folder keeps each pair.

    Args:
        folder: a file for each pair, part/contestant/iterations/pair.json.
        bundle: its name.
        total: how many pairs there will be, for the time left.
    """

    def __init__(self, folder: Path, bundle: str, total: int) -> None:
        self.folder, self.bundle = folder, bundle
        self.rows: dict[tuple[str, str, str], Rows] = {}
        self._total, self._done, self._times = total, 0, [0.0]

    def add(self, part: Part, contestant: Contestant, label: str, settings: Mapping[str, object]) -> Rows:
        """Measure all pairs of a part, unless it was done."""
        place = self.folder / self.bundle / part.name / contestant.folder / label
        rows = []
        for pair in part.pairs:
            path, start = place / f"{pair['id']}.json", time.monotonic()
            is_new = not path.exists()
            given, overlays = {**contestant.settings, **settings}, contestant.overlays
            rows.append(measure_once(path, lambda: measure(self.bundle, part, pair, given, overlays)))  # noqa: B023
            self._done += 1
            if is_new:
                self._times.append(time.monotonic() - start)
                left = (self._total - self._done) * sum(self._times) / (len(self._times) - 1) / 60
                print(f"{part.name}, {contestant.name}, {label}: {pair['id']}; {left:.1f} min left", flush=True)
        # A number that is not finite became null.
        rows = [{k: np.nan if v is None else v for k, v in row.items()} for row in rows]
        self.rows[part.name, contestant.name, label] = rows
        return rows


def affordable(seconds: float, full_seconds: float, levels: Sequence[int], full: Sequence[int], dims: int) -> list[int]:
    """Iterations of the training-free optimiser that take a given time, coarse levels first.

    Args:
        seconds: the time.
        full_seconds: what `full` iterations at these levels (shrink factors) take: so an iteration at a level takes a
            share by its number of voxels.
    """
    shares = [level**-dims for level in levels]
    unit = full_seconds / sum(n * share for n, share in zip(full, shares, strict=True))
    found = []
    for most, share in zip(full, shares, strict=True):
        found.append(min(most, int(seconds / (unit * share) + 0.5)))
        seconds = max(0.0, seconds - found[-1] * unit * share)
    return found
