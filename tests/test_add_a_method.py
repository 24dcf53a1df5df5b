"""A method is added without a change to a shared file: the page's example is built, trained and used for a pair."""

import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

from custom_components.data.phantoms import write_phantom_scans

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "add_a_method.md"


def files_of_the_page() -> dict[str, str]:
    """The page's code blocks that stand below the path of a file."""
    return dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))


def commands_of_the_page() -> str:
    return re.search(r"^```bash\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL).group(1)


def digests(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the repository without weights, with the example's files, and phantoms as its data."""
    folder = tmp_path_factory.mktemp("clone")
    ignored = shutil.ignore_patterns("__pycache__", "*.pt", "docs")
    for name in ("custom_components", "bundles"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py"):
        shutil.copy(REPOSITORY / name, folder)
    before = digests(folder)
    for name, text in files_of_the_page().items():
        assert name not in before
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    write_phantom_scans(folder / "data", 4, (32, 32, 32))
    run(folder, "bash", "-e", "-c", commands_of_the_page())
    after = digests(folder)
    assert before == {name: after.get(name) for name in before}
    return folder


def run(folder, *command):
    binaries = str(Path(sys.executable).parent)
    environment = {**os.environ, "PYTHONPATH": str(folder), "PATH": binaries + os.pathsep + os.environ["PATH"]}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_it_trains_for_two_epochs(clone):
    rows = (clone / "runs" / "free_form" / "curve.csv").read_text().splitlines()
    assert len(rows) == 1 + 2
    assert (clone / "runs" / "free_form" / "model.pt").is_file()


def test_it_registers_a_pair_by_the_command(clone):
    (metrics,) = (clone / "out").glob("*/metrics.json")
    measured = json.loads(metrics.read_text())
    assert 0 < measured["displacement_max_mm"] < 16
    assert (metrics.parent / "warped.nii.gz").is_file()


def test_it_keeps_the_rules_of_the_rooms(clone):
    assert "0 broken" in run(clone, "lint-imports")


def test_packaging_finds_it(clone, monkeypatch):
    found = {}
    monkeypatch.chdir(clone)
    monkeypatch.setattr(setuptools, "setup", found.update)
    runpy.run_path("setup.py")
    configs = dict(found["data_files"])["share/morphzoo/bundles/free_form/configs"]
    assert {Path(path).name for path in configs} == {"metadata.json", "train.json", "inference.json"}
    assert "custom_components.methods.free_form" in setuptools.find_packages(include=["custom_components*"])


def test_the_page_shows_a_small_method():
    lines = {name: len(text.splitlines()) for name, text in files_of_the_page().items()}
    assert len(lines) == 5
    assert sum(lines.values()) <= 120, lines
