"""The page over a cohort: counts, plots, a summary, and a table of all pairs with views to blink, worst first."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...vocabulary import Metrics, Row
from ..result import MEASURED
from ..summary import is_number, summarize
from .outliers import LIMIT, as_float, find_outliers, worst_first
from .pages import label_text, link, write_page
from .plots import box_plots, dot_plots
from .stages import stage_table

Series = dict[str, list[float]]  # values by label

_MOST_VIEWS = 300  # pairs whose views are in the page, the worst ones

# Columns that are shown at first, as far as they are there.
_MAIN = (
    *("dice_before", "dice_aligned", "dice_after", "hd95_after_mm", "tre_mm_after", "ncc_after", "image_ncc_after"),
    *("folding_percent", "sd_log_jacobian", "displacement_max_mm", "inverse_consistency_mm", "seconds"),
)

_PLOTTED = ("dice_after", "ncc_after", "folding_percent", "sd_log_jacobian", "displacement_max_mm")

_NO_MEASURES = ("id", "picture", "report", "views", "failure", "warnings")


def cohort_page(
    folder: str | os.PathLike[str],
    rows: Sequence[Metrics],
    *,
    title: str = "Registration report",
    path: Path | None = None,
    others: Mapping[str, Sequence[Metrics]] | None = None,
    origin: Mapping[str, str] | None = None,
    nouns: tuple[str, str] = ("pair", "pairs"),
    label_names: Mapping[int, str] | None = None,
) -> None:
    """Write `index.html` over the results of a cohort. The page needs no other file and works from the disk.

    Args:
        folder: of the page.
        rows: one mapping for each pair: `id`, numbers, texts, and as far as there are: `failure`, a sentence;
            `warnings`; paths, absolute or relative to the folder, of `report`, a page of the pair, of `views`, a JSON
            file as `make_views` makes it, and of `picture`, which is shown if there are no views.
        title: heading.
        path: of the page, by default `folder/index.html`; links are relative to the folder all the same.
        others: rows of other runs by their name, to compare with.
        origin: what the results are of, by heading: versions, a command.
        nouns: what a row is, and what several are.
        label_names: names by id.
    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("expected at least one row, got none")
    folder, others = Path(folder), dict(others or {})
    measures = _measures(rows)
    flags = find_outliers(rows, measures)
    order = worst_first(rows, flags)
    rows, flags = [rows[k] for k in order], [flags[k] for k in order]
    write_page(
        path or folder / "index.html",
        "cohort.html",
        title=title,
        pairs=[_pair(k, row, one, folder) for k, (row, one) in enumerate(zip(rows, flags, strict=True))],
        counts=_counts(rows, flags),
        columns=_columns(measures),
        texts=_texts(rows),
        **_summary(rows, measures),
        others={name: _final_means(found) for name, found in others.items()},
        plots=_plots(rows, others, measures, label_names or {}),
        limit=LIMIT,
        origin=dict(origin or {}),
        nouns=nouns,
    )


def _summary(rows: Sequence[Metrics], measures: Sequence[str]) -> dict[str, dict[str, Row]]:
    """Mean, deviation and number of the measures by their stage."""
    found = summarize(rows)
    kinds = {"summary": "mean", "spread": "sd", "numbers": "n"}
    return {key: stage_table({name: found[name][kind] for name in measures}, measures) for key, kind in kinds.items()}


def _final_means(rows: Sequence[Metrics]) -> dict[str, float]:
    """The mean of each measure after registration, by its name without the stage."""
    table = stage_table({name: found["mean"] for name, found in summarize(rows).items()}, _measures(rows))
    return {base: found["after"] for base, found in table.items() if "after" in found}


def _measures(rows: Sequence[Metrics]) -> list[str]:
    """Columns with numbers. Those of single labels are for the CSV file and the plot; here they would hide the rest."""
    names = dict.fromkeys(key for row in rows for key, value in row.items() if is_number(value))
    return [name for name in names if not name.rpartition("_")[2].isdigit()]


def _columns(measures: Sequence[str]) -> list[tuple[str, bool]]:
    """Measures, and whether they are shown at first; those that are come first."""
    main = [name for name in _MAIN if name in measures] or measures
    return [*((name, True) for name in main), *((name, False) for name in measures if name not in main)]


def _texts(rows: Sequence[Metrics]) -> list[str]:
    """Columns with texts."""
    names = dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, str))
    return [name for name in names if name not in _NO_MEASURES]


def _counts(rows: Sequence[Metrics], flags: Sequence[Mapping[str, float]]) -> dict[str, int]:
    failed = sum("failure" in row for row in rows)
    outlying = sum(map(bool, flags))
    warned = sum(bool(row.get("warnings")) for row in rows)
    return {"pairs": len(rows), "failed": failed, "outlying": outlying, "warned": warned}


def _pair(number: int, row: Metrics, flags: Mapping[str, float], folder: Path) -> Row:
    views = row.get("views") if number < _MOST_VIEWS else None
    found: Row = {"anchor": f"pair-{number}", "name": str(row.get("id", number + 1)), "row": row, "flags": flags}
    found["failure"] = row.get("failure")
    found["warnings"] = row.get("warnings") or []
    found["views"] = _read_views(folder.absolute() / str(views)) if views else None
    found["picture"] = link(str(row["picture"]), folder) if row.get("picture") else None
    found["report"] = link(str(row["report"]), folder) if row.get("report") else None
    return found


def _read_views(path: Path) -> Row | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the page does without
        return None


def _plots(
    rows: Sequence[Metrics],
    others: Mapping[str, Sequence[Metrics]],
    measures: Sequence[str],
    label_names: Mapping[int, str],
) -> Row:
    if importlib.util.find_spec("matplotlib") is None:
        return {}
    found: Row = {}
    labels = _label_series(rows, others)
    if labels:
        named = {
            name: {label_text(label, label_names): values for label, values in run.items()}
            for name, run in labels.items()
        }
        found["Dice of each label"] = box_plots(named, "Dice")
    shown = [name for name in _PLOTTED if name in measures] or list(measures)[:5]
    if shown and len(rows) > 1:
        anchors = [f"#pair-{k}" for k in range(len(rows))]
        found["Distributions"] = dot_plots({"this run": rows, **others}, shown, anchors)
    return found


def _label_series(rows: Sequence[Metrics], others: Mapping[str, Sequence[Metrics]]) -> dict[str, Series]:
    """Dice coefficients by label: of this run by stage, of the others after registration."""
    series = {stage: _by_label(rows, stage) for stage in MEASURED}
    if series["aligned"] == series["before"]:  # nothing was aligned
        del series["aligned"]
    if others:
        series["this run"] = series.pop("after")
        series |= {name: _by_label(run, "after") for name, run in others.items()}
    return {name: found for name, found in series.items() if found}


def _by_label(rows: Sequence[Metrics], stage: str) -> Series:
    """The Dice coefficients of each label at a stage, in the order of the labels."""
    start = f"dice_{stage}_"
    labels = sorted({int(key.removeprefix(start)) for row in rows for key in row if re.fullmatch(rf"{start}\d+", key)})
    values = {str(label): [as_float(row.get(f"{start}{label}")) for row in rows] for label in labels}
    return {label: found for label, found in values.items() if any(map(math.isfinite, found))}
