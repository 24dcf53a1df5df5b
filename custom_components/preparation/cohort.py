"""Prepare all sessions of a folder: the stages, the group's average and scales, and what is written about all."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from monai.transforms import Compose

from ..results import check_place, publishing, retract, told
from ..tasks import Problem, Workers
from ..vocabulary import Row
from . import intensities
from .average import Target
from .page import write_page
from .sessions import Session
from .stages import NATIVE, STANDARD, Stage, folder_of, read_log
from .tables import ROOT_FILES, Lists, datalist_of, rows_of, write_tables

logger = logging.getLogger(__name__)

COHORT = "prepared"  # the part of the manifest


@dataclass(frozen=True)
class Prepared:
    """What became of the sessions, and where their files are."""

    folder: Path
    rows: Sequence[Row]

    def __str__(self) -> str:
        counts = [(name, sum(row["status"] == name for row in self.rows)) for name in ("good", "doubtful", "failed")]
        lines = [f"{row['id']:24s} {row['status']:9s} {row['note']}" for row in self.rows if row["status"] != "good"]
        lines.append(", ".join(f"{number} {name}" for name, number in counts) + f" of {len(self.rows)} sessions")
        return "\n".join([*lines, told(self.folder, "qc.html")])


@dataclass
class Preparation:
    """Prepare sessions, in several processes if wanted; those that are done and unchanged stay as they are.

    Args:
        sessions: what there is to prepare.
        steps: "native", on the images' own grids, and "standard", to the common grid.
        contrasts: the reference first.
        output_dir: folder of the derivatives.
        target: what scans are aligned with.
        lists: what is written about people.
        workers: do the steps of the sessions.
        again: do all sessions again.
    """

    sessions: Sequence[Session]
    steps: Mapping[str, Compose]
    contrasts: Sequence[str]
    output_dir: str
    target: Target = field(default_factory=Target)
    lists: Lists = field(default_factory=Lists)
    workers: Workers = field(default_factory=Workers)
    again: bool = False

    def __post_init__(self) -> None:
        self.result: Prepared | None = None

    def run(self) -> Prepared:
        """Raises RuntimeError: at the end, if sessions failed; the others are done."""
        output = Path(self.output_dir)
        check_place(output, COHORT, ROOT_FILES)
        template = self.target.known()
        failures = {one.id: one.problem for one in self.sessions if one.problem}
        with self.workers:
            left = self._stage(Stage(NATIVE, self.steps[NATIVE], self.contrasts, str(output)), self.sessions, failures)
            if self.target.is_group:
                template = self.target.average(
                    str(output), self.contrasts, left, workers=self.workers, again=self.again
                )
            given: dict[Hashable, object] = {"template": template, "scales": self._scales(left)}
            self._stage(Stage(STANDARD, self.steps[STANDARD], self.contrasts, str(output), given), left, failures)
        self.result = self._write(output, failures)
        if failures:
            print(self.result, flush=True)
            first = next(iter(failures))
            raise RuntimeError(
                f"{len(failures)} of {len(self.sessions)} sessions failed, the others are done; "
                f"{first}: {failures[first]}"
            )
        return self.result

    def _stage(self, stage: Stage, sessions: Sequence[Session], failures: dict[str, str]) -> list[Session]:
        """Do what is not done yet; the sessions that did not fail, and the others' reasons in `failures`."""
        wanted = [one for one in sessions if one.id not in failures]
        missing = [one for one in wanted if self.again or not stage.is_done(one)]
        if len(missing) < len(wanted):
            logger.info("%s: %d of %d sessions are done already", stage.part, len(wanted) - len(missing), len(wanted))
        for found in self.workers.each(stage, missing, stage.part):
            if isinstance(found, Problem):
                failures[found.item.id] = found.reason
        for one in self.sessions:
            if one.id in failures:  # what an earlier run made is no answer any more
                for part in (NATIVE, STANDARD)[stage.part == STANDARD :]:
                    retract(folder_of(stage.output, one), part)
        return [one for one in wanted if one.id not in failures]

    def _scales(self, sessions: Sequence[Session]) -> dict[str, list[float]]:
        """The standard scale of each contrast, if a step wants it."""
        if not any(getattr(step, "scheme", "") == "nyul" for step in self.steps[STANDARD].transforms):
            return {}
        logs = [read_log(folder_of(self.output_dir, one), NATIVE)["steps"] for one in sessions]
        marks = [step["landmarks"] for steps in logs for step in steps if "landmarks" in step]
        known = {name: [one[name] for one in marks if name in one] for name in self.contrasts}
        return {name: intensities.standard_scale(ones) for name, ones in known.items() if ones}

    def _write(self, output: Path, failures: dict[str, str]) -> Prepared:
        rows = rows_of(output, self.sessions, failures)
        scans = datalist_of(
            output, [one for one in self.sessions if one.id not in failures], self.contrasts, self.lists
        )
        steps = [
            f"{type(s).__name__}: {vars(s)}" for s in (*self.steps[NATIVE].transforms, *self.steps[STANDARD].transforms)
        ]
        with publishing(output, COHORT) as scratch:
            write_tables(scratch, rows, scans, self.lists)
            write_page(scratch / "qc.html", output, rows, steps)
        return Prepared(output, rows)
