"""The site is built from the pages without a warning: every link and anchor of it leads somewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from browser import IMAGES, ask, needs_chromium

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = ("index", "register", "reference/commands", "reference/python", "reference/components", "changelog")


class Addresses(HTMLParser):
    """What a page points at in the same site."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value and ":" not in value and not value.startswith("#"):
                self.found.add(unquote(value.partition("#")[0]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(REPOSITORY)}
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_there_and_every_link_of_it_leads_somewhere(site):
    names = {f"bundles/{page.parents[1].name}" for page in REPOSITORY.glob("bundles/*/docs/README.md")}
    names |= {page.stem for page in (REPOSITORY / "docs").glob("*.md")} | set(PAGES)
    assert [name for name in sorted(names) if not (site / f"{name}.html").is_file()] == []
    for page in set(site.rglob("*.html")) - {site / "404.html"}:  # whose links begin at the site's root
        assert [link for link in Addresses(page).found if not (page.parent / link).exists()] == [], page


@pytest.mark.slow
def test_the_reference_has_every_command_with_its_settings(site):
    text = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert all(f"morphzoo {name}" in text for name in ("register", "evaluate", "template"))
    assert "refinement" in text


@pytest.mark.slow
@needs_chromium
def test_a_browser_shows_it_without_a_network(site):
    images, said = ask(site / "index.html", IMAGES)
    assert images
    assert all(images)
    assert said == []


@pytest.mark.slow
@needs_chromium
def test_the_names_of_methods_stand_on_one_line(site):
    lines = "[...document.querySelectorAll('td:first-child code')].map((one) => one.getClientRects().length)"
    assert set(ask(site / "index.html", lines)[0]) == {1}
