"""The package as a library: everything the command does, as functions that return values."""

import subprocess
import sys
from pathlib import Path

import pytest

import custom_components as mz
from custom_components.commands import discover

ROOT = Path(__file__).parents[1]


def test_importing_the_package_loads_neither_torch_nor_monai():
    code = "import sys, custom_components; print([m for m in ('torch', 'monai', 'nibabel') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_finding_the_commands_loads_neither_torch_nor_monai():
    code = "import sys; from custom_components.commands import discover; print(sorted(discover()))\n"
    code += "print([m for m in ('torch', 'monai', 'nibabel') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commands = ["apply", "atlas", "cite", "convert", "demo", "evaluate", "export", "info", "longitudinal", "optimize"]
    commands += ["prepare", "propagate", "register", "segment", "strip", "subtract", "template", "train", "tune"]
    assert shown.splitlines() == [str(commands), "[]"]


def test_every_public_name_is_there():
    for name in mz.__all__:
        assert getattr(mz, name) is not None
    assert set(mz.__all__) <= set(dir(mz))


def test_the_projects_name_gives_the_same_objects():
    import morphzoo

    assert morphzoo.__all__ == mz.__all__
    for name in mz.__all__:
        assert getattr(morphzoo, name) is getattr(mz, name)
    with pytest.raises(AttributeError, match="has no attribute 'regsiter'"):
        _ = morphzoo.regsiter


def test_every_command_is_a_public_name():
    for name, command in discover().items():
        assert getattr(mz, name) is command


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'regsiter'"):
        _ = mz.regsiter
