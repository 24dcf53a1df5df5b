"""A bundle's network as files for other runtimes: they answer as the network does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands.cases import REPOSITORY, VOXELMORPH
from support import run

from custom_components.commands.network_files import _check, network_files

ALONE = """
import sys
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
image = np.load(sys.argv[2])
np.save(sys.argv[3], session.run(None, {"image": image})[0])
assert "torch" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_answers_without_torch_at_any_size(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    files = network_files(VOXELMORPH, ["onnx"])
    model = tmp_path / "exported" / "voxelmorph" / "models" / "model.onnx"
    model.parent.mkdir(parents=True)
    model.write_bytes(files["models/model.onnx"])
    image = np.random.default_rng(0).random((1, 2, 32, 64, 48), dtype=np.float32)
    np.save(tmp_path / "image.npy", image)
    words = [model, tmp_path / "image.npy", tmp_path / "pred.npy"]
    subprocess.run([sys.executable, "-c", ALONE, *map(str, words)], check=True)
    assert np.load(tmp_path / "pred.npy").shape == (1, 3, 16, 32, 24)
    page = (REPOSITORY / "docs" / "model_zoo.md").read_text(encoding="utf-8")
    example = re.search(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[1]
    example += "assert velocity.shape == (1, 3, 40, 56, 48)"
    subprocess.run([sys.executable, "-c", example], cwd=tmp_path, check=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_bundle_is_exported_with_its_network(tmp_path):
    pytest.importorskip("safetensors")
    assert run("export", VOXELMORPH, "-o", tmp_path, "--formats", "pt2,safetensors") is None
    folder = tmp_path / "voxelmorph" / "models"
    assert {path.name for path in folder.iterdir()} >= {"model.pt", "model.pt2", "model.safetensors"}
    program = torch.export.load(folder / "model.pt2").module()
    assert program(torch.rand(1, 2, 48, 32, 64)).shape == (1, 3, 24, 16, 32)


def test_other_formats_are_refused(tmp_path):
    assert "expected some of pt2,onnx,torchscript,safetensors, got 'tflite'" in run(
        "export", VOXELMORPH, "-o", tmp_path, "--formats", "tflite"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_format_says_which_packages_it_needs(monkeypatch):
    monkeypatch.setattr("custom_components.commands.network_files.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install onnx onnxscript onnxruntime"):
        network_files(VOXELMORPH, ["onnx"])


def test_a_file_that_answers_otherwise_is_no_export():
    network, image = torch.nn.Identity(), torch.ones(1, 1, 4, 4)
    _check(network, lambda one: one + 1e-5, [image], Path("model.x"))
    with pytest.raises(RuntimeError, match=r"model\.x: its answer differs from the network's by 0\.001"):
        _check(network, lambda one: one + 1e-3, [image], Path("model.x"))
