"""The picture of the floor plan shows what import-linter checks."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from browser import ask, needs_chromium

pytest.importorskip("tomllib", reason="Python 3.10 cannot read pyproject.toml by itself")

from benchmarks import floor_plan

REPOSITORY = Path(__file__).resolve().parents[2]
PICTURE = REPOSITORY / "docs" / "floor_plan.svg"


def test_the_picture_is_that_of_the_layers():
    assert PICTURE.read_text(encoding="utf-8") == floor_plan.drawn(floor_plan.layers(), floor_plan.uses()), (
        "python -m benchmarks.floor_plan docs/floor_plan.svg"
    )
    names = [text.text for text in ElementTree.fromstring(PICTURE.read_text()).iter() if text.get("class") == "name"]
    folders = {path.stem for path in (REPOSITORY / "custom_components").iterdir() if not path.stem.startswith("_")}
    assert set(names) == {room for floor in floor_plan.layers() for room in floor} == folders


def test_it_loads_nothing():
    assert re.findall(r"(?:href|src|url)\b|@import", PICTURE.read_text()) == []


@pytest.mark.slow
@needs_chromium
def test_every_text_fits_into_its_box(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(f"<body style='margin:0;width:960px'>{PICTURE.read_text()}</body>", encoding="utf-8")
    script = """(() => {
        const boxes = [...document.querySelectorAll('rect[rx="8"]')].map((one) => one.getBoundingClientRect());
        const inside = (one, box) => one.left >= box.left && one.right <= box.right && one.top >= box.top
            && one.bottom <= box.bottom;
        return [...document.querySelectorAll('.name, .does')].filter((text) =>
            !boxes.some((box) => inside(text.getBoundingClientRect(), box))).map((text) => text.textContent);
    })()"""
    outside, said = ask(page, script)
    assert outside == []
    assert said == []
