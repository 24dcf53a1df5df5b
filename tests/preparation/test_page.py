"""The page in a real browser: every picture loads, nothing fails, and failures come first."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from preparation.cases import preparation

from custom_components.preparation.page import write_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


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
    page = (tmp_path / "qc.html").read_text()
    places = [page.index(f"<h3>sub-0{k}</h3>") for k in (3, 2, 1)]
    assert places == sorted(places)
    assert "&lt;b&gt;: no image" in page
    assert 'src="a%26b.png"' in page
    assert "brain <b>1500 ml</b>" in page
    assert not re.search(r"(src|href)=\"(https?:)?//", page)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_in_a_browser_every_picture_loads_and_nothing_is_logged(people, tmp_path):
    with pytest.raises(RuntimeError):
        preparation(people, tmp_path / "out").run()
    page = tmp_path / "out" / "qc.html"
    probe = "<script>onload = () => document.title = [...document.images].map(i => i.naturalWidth).join();</script>"
    (page.parent / "probe.html").write_text(page.read_text() + probe)
    loaded = browse(page.parent / "probe.html", "--dump-dom")
    widths = re.search(r"<title>([\d,]+)</title>", loaded.stdout)[1].split(",")
    assert len(widths) == 3
    assert min(map(int, widths)) > 300
    assert "CONSOLE" not in loaded.stderr
    picture = tmp_path / "page.png"
    browse(page, f"--screenshot={picture}", "--window-size=1240,1000")
    assert picture.stat().st_size > 20_000


def browse(page: Path, *options: str) -> subprocess.CompletedProcess:
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    words += ["--virtual-time-budget=5000", f"--user-data-dir={page.parent}/browser", *options, page.as_uri()]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
