"""The logic of the module for 3D Slicer, with a stub of Slicer that reads and writes nodes and has nothing else."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import custom_components as mz
from custom_components.data.phantoms import write_phantom_scans

REPOSITORY = Path(__file__).resolve().parents[1]
MODULE = REPOSITORY / "slicer" / "MorphZoo"
OURS = [sys.executable, "-m", "custom_components"]


class Node:
    """A node of the scene: its content, name, and the matrix of the linear transform that it lies in."""

    def __init__(self, content: Any, name: str, to_world: np.ndarray | None = None) -> None:
        self.content, self.name, self.to_world = content, name, np.eye(4) if to_world is None else to_world

    def GetName(self) -> str:
        return self.name

    def SetName(self, name: str) -> None:
        self.name = name


def volume(path: str | Path) -> nib.Nifti1Image:
    image = nib.load(path)
    return nib.Nifti1Image(np.asarray(image.dataobj), image.affine)  # in memory: files may vanish


def export_node(node: Node, filename: str, properties: dict[str, Any] | None = None, world: bool = False) -> bool:
    affine = (node.to_world if world else np.eye(4)) @ node.content.affine
    nib.save(nib.Nifti1Image(np.asarray(node.content.dataobj), affine), filename)
    return True


def load_volume(filename: str, properties: dict[str, Any]) -> Node:
    return Node(volume(filename), properties["name"])


@pytest.fixture
def logic(monkeypatch):
    stub = ModuleType("slicer")
    stub.util = SimpleNamespace(
        exportNode=export_node,
        loadVolume=load_volume,
        loadTransform=lambda filename: Node(mz.Transform.read(filename), Path(filename).stem),
    )
    monkeypatch.setitem(sys.modules, "slicer", stub)
    monkeypatch.syspath_prepend(str(MODULE))
    module = importlib.import_module("MorphZooLib.logic")
    yield module
    for name in ("MorphZooLib", "MorphZooLib.logic"):
        sys.modules.pop(name, None)


@pytest.fixture
def nodes(tmp_path):
    write_phantom_scans(tmp_path, n=2, size=(28, 32, 24), spacing_mm=2.0, num_validation=0)
    names = ("images/phantom_00", "images/phantom_01", "labels/phantom_00")
    return [Node(volume(tmp_path / f"{name}.nii.gz"), Path(name).name) for name in names]


def command(tmp_path: Path, text: str) -> list[str]:
    script = tmp_path / "command.py"
    script.write_text(text)
    return [sys.executable, str(script)]


@pytest.mark.slow
def test_two_nodes_are_registered_where_they_lie_in_the_scene(logic, nodes, monkeypatch):
    pytest.importorskip("itk")
    monkeypatch.setenv("PYTHONPATH", "nowhere")  # as Slicer's own, which is not the command's
    logic.slicer.util.startupEnvironment = lambda: os.environ | {"PYTHONPATH": str(REPOSITORY)}
    moving, fixed, labels = nodes
    shift = np.eye(4)
    shift[:3, 3] = 5.0, 0.0, 0.0
    moving.to_world = labels.to_world = fixed.to_world = shift
    waited: list[int] = []
    registration = logic.MorphZooLogic(OURS, wait=lambda: waited.append(1))
    result = registration.register(
        moving, fixed, bundle="voxelmorph", labels=labels, options="--affine none --optimize 0"
    )
    np.testing.assert_allclose(result.warped.content.affine, shift @ fixed.content.affine, atol=1e-4)
    assert result.warped.content.shape == fixed.content.shape
    assert result.labels.content.shape == fixed.content.shape
    names = [one.name for one in (result.warped, result.transform, result.labels)]
    assert names == ["phantom_00 registered", "phantom_00 transform", "phantom_00 labels registered"]
    assert result.metrics["ncc_after"] > result.metrics["ncc_aligned"]
    assert result.transform.content.points([[5.0, 0.0, 0.0]]).shape == (1, 3)
    assert len(waited) > 3


def test_what_the_command_says_of_an_error_is_said(logic, nodes, tmp_path):
    words = command(tmp_path, "import sys; print('so far'); sys.exit('morphzoo: error: the volumes do not overlap')")
    with pytest.raises(RuntimeError, match=r"^morphzoo: error: the volumes do not overlap$"):
        logic.MorphZooLogic(words).register(*nodes[:2])


def test_a_command_that_is_not_there_is_named(logic, nodes):
    with pytest.raises(FileNotFoundError, match="/nowhere/morphzoo: there is no such command; give its path"):
        logic.MorphZooLogic("/nowhere/morphzoo").register(*nodes[:2])


def test_the_command_ends_with_the_panel(logic, nodes, tmp_path):
    words = command(
        tmp_path, f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )

    def wait() -> None:
        if (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        logic.MorphZooLogic(words, wait).register(*nodes[:2])
    stat = Path("/proc") / (tmp_path / "pid").read_text() / "stat"
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_the_environment_of_slicers_python_is_not_the_commands(logic, monkeypatch):
    for name in ("PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH"):
        monkeypatch.setenv(name, "of Slicer")
    found = logic._environment()
    assert "of Slicer" not in found.values()
    assert found["PATH"] == os.environ["PATH"]


def test_the_module_has_what_slicer_looks_for():
    tree = ast.parse((MODULE / "MorphZoo.py").read_text())
    bases = {one.name: [base.id for base in one.bases] for one in tree.body if isinstance(one, ast.ClassDef)}
    assert bases["MorphZoo"] == ["ScriptedLoadableModule"]
    assert bases["MorphZooWidget"] == ["ScriptedLoadableModuleWidget"]
    assert bases["MorphZooLogic"][0] == "ScriptedLoadableModuleLogic"
