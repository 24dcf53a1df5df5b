"""Measures of a whole cohort: their summary, the tables, and the HTML page."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard
from urllib.parse import quote

from ignite.engine import Engine, Events

from ..files import write_metrics, write_table
from ..results import check_place, publishing, replacing
from ..vocabulary import Metrics, Row
from .result import Failure, Registration

COHORT = "cohort"  # the part of a folder's manifest that has the tables and the page


def summarize(rows: Sequence[Metrics]) -> dict[str, dict[str, float]]:
    """Mean, sample SD and number of each numeric column over the rows where it is finite.

    Returns:
        Column to `{"mean", "sd", "n"}` in the order of first appearance; the SD of a single number is NaN.
    """
    columns = dict.fromkeys(key for row in rows for key, value in row.items() if _is_number(value))
    summary = {}
    for key in columns:
        found = (row.get(key) for row in rows)
        values = [float(value) for value in found if _is_number(value) and math.isfinite(value)]
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


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def cohort_page(
    folder: str | os.PathLike[str],
    rows: Sequence[Metrics],
    *,
    title: str = "Registration report",
    path: Path | None = None,
) -> None:
    """Write `index.html` for a cohort: mean and SD of each measure, one row for each pair, and the pictures.

    The page needs no other file than the pictures and works from the disk.

    Args:
        folder: of the page.
        rows: one mapping for each pair: `id`, numbers (of a pair), and `picture`, the path of a PNG, absolute
            or relative to the folder. Other texts are shown in the table.
        title: heading.
        path: of the page, by default `folder/index.html`; links are relative to the folder all the same.
    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("expected at least one row, got none")
    folder = Path(folder)
    columns = _columns(rows)
    numeric = summarize([{k: row[k] for k in columns if k in row} for row in rows])
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{_number_of_pairs(rows)}. Mean and standard deviation over the pairs.</p>",
        _table(
            ["measure", "mean", "SD", "n"],
            [[k, _number(s["mean"]), _number(s["sd"]), str(s["n"])] for k, s in numeric.items()],
        ),
        "<h2>Pairs</h2>",
        _table(columns, [[_number(row.get(key)) for key in columns] for row in rows]),
        *[_figure(row, str(row.get("id", i)), folder) for i, row in enumerate(rows, 1) if "picture" in row],
    ]
    page = _PAGE.format(title=html.escape(title), body="\n".join(parts))
    with replacing(path or folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def _number_of_pairs(rows: Sequence[Metrics]) -> str:
    failed = sum("failure" in row for row in rows)
    return f"{len(rows)} pair{'s' if len(rows) > 1 else ''}" + (f", of which {failed} failed" if failed else "")


def _columns(rows: Sequence[Metrics]) -> list[str]:
    """The columns of the page. Measures of single labels are for the CSV file; here they would hide the others."""
    columns = dict.fromkeys(key for row in rows for key, value in row.items() if key != "picture" and value != [])
    return [name for name in columns if not name.rpartition("_")[2].isdigit()]


def _figure(row: Metrics, name: str, folder: Path) -> str:
    name = html.escape(name)
    image = f'<img loading="lazy" src="{_link(str(row["picture"]), folder)}" alt="{name}">'
    return f"<figure><figcaption>{name}</figcaption>{image}</figure>"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heading)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "n/a"
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return "; ".join(value)
    return "" if value is None else str(value)


def _link(picture: str | os.PathLike[str], folder: Path) -> str:
    path = Path(picture)
    return quote(Path(os.path.relpath(path, folder) if path.is_absolute() else path).as_posix())


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #1c2126; }}
body {{ margin: 2rem auto; max-width: 1500px; padding: 0 1.2rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.88rem; }}
th, td {{ padding: 0.3rem 0.8rem; border-bottom: 1px solid #dfe3e8; text-align: right; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }} th {{ background: #f3f5f7; }}
figure {{ margin: 1.6rem 0; }} figcaption {{ font-weight: 600; margin-bottom: 0.4rem; }}
img {{ max-width: 100%; border-radius: 4px; }}
</style></head><body>
{body}
</body></html>
"""


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
        return "\n".join([*lines, "", f"results in {self.folder}"])

    @property
    def rows(self) -> list[Row]:
        """The measures of each pair; those that failed come last."""
        return [registration.row for registration in self.registrations] + [failure.row for failure in self.failures]

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean, SD and number of each measure, see `summarize`."""
        return summarize(self.rows)


class CohortReport:
    """Collect an inference run's registrations; at its end write the measures of all as `metrics.csv`, `metrics.json`
    and a page, `index.html`, if there are several.

    Args:
        output_dir: folder of the run.
        earlier: registrations of an earlier run that belong to the same cohort.
    """

    def __init__(self, output_dir: str | os.PathLike[str], earlier: Sequence[Registration] = ()) -> None:
        self.output_dir = Path(output_dir)
        self.registrations = list(earlier)
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
                cohort_page(self.output_dir, rows, path=scratch / "index.html")
