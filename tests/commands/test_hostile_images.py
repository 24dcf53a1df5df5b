"""What is no pair of images is refused in one sentence that names it, and leaves nothing, whatever looks at it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support import blobs, run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
GOOD = "good.nii.gz"
BAD = {
    "empty.nii.gz": "cannot be read as an image",
    "cut.nii.gz": "cannot be read as an image",
    "text.nii.gz": "cannot be read as an image",
    "missing.nii.gz": "no such",
    "folder": "folder",
    "nan.nii.gz": "NaN|finite",
    "four_axes.nii.gz": "expected",
    "slice.nii.gz": "one dimension|2 frames",
    "flat.nii.gz": "one dimension|2 frames",
}
FAST = ["--optimize", "0", "--spacing", "4"]
BRIEF = ["--iterations", "1", "--spacing", "4"]
COMMANDS = {
    "register": lambda bad: ["register", bad, GOOD, "--affine", "none", *FAST],
    "agent": lambda bad: ["register", bad, GOOD, "--affine", "agent", *FAST],
    "search": lambda bad: ["optimize", bad, GOOD, "--affine", "search", *BRIEF],
    "learned": lambda bad: ["optimize", bad, GOOD, "--affine", "none", "--similarity", "learned", *BRIEF],
    "features": lambda bad: ["optimize", bad, GOOD, "--affine", "none", "--similarity", "features", *BRIEF],
    "error_map": lambda bad: ["register", bad, GOOD, "--affine", "none", "--error_map", *FAST],
    "subtract": lambda bad: ["subtract", bad],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    image = blobs((20, 18, 16), AFFINE)
    arrays = {GOOD: image, "nan.nii.gz": np.full_like(image, np.nan), "four_axes.nii.gz": np.stack([image] * 2, -1)}
    arrays |= {"slice.nii.gz": image[:, :, 8:9], "flat.nii.gz": image[:, :, 8]}
    for name, array in arrays.items():
        nib.save(nib.Nifti1Image(array, AFFINE), folder / name)
    (folder / "empty.nii.gz").touch()
    (folder / "text.nii.gz").write_text("no image")
    (folder / "cut.nii.gz").write_bytes((folder / GOOD).read_bytes()[:500])
    (folder / "folder").mkdir()
    return folder


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_refused_in_one_sentence(command, bad, folder, tmp_path, monkeypatch, capfd):
    if bad == "folder":
        pytest.importorskip("itk")
    monkeypatch.chdir(folder)
    message = run(*COMMANDS[command](bad), "-o", tmp_path / "out")
    assert message.startswith("morphzoo: error: ")
    assert "\n" not in message
    assert bad in message
    assert re.search(BAD[bad], message), message
    assert not (tmp_path / "out").exists()
    assert "WARNING" not in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_where_nothing_can_be_written_is_named_before_the_work(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    tmp_path.chmod(0o500)
    for command in ("register", "subtract"):
        assert "no permission" in run(*COMMANDS[command](GOOD), "-o", tmp_path)


@pytest.mark.parametrize("command", ["register", "subtract"])
def test_a_file_in_the_place_of_the_output_is_named_before_the_work(command, folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    (tmp_path / "out").touch()
    assert "out: cannot make the output folder" in run(*COMMANDS[command](GOOD), "-o", tmp_path / "out")
    assert "optimizing" not in capfd.readouterr().err


def test_subtract_names_a_device_that_is_not_there(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    assert "there is no 'toaster' on this machine" in run("subtract", GOOD, "-o", tmp_path, "--device", "toaster")
