"""The page over a prepared data set: failures first, then what is doubtful, then the others, each with its picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..evaluation.report.pages import link
from ..evaluation.report.pages import write_page as write
from ..vocabulary import Row
from .looks import MASK_COLOUR, TEMPLATE_COLOUR

_MEASURES = {
    "dice_template": ("Dice with the template's brain", "{:.3f}"),
    "ncc_template": ("correlation with the template", "{:.2f}"),
    "brain_ml": ("brain", "{:.0f} ml"),
    "determinant": ("volume relative to the template", "{:.2f}"),
}

_COLOURS = {"failed": "bad", "doubtful": "doubtful", "good": "good"}


def write_page(path: Path, folder: Path, rows: Sequence[Row], steps: Sequence[str]) -> None:
    """Write the page, which needs no other file than the pictures, and no network.

    Args:
        path: of the page.
        folder: to which the pictures' paths are made relative.
        rows: of each session "id", "status" ("failed", "doubtful" or "good"), "reason" or "flags", "measures" and
            "picture".
        steps: what was done, one sentence each.
    """
    write(
        path,
        Path(__file__).with_name("prepared.html"),
        title="Prepared scans",
        groups={name: [_shown(row, folder) for row in rows if row["status"] == name] for name in _COLOURS},
        colours=_COLOURS,
        mask_colour=MASK_COLOUR,
        template_colour=TEMPLATE_COLOUR,
        steps=steps,
    )


def _shown(row: Row, folder: Path) -> Row:
    """A row with its figures as texts and the address of its picture."""
    known = {key: value for key, value in _MEASURES.items() if key in row["measures"]}
    figures = {label: text.format(row["measures"][key]) for key, (label, text) in known.items()}
    picture = row.get("picture")
    return {**row, "figures": figures, "address": None if picture is None else link(Path(picture).absolute(), folder)}
