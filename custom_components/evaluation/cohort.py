"""What became of a run over a cohort, and the handler that writes its tables and its page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ignite.engine import Engine, Events

from ..results import check_place, publishing, told
from ..vocabulary import Row
from .report.cohort import cohort_page
from .result import Failure, Registration
from .summary import read_runs, summarize, write_cohort

COHORT = "cohort"  # the part of a folder's manifest that has the tables and the page


@dataclass(frozen=True)
class Cohort:
    """The registrations of a run.

    Args:
        folder: of the run; with more than one pair it holds metrics.csv, metrics.json and index.html.
        registrations: one for each pair.
        failures: the pairs that have none.
    """

    folder: Path
    registrations: tuple[Registration, ...]
    failures: tuple[Failure, ...] = ()

    def __len__(self) -> int:
        return len(self.registrations)

    def __getitem__(self, index: int) -> Registration:
        return self.registrations[index]

    def __str__(self) -> str:
        """Mean and SD of each measure and the warnings of each pair, one a line, and where the files are."""
        lines = [
            f"{name:32s} {column['mean']:10.4f} +- {column['sd']:.4f}  (n = {column['n']})"
            for name, column in self.summary().items()
            if column["n"] > 0
        ]
        lines += [f"warning: {one.id}: {warning}" for one in self.registrations for warning in one.warnings]
        return "\n".join([*lines, "", told(self.folder, "index.html")])

    @property
    def rows(self) -> list[Row]:
        """The measures of each pair; those that failed come last."""
        return [registration.row for registration in self.registrations] + [failure.row for failure in self.failures]

    @property
    def shown(self) -> list[Row]:
        """The rows as the page takes them."""
        return [registration.shown for registration in self.registrations] + [failure.row for failure in self.failures]

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean, SD and number of each measure, see `summarize`."""
        return summarize(self.rows)


class CohortReport:
    """Collect an inference run's registrations; at its end write the measures of all as `metrics.csv`, `metrics.json`
    and a page, `index.html`, if there are several.

    Args:
        output_dir: folder of the run.
        compare: folders of other runs, or tables metrics.csv, whose measures the page shows beside.
        origin: what the results are of, by heading, for the page.
        nouns: what a result is of, and several are, for the page.
        label_names: names of labels by id, for the page.
    Raises:
        FileNotFoundError: if there is no such table.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        *,
        compare: Sequence[str] = (),
        origin: Mapping[str, str] | None = None,
        nouns: tuple[str, str] = ("pair", "pairs"),
        label_names: Mapping[int, str] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.others, self.origin = read_runs([compare] if isinstance(compare, str) else compare), origin
        self.nouns, self.label_names = nouns, label_names
        self.registrations: list[Registration] = []
        self.failures: list[Failure] = []

    @property
    def cohort(self) -> Cohort:
        """What has been registered so far."""
        return Cohort(self.output_dir, tuple(self.registrations), tuple(self.failures))

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.check)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def check(self, engine: Engine | None = None) -> None:
        """Raises FileExistsError: if files of these names are in the folder that no run wrote."""
        check_place(self.output_dir, COHORT, ("index.html", "metrics.csv", "metrics.json"))

    def collect(self, engine: Engine) -> None:
        self.registrations += [item["registration"] for item in engine.state.output if "registration" in item]
        self.failures += [item["failure"] for item in engine.state.output if "failure" in item]

    def write(self, engine: Engine | None = None) -> None:
        rows = self.cohort.rows
        with publishing(self.output_dir, COHORT) as scratch:  # one pair leaves nothing, not even of an earlier run
            if len(rows) > 1:
                write_cohort(scratch, rows)
                cohort_page(
                    self.output_dir,
                    self.cohort.shown,
                    path=scratch / "index.html",
                    others=self.others,
                    origin=self.origin,
                    nouns=self.nouns,
                    label_names=self.label_names,
                )
