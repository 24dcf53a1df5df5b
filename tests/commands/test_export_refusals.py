"""What cannot be exported is named, and nothing is written."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from commands.cases import REPOSITORY, VOXELMORPH, change

from custom_components.commands.exporting import bundle_files, export_bundle

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A bundle, to be spoiled."""
    for name in ("voxelmorph", "avsm", "overlays"):
        shutil.copytree(REPOSITORY / "bundles" / name, tmp_path / "bundles" / name)
    shutil.copy(REPOSITORY / "LICENSE", tmp_path)
    return tmp_path / "bundles" / "voxelmorph"


def test_the_viewer_of_volumes_goes_along_if_a_config_asks_for_it(copied):
    viewer = {"scripts/evaluation/report/niivue/niivue.umd.js", "scripts/evaluation/report/niivue/LICENSE"}
    files = bundle_files(copied)
    assert not viewer & set(files)
    assert "scripts/evaluation/report/templates/pair.html" in files
    change(copied.parent / "overlays" / "evaluate.json", **{"postprocessing#page": "volumes"})
    assert viewer <= set(bundle_files(copied))


def remove_weights(bundle: Path) -> None:
    (bundle / "models" / "model.pt").unlink()


def remove_training(bundle: Path) -> None:
    (bundle / "configs" / "train.json").unlink()


def break_json(bundle: Path) -> None:
    (bundle / "configs" / "train_2d.json").write_text("{")


def remove_page(bundle: Path) -> None:
    (bundle / "docs" / "README.md").unlink()


def forget_a_version(bundle: Path) -> None:
    path = bundle / "configs" / "metadata.json"
    path.write_text(path.read_text().replace("numpy_version", "nunpy_version"))


def check_refusal(bundle: Path, output: Path, part: str) -> None:
    """One line, and nothing is written."""
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(part)) as error:
        export_bundle(bundle, output, zipped=True)
    assert "\n" not in str(error.value)
    assert not output.exists()


@pytest.mark.parametrize(
    ("config", "key", "value", "part"),
    [
        ("train.json", "loss", {"_target_": "my_laboratory.losses.Loss"}, "train.json names my_laboratory.losses.Loss"),
        (
            "train.json",
            "imports",
            ["$from my_laboratory.losses import loss"],
            "train.json names my_laboratory.losses.loss",
        ),
        (
            "train_2d.json",
            "loss",
            {"_target_": "custom_components.losses.registration.Los"},
            "train_2d.json: there is no custom_components.losses.registration.Los",
        ),
        ("inference.json", "output_dir", "/data/out", "got '/data/out'"),
        ("inference.json", "data_list", "$'/data/' + @section", "expected paths relative to the bundle"),
        ("inference.json", "dataset_dir", "$@bundle_root + '/../data'", "outside of the bundle"),
        ("inference.json", "output_dir", "C:/Users/me", "got 'C:/Users/me'"),
        ("inference.json", "output_dir", "file:///home/me", "got 'file:///home/me'"),
        (
            "inference.json",
            "output_dir",
            "$__import__('os').path.expanduser('~/out')",
            "expected paths relative to the bundle",
        ),
        ("train.json", "imports", ["$import os, my_laboratory"], "train.json names my_laboratory"),
        (
            "train.json",
            "loss",
            {"_target_": "custom_components.commands.demo.demo"},
            "there is no custom_components.commands.demo.demo in an exported bundle",
        ),
        ("inference.json", "weights", "models/model.pt", "got 'models/model.pt'"),
        ("metadata.json", "version", "0.2.0", "version 0.2.0 is not in the changelog"),
        (
            "metadata.json",
            "required_packages_version",
            {"nibabel": ">=5"},
            "one released version of nibabel, got '>=5'",
        ),
    ],
)
def test_an_unfit_entry_of_a_config_is_named(copied, tmp_path, config, key, value, part):
    change(copied / "configs" / config, **{key: value})
    check_refusal(copied, tmp_path / "out", part)


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (remove_weights, "voxelmorph/models/model.pt: voxelmorph has no weights"),
        (remove_training, "train.json: there is no such file"),
        (break_json, "train_2d.json: Expecting"),
        (remove_page, "README.md: there is no such file"),
        (forget_a_version, "metadata.json lacks numpy_version"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_bundle_is_refused_and_its_fault_named(copied, tmp_path, spoil, part):
    spoil(copied)
    check_refusal(copied, tmp_path / "out", part)


def test_overlays_that_do_not_fit_stay_behind():
    files = map(Path, bundle_files(REPOSITORY / "bundles" / "conditional_atlas"))
    names = {path.stem for path in files if path.suffix == ".json"}
    assert {"smoke", "evaluate"} <= names
    models = {"svf", "lddmm", "vsvf", "ddf", "bspline", "demons", "flow"}
    assert not (models | {"training_free", "learned_affine", "learned_affine_2d"}) & names


@pytest.mark.parametrize(
    ("bundle", "kept", "left"),
    [
        ("voxelmorph", {"rendered", "train_labelmaps", "quality_best_2d"}, set()),
        ("brain_extraction", {"train_t1", "evaluate", "smoke"}, {"rendered"}),  # it renders by itself
        ("synthmorph", {"train_shapes"}, {"rendered"}),
        ("conditional_atlas", {"rendered", "quality_best"}, {"quality_best_2d"}),  # it has no inference_2d.json
    ],
)
def test_overlays_go_along_where_what_they_build_on_is_there(bundle, kept, left):
    names = {Path(name).stem for name in bundle_files(REPOSITORY / "bundles" / bundle)}
    assert kept <= names
    assert not left & names


@pytest.mark.parametrize("name", ["voxelmorph_v0.1.0.zip", "voxelmorph_v0.1.0.zip.sha256"])
def test_a_place_that_is_taken_stops_the_export(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(FileExistsError, match=f"{name}: is there already"):
        export_bundle(VOXELMORPH, tmp_path, zipped=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_zip_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*words: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail)
    with pytest.raises(OSError, match="disk full"):
        export_bundle(VOXELMORPH, tmp_path, zipped=True)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_left_alone(tmp_path):
    (tmp_path / "voxelmorph").mkdir()
    (tmp_path / "voxelmorph" / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="is there already"):
        export_bundle(VOXELMORPH, tmp_path)
    assert [path.name for path in (tmp_path / "voxelmorph").iterdir()] == ["mine.txt"]
