"""The page over a prepared data set: failures first, then what is doubtful, then the others, each with its picture."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from ..vocabulary import Row
from .looks import MASK_COLOUR, TEMPLATE_COLOUR

_MEASURES = {
    "dice_template": ("Dice with the template's brain", "{:.3f}"),
    "ncc_template": ("correlation with the template", "{:.2f}"),
    "brain_ml": ("brain", "{:.0f} ml"),
    "determinant": ("volume relative to the template", "{:.2f}"),
}


def write_page(path: Path, folder: Path, rows: Sequence[Row], steps: Sequence[str]) -> None:
    """Write the page, which needs no other file than the pictures, and no network.

    Args:
        path: of the page.
        folder: to which the pictures' paths are made relative.
        rows: of each session "id", "status" ("failed", "doubtful" or "good"), "reason" or "flags", "measures" and
            "picture".
        steps: what was done, one sentence each.
    """
    groups = [(name, [row for row in rows if row["status"] == name]) for name in ("failed", "doubtful", "good")]
    counts = "".join(f'<a class="count {name}" href="#{name}"><b>{len(found)}</b> {name}</a>' for name, found in groups)
    parts = [f'<h1>Prepared scans</h1><nav>{counts}</nav><p class="legend">{_LEGEND}</p>']
    for name, found in groups:
        if found:
            draw = _failure if name == "failed" else _card
            cards = "\n".join(draw(row, folder) for row in found)
            parts.append(f'<section id="{name}"><h2>{name.capitalize()} ({len(found)})</h2>\n{cards}</section>')
    done = "".join(f"<li>{html.escape(step)}</li>" for step in steps)
    parts.append(f"<details><summary>What was done</summary><ol>{done}</ol></details>")
    path.write_text(_PAGE.replace("BODY", "\n".join(parts)), encoding="utf-8")


def _failure(row: Row, folder: Path) -> str:
    return f'<article class="failed"><h3>{html.escape(row["id"])}</h3><p>{html.escape(row["reason"])}</p></article>'


def _card(row: Row, folder: Path) -> str:
    name = html.escape(row["id"])
    flags = "".join(f"<li>{html.escape(flag)}</li>" for flag in row["flags"])
    figures = [
        f"{label} <b>{text.format(row['measures'][key])}</b>"
        for key, (label, text) in _MEASURES.items()
        if key in row["measures"]
    ]
    picture = quote(Path(os.path.relpath(row["picture"], folder)).as_posix())
    return (
        f'<article class="{row["status"]}"><h3>{name}</h3><p class="figures">{" · ".join(figures)}</p>'
        + (f'<ul class="flags">{flags}</ul>' if flags else "")
        + f'<img src="{picture}" alt="slices of {name}"></article>'
    )


_LEGEND = (
    f'<span style="color:{MASK_COLOUR}">&#9632;</span> brain mask '
    f'<span style="color:{TEMPLATE_COLOUR}">&#9632;</span> template\'s brain. Slices as radiologists see them: the '
    "right side (R) is on the left."
)

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Prepared scans</title><link rel="icon" href="data:,">
<style>
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2126; margin: 1.5rem auto; max-width: 1240px; }
body { padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin: 0 0 .8rem; } h2 { font-size: 1.1rem; margin: 1.6rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0; display: inline-block; }
.count { display: inline-block; margin-right: .6rem; padding: .25rem .8rem; border-radius: 1rem; color: #fff; }
.count { text-decoration: none; } .count.failed { background: #b3261e; } .count.doubtful { background: #9a5b00; }
.count.good { background: #2b6e3f; } .legend { color: #555c63; background: #14181c0d; padding: .4rem .7rem; }
article { border-left: 5px solid #2b6e3f; background: #f6f7f8; padding: .6rem .9rem; margin: .7rem 0; }
article.failed { border-color: #b3261e; } article.doubtful { border-color: #d08300; }
article p { margin: .2rem 0; } .figures { display: inline; margin-left: 1rem; color: #555c63; font-size: .9rem; }
.flags { margin: .3rem 0; padding-left: 1.2rem; color: #8a5000; }
img { display: block; max-width: 100%; height: auto; margin-top: .5rem; background: #101418; }
details { margin-top: 1.6rem; color: #555c63; }
</style></head><body>
BODY
</body></html>
"""
