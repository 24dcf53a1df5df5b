"""Fixtures that several test files of this folder share."""

import subprocess
from pathlib import Path

import pytest
from benchmarks.cases import BUNDLES, script

from custom_components.data.lists import load_list
from custom_components.data.phantoms import write_phantom_scans


@pytest.fixture
def commands(monkeypatch):
    """The commands that would have been run."""
    seen = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: seen.append(command))
    return seen


@pytest.fixture(scope="session")
def hyper():
    return script(BUNDLES / "hypermorph" / "docs" / "reproduce.py")


@pytest.fixture(scope="session")
def people(hyper, tmp_path_factory):
    """All pairs of four people, whose files begin with their names."""
    path = Path(write_phantom_scans(tmp_path_factory.mktemp("slices"), 6, (32, 32), num_validation=4))
    text = path.read_text()
    for number, name in enumerate("abcd", start=2):
        for folder in ("images", "labels"):
            scan = path.parent / folder / f"phantom_{number:02d}.nii.gz"
            scan.rename(scan.with_name(f"{name}_{folder}.nii.gz"))
            text = text.replace(f"{folder}/{scan.name}", f"{folder}/{name}_{folder}.nii.gz")
    path.write_text(text)
    return hyper.load_pairs(load_list(path, "validation_pairs"))
