"""The page in a real browser: every picture loads, nothing fails, and failures come first."""

from __future__ import annotations

import re

import pytest
from browser import IMAGES, ask, needs_chromium
from preparation.cases import preparation

from custom_components.preparation.page import write_page


def test_failures_come_first_and_names_are_no_markup(tmp_path):
    row = {"flags": [], "measures": {"brain_ml": 1500.0}, "picture": tmp_path / "a&b.png"}
    rows = [
        {"id": "sub-03", "status": "failed", "reason": "<b>: no image", "flags": [], "measures": {}, "picture": None}
    ]
    rows += [
        {"id": "sub-02", "status": "doubtful", **row, "flags": ["cut off"]},
        {"id": "sub-01", "status": "good", **row},
    ]
    write_page(tmp_path / "qc.html", tmp_path, rows, ["Load: all"])
    page = (tmp_path / "qc.html").read_text(encoding="utf-8")
    places = [page.index(f"<h3>sub-0{k}</h3>") for k in (3, 2, 1)]
    assert places == sorted(places)
    assert "&lt;b&gt;: no image" in page
    assert 'src="a%26b.png"' in page
    assert "brain <b>1500 ml</b>" in page
    assert not re.search(r"(src|href)=\"(https?:)?//", page)


@pytest.mark.slow
@needs_chromium
def test_in_a_browser_every_picture_loads_and_nothing_is_logged(people, tmp_path):
    with pytest.raises(RuntimeError):
        preparation(people, tmp_path / "out").run()
    widths, logged = ask(tmp_path / "out" / "qc.html", IMAGES)
    assert len(widths) == 3
    assert min(widths) > 300
    assert logged == []
