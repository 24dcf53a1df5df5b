"""A page in headless Chromium: what a script of the test finds there, what it logs, and a screenshot."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")

# Wide and high of every image; 0 where one did not load.
IMAGES = "[...document.images].map((one) => one.naturalWidth)"


def ask(page: Path, script: str, *, wait: str = "true") -> tuple[Any, list[str]]:
    """What an expression gives in a page, and what the console says.

    Args:
        page: opened from the disk; its copy beside it asks.
        script: an expression, may be a promise.
        wait: expression that becomes true before.
    """
    probe = (
        "<script>onload = async () => { const pause = () => new Promise((done) => setTimeout(done, 50));"
        f"for (let i = 0; i < 600 && !({wait}); i++) await pause();"
        f"const found = document.createElement('pre'); found.id = 'found'; const said = await ({script});"
        "found.textContent = JSON.stringify(said); document.body.append(found); };</script>"
    )
    copy = page.with_name("probe.html")
    copy.write_text(page.read_text(encoding="utf-8") + probe, encoding="utf-8")
    done = _browse(copy, "--dump-dom")
    copy.unlink()
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def screenshot(page: Path, picture: Path, *, size: tuple[int, int] = (1300, 1000)) -> None:
    """A PNG of a page as it is opened."""
    _browse(page, f"--screenshot={picture}", "--window-size={},{}".format(*size))


def _browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as profile:
        words = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--enable-logging=stderr", "--v=0"]
        words += ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--hide-scrollbars"]
        words += ["--virtual-time-budget=20000", f"--user-data-dir={profile}", *options, page.absolute().as_uri()]
        return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
