"""The page of one pair or of two time points: views to blink, on request volumes, measures, files and commands."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...vocabulary import Metrics, Row
from ..result import MEASURED
from ..summary import is_number
from .pages import FOLDER, label_text, link, write_page
from .stages import stage_table
from .views import Views
from .volumes import Volumes, packed_viewer


def pair_page(
    path: str | os.PathLike[str],
    *,
    title: str,
    inputs: Mapping[str, str],
    metrics: Metrics,
    captions: Mapping[str, str],
    files: Mapping[str, str],
    commands: Mapping[str, str],
    origin: Mapping[str, str],
    views: Views | None = None,
    volumes: Volumes | None = None,
    kind: str = "pair",
    tables: Mapping[str, Sequence[Row]] | None = None,
    limit: float | None = None,
    label_names: Mapping[int, str] | None = None,
) -> None:
    """Write the page of two images, one file, which works from the disk.

    Args:
        path: of the page.
        title: heading.
        inputs: paths by role.
        metrics: measures by name, and `warnings`.
        captions: a line of text for measures, by their name without the stage.
        files: names of the other files in the page's folder, by kind.
        commands: what to type, by what it does.
        origin: versions and settings by heading.
        views, volumes: as `make_views` and `make_volumes` make them, or `change_views` and `pack_volumes`.
        kind: "pair", of a moving and a fixed image; or "time", of two time points.
        tables: further tables by heading.
        limit: of the colours of the time points' change, percent.
        label_names: names by id.
    """
    from markupsafe import Markup

    numbers = {key: value for key, value in metrics.items() if is_number(value)}
    warnings = metrics.get("warnings")
    values = {"volumes": volumes, "niivue": "", "viewer": ""}
    if volumes is not None:
        viewer = (FOLDER / "viewer.js").read_text("utf-8")
        values |= {"niivue": packed_viewer(), "viewer": Markup(viewer)}
    write_page(
        path,
        "pair.html",
        title=title,
        inputs=inputs,
        warnings=warnings if isinstance(warnings, list) else [],
        measures=stage_table(numbers, [name for name in numbers if not name.rpartition("_")[2].isdigit()]),
        kind=kind,
        tables={"Dice of each label": _dice(numbers, label_names or {}), **(tables or {})},
        limit=limit,
        captions=captions,
        files={name: link(name, Path(path).parent) for name in files.values()},
        commands=commands,
        origin=origin,
        views=views,
        **values,
    )


def _dice(metrics: Metrics, names: Mapping[int, str]) -> list[Row]:
    """The Dice coefficient of each label, by stage."""
    table: dict[str, Row] = {}
    for name, value in metrics.items():
        found = re.fullmatch(rf"dice_({'|'.join(MEASURED)})_(\d+)", name)
        if found:
            table.setdefault(found[2], {"label": label_text(found[2], names)})[found[1]] = value
    return list(table.values())
