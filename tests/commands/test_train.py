"""`morphzoo train`: from a folder of scans to weights that are compared with those it began from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support import run

import custom_components as mz
from custom_components.data.lists import load_list
from custom_components.data.phantoms import write_phantom_scans
from custom_components.space.extent import size_for
from custom_components.weights import read_sidecar

TINY = {"max_epochs": 1, "num_pairs": 2, "num_val_pairs": 1, "spacing": 8.0, "initial": "none"}


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    write_phantom_scans(folder, n=5, size=(20, 18, 16), spacing_mm=8.0, num_validation=0)
    return folder


def write(path: Path, data: np.ndarray, spacing: float) -> str:
    nib.save(nib.Nifti1Image(data.astype(np.float32), np.diag([-spacing, spacing, spacing, 1.0])), path)
    return str(path)


def test_the_grid_holds_what_the_scans_show(tmp_path):
    data = np.zeros((60, 40, 50))
    data[5:45, 10:30, 20:40] = 100.0  # 40 x 20 x 20 voxels of 2 mm
    path = write(tmp_path / "a.nii.gz", data, 2.0)
    assert size_for([path], 2.0, "mass") == [48, 32, 32]
    assert size_for([path], 1.0, "mass") == [80, 48, 48]
    assert size_for([path], (2.0, 1.0, 2.0), "mass") == [48, 48, 32]
    wide = np.zeros((60, 40, 50))
    wide[:, 10:30, 20:40] = 1.0
    assert size_for([path, write(tmp_path / "b.nii.gz", wide, 2.0)], 2.0, "mass") == [64, 32, 32]
    assert size_for([path], 2.0, [-50.0, 40.0, 60.0]) == [48, 32, 32]  # about where it is
    assert size_for([path], 2.0, "image")[0] > 48  # it is not in the middle of its own file


@pytest.mark.slow
def test_a_folder_of_scans_is_trained_on_and_compared(people, tmp_path, monkeypatch):
    patterns = {"image": "images/{subject}.nii.gz", "label": "labels/{subject}.nii.gz"}
    result = mz.train(str(people), str(tmp_path / "out"), **patterns, **TINY)
    assert result.weights.is_file()
    assert read_sidecar(result.weights)["spacing"] == 8.0
    sections = json.loads((tmp_path / "out" / "datalist.json").read_text())
    assert (len(sections["training"]), len(sections["validation"])) == (3, 2)
    assert list(result.rows) == ["no registration", "network after the training", "the same, refined"]
    assert all(0 < row["dice"] <= 1 for row in result.rows.values())
    assert result.rows["the same, refined"]["dice"] > result.rows["no registration"]["dice"]
    assert str(result).endswith(f"--weights {result.weights} --spacing 8.0")

    with pytest.raises(ValueError, match="another weight: give another --output"):
        mz.train(str(people), str(tmp_path / "out"), **patterns, **TINY, weight=0.5)
    monkeypatch.setattr("custom_components.commands.train._compared", lambda *anything: {})
    longer = mz.train(str(people), str(tmp_path / "out"), **patterns, **(TINY | {"max_epochs": 2}))
    lines = (tmp_path / "out" / "curve.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2"]  # it went on
    assert longer.weights == result.weights


@pytest.mark.parametrize("form", ["list", "folder with a list", "folder", "patterns", "list elsewhere"])
def test_scans_may_be_named_from_where_one_is(form, people, tmp_path, monkeypatch):
    monkeypatch.chdir(people.parent)
    words = {
        "list": {"scans": f"{people.name}/datalist.json"},
        "folder with a list": {"scans": people.name},
        "folder": {"scans": f"{people.name}/images"},
        "patterns": {"scans": people.name, "image": "images/{subject}.nii.gz", "label": "labels/{subject}.nii.gz"},
        "list elsewhere": {"scans": str(tmp_path / "list.json"), "dataset_dir": people.name},
    }[form]
    (tmp_path / "list.json").write_text((people / "datalist.json").read_text())
    monkeypatch.setattr("custom_components.commands.train.give", None)  # the training itself is not run
    with pytest.raises(TypeError, match="not callable"):
        mz.train(output=os.path.relpath(tmp_path / "out"), **words, **TINY)
    sections = load_list(tmp_path / "out" / "datalist.json", "training", None)
    assert {Path(scan["image"]).parent for scan in sections} == {people / "images"}


@pytest.mark.slow
def test_it_begins_from_the_shipped_weights_at_their_spacing(tmp_path):
    write_phantom_scans(tmp_path / "people", n=4, size=(24, 20, 20), spacing_mm=2.0, num_validation=0)
    settings = {"max_epochs": 1, "num_pairs": 1, "num_val_pairs": 1}
    result = mz.train(str(tmp_path / "people" / "images"), str(tmp_path / "out"), **settings)
    assert "--spacing" not in str(result)
    assert read_sidecar(result.weights)["spacing"] == 2.0
    assert "network before the training" in result.rows
    assert "ncc" in result.rows["no registration"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nowhere"], "no data list at nowhere"),
        (["{people}", "--initial", "nothing.pt"], "nothing.pt: there are no such weights"),
        (["{people}", "--bundle", "nothing"], "there is no bundle 'nothing'"),
        (["{people}", "--initial_weights", "x.pt"], "train sets initial_weights itself"),
        (["{people}", "--wieght", "1"], "voxelmorph has no setting 'wieght'"),
        (["{three}"], "needs at least 4 people, 2 of them for validation; found 3"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(people, tmp_path, words, reason):
    three = tmp_path / "three"
    three.mkdir()
    for path in sorted((people / "images").iterdir())[:3]:
        (three / path.name).write_bytes(path.read_bytes())
    message = run("train", *(word.format(people=people, three=three) for word in words), "-o", tmp_path / "out")
    assert reason in message
    assert not (tmp_path / "out").exists()
