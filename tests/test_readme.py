"""The README is short, and what it and the other pages point at is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import custom_components as mz
from custom_components import _COMMANDS
from custom_components.data.phantoms import write_phantom_scans

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
PAGES = [
    README,
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "data_lists").glob("*.md")),
    *sorted((REPOSITORY / "bundles").glob("*/docs/README.md")),
]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def code(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)]\([^)]*\)|`", r"\1", heading) for heading in headings)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}
    return made | set(re.findall(r'<a (?:id|name)="([^"]+)"', page.read_text()))


def test_it_is_one_screen_of_short_lines():
    lines = README.read_text().splitlines()
    assert len(lines) <= 140
    assert [line for line in lines if len(line) > 120] == []


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@each_page
def test_commands_exist(page):
    text = "".join(code(page, "bash"))
    named = set(re.findall(r"(?:^|\| |&& )morphzoo (\w+)", text, re.MULTILINE))
    assert named <= set(_COMMANDS)
    for module in re.findall(r"python -m ((?:benchmarks|data_lists)(?:\.\w+)*)(?![.<\w])", page.read_text()):
        path = REPOSITORY.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


@each_page
def test_files_of_code_that_it_names_exist(page):
    """But for those of examples: of a method that a reader writes, and of MONAI's model zoo."""
    named = re.findall(r"(?<![\w./<{])((?:\w+/)+\w+\.py)\b", prose(page))
    theirs = ("methods/free_form/", "custom_components/methods/free_form/", "ci/", "tests/methods/free_form/")
    for path in (name for name in named if not name.startswith(theirs)):
        assert any((REPOSITORY / room / path).is_file() for room in (".", "custom_components", "docs")), path


def test_every_page_can_be_reached_from_the_readme():
    seen, to_read = set(), [README]
    while to_read:
        page = to_read.pop()
        seen.add(page)
        for target in re.findall(r"\]\(([^)\s#]+\.md)[)#]", page.read_text()):
            found = (page.parent / target).resolve()
            if found.is_file() and found not in seen:
                to_read.append(found)
    assert sorted(set(PAGES) - seen) == []


@pytest.mark.slow
def test_its_example_runs(tmp_path, monkeypatch):
    write_phantom_scans(tmp_path, n=2, size=(40, 36, 32), spacing_mm=2.0, num_validation=0)
    for number, name in enumerate(("moving", "fixed")):
        (tmp_path / "images" / f"phantom_0{number}.nii.gz").rename(tmp_path / f"{name}.nii.gz")
    (example,) = code(README, "python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mz, "register", lambda *images: mz.Registrar(optimize=0, affine="none")(*images))
    found: dict[str, object] = {}
    exec(example, found)
    assert found["result"].warped.shape == (1, 40, 36, 32)
