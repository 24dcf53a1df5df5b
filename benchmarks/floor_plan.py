"""The floor plan as a picture, from the layers that import-linter checks and the table in CONTRIBUTING.md.

python -m benchmarks.floor_plan docs/floor_plan.svg
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import tomllib

REPOSITORY = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT, GAP, MARGIN = 960, 54, 26, 20
SHADES = ("#004d40", "#00695c", "#00796b", "#00897b")
STYLE = (
    "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;text-anchor:middle}"
    ".name{font-size:16px;font-weight:600;fill:#fff}.does{font-size:12px;fill:#e0f2f1}.rule{font-size:13px;fill:#37474f}"
)


def layers(pyproject: Path = REPOSITORY / "pyproject.toml") -> list[list[str]]:
    """The rooms of each floor, from the top: a room imports from floors below it alone."""
    contracts = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (found,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[room.strip() for room in floor.split(":")] for floor in found]


def uses(page: Path = REPOSITORY / "CONTRIBUTING.md") -> dict[str, str]:
    """What lives in a room, in a few words."""
    rows = re.findall(
        r"^\| `(\w+)(?:/|/<bundle>/|\.py)` \| ([^|]+) \|$", page.read_text(encoding="utf-8"), re.MULTILINE
    )
    return {name: re.split(r"[;:,] ", text.replace("`", ""))[0] for name, text in rows}


def drawn(floors: Sequence[Sequence[str]], does: dict[str, str]) -> str:
    """The SVG."""
    height = 2 * MARGIN + len(floors) * HEIGHT + (len(floors) - 1) * GAP + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title">',
        '<title id="title">The floor plan: a room imports only from rooms on floors below it</title>',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#fafafa"/>',
    ]
    top = MARGIN
    for number, rooms in enumerate(floors):
        width = (WIDTH - 2 * MARGIN - 10 * (len(rooms) - 1)) / len(rooms)
        shade = SHADES[min(number * len(SHADES) // len(floors), len(SHADES) - 1)]
        for place, room in enumerate(rooms):
            left = MARGIN + place * (width + 10)
            middle = left + width / 2
            parts.append(
                f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{HEIGHT}" rx="8" fill="{shade}"/>'
            )
            told = does.get(room, "") if len(rooms) == 1 else ""
            size = min(16.0, 1.4 * (width - 10) / len(room))  # a letter is about 0.7 of its size wide
            line = top + HEIGHT / 2 + (-3 if told else 6)
            parts.append(f'<text class="name" style="font-size:{size:.1f}px" x="{middle:.1f}" y="{line}">{room}</text>')
            if told:
                parts.append(f'<text class="does" x="{middle:.1f}" y="{top + HEIGHT / 2 + 16}">{escape(told)}</text>')
        top += HEIGHT
        if number + 1 < len(floors):
            x = WIDTH / 2
            parts.append(f'<path d="M{x} {top + 3}v{GAP - 12}" stroke="#546e7a" stroke-width="2"/>')
            parts.append(f'<path d="M{x - 6} {top + GAP - 10}h12l-6 8z" fill="#546e7a"/>')
        top += GAP
    rule = "Each room may import from all floors below it; rooms of one floor never import each other."
    parts.append(f'<text class="rule" x="{WIDTH / 2}" y="{height - MARGIN}">{rule}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.parse_args(words).output.write_text(drawn(layers(), uses()), encoding="utf-8")


if __name__ == "__main__":
    main()
