"""The lower bounds in pyproject.toml are true: with the lowest versions that they allow, the quick tests pass.

The first run installs them into `.venv-lowest`; later ones find them. torch stays as it is in this environment, unless
MORPHZOO_LOWEST_TORCH is set: its old releases bring several GB of CUDA packages.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read pyproject.toml by itself")

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / ".venv-lowest"
PYTHON = FOLDER / "bin" / "python"
# Of the development's tools those that the tests below need.
TOOLS = {"hypothesis", "jsonschema", "pytest", "pytest-benchmark"}
TESTS = (
    *("test_fields.py", "test_affine.py", "test_weights.py", "test_runs.py", "test_checks.py", "training", "space"),
    *("transforms/test_load_and_save.py", "evaluation/test_pictures.py", "bundles/test_training.py"),
)
_GB = 2**30


def requirements() -> dict[str, Requirement]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]
    stated = [Requirement(line) for line in project["dependencies"] + extra["demo"] + extra["dev"]]
    chosen = {Requirement(line).name for line in project["dependencies"] + extra["demo"]} | TOOLS
    return {one.name: one for one in stated if one.name in chosen}


def pip(*words: str) -> subprocess.CompletedProcess[str]:
    """pip, without a file of constraints from elsewhere."""
    command = [str(PYTHON if PYTHON.exists() else sys.executable), "-m", "pip", *words]
    environment = {**os.environ, "PIP_CONSTRAINT": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def is_version(word: str) -> bool:
    """An index may list names of files, as 1.6.1.linux-x86_64, among the releases."""
    try:
        Version(word)
    except InvalidVersion:
        return False
    return True


@functools.cache
def lowest(name: str) -> str:
    """The lowest release that a requirement allows, as the package index has it."""
    done = pip("index", "versions", name, "--timeout", "15", "--retries", "1")
    found = re.search(r"Available versions: (.+)", done.stdout)
    if done.returncode or not found:
        pytest.skip(f"no package index is reachable: {(done.stderr or 'no answer').strip().splitlines()[-1]}")
    releases = [Version(word) for word in found[1].split(", ") if is_version(word)]
    return str(min(version for version in releases if version in requirements()[name].specifier))


def install() -> None:
    pinned = {name: lowest(name) for name in requirements()}
    if not os.environ.get("MORPHZOO_LOWEST_TORCH"):
        pinned["torch"] = metadata.version("torch")
    stamp = FOLDER / "installed.json"
    if stamp.exists() and json.loads(stamp.read_text()) == pinned:
        return
    if shutil.disk_usage(REPOSITORY).free < 12 * _GB:
        pytest.skip("the lowest versions need 12 GB of disk")
    subprocess.run([sys.executable, "-m", "venv", "--clear", FOLDER], check=True)
    done = pip("install", "--quiet", *(f"{name}=={version}" for name, version in pinned.items()))
    assert done.returncode == 0, done.stderr[-2000:]
    stamp.write_text(json.dumps(pinned))


def test_every_requirement_states_a_lowest_version():
    bare = [name for name, one in requirements().items() if not any(s.operator == ">=" for s in one.specifier)]
    assert bare == []


@pytest.mark.slow
def test_the_quick_tests_pass_with_the_lowest_versions(tmp_path):
    install()
    command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *TESTS]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY / "tests", env=environment)
    assert done.returncode == 0, done.stdout[-4000:]
