"""Exported bundles: complete without the package, the same bytes each time, segmentation models in MONAI Label.

A folder in bundles/ with configs/metadata.json is found by itself. Each is asked all questions of exported.py in one
process, in which the package cannot be imported: to import MONAI takes long.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from custom_components.commands.exporting import bundle_files, export_bundle, export_for_monai_label
from custom_components.data.phantoms import STRUCTURES, write_phantom_scans
from custom_components.evaluation.overlap import mean_dice
from custom_components.space import load_image, load_labels, resample
from custom_components.transforms.load import scale_intensity

REPOSITORY = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parents[1] for path in REPOSITORY.glob("bundles/*/configs/metadata.json"))
VOXELMORPH = REPOSITORY / "bundles" / "voxelmorph"
SCHEMA = REPOSITORY / "tests" / "data" / "meta_schema_20240725.json"
FRAMES = ("LAS", "RAS", "PIR", "oblique")
STATISTICS = "id,t1_prior_mean,t1_prior_mean_spread\n0,5,2\n1,110,8\n2,170,8\n3,60,8\n4,140,8\n"
# `python -m monai.bundle` where the package is not installed.
MONAI_BUNDLE = (
    "import runpy, sys; sys.modules['custom_components'] = None; runpy.run_module('monai.bundle', None, '__main__')"
)
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"CUDA_VISIBLE_DEVICES": ""}

pytestmark = pytest.mark.filterwarnings("ignore")
_spec = importlib.util.spec_from_file_location("monai_label", REPOSITORY / "benchmarks" / "monai_label.py")
monai_label = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(monai_label)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five phantoms of 32 x 32 x 32 voxels of 1 mm with an attribute, a flat one, and a table of the structures."""
    folder = Path(write_phantom_scans(tmp_path_factory.mktemp("scans"), 5, (32, 32, 32))).parent
    sections = json.loads((folder / "datalist.json").read_text())
    for i, scan in enumerate(sections["training"] + sections["validation"]):
        scan["ventricles"] = 2 + i
    (folder / "datalist.json").write_text(json.dumps(sections))
    nib.save(nib.load(folder / "images" / "phantom_00.nii.gz").slicer[:, :, 16:17], folder / "flat.nii.gz")
    (folder / "labels.csv").write_text(STATISTICS)
    return folder


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def exported(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The folder, the zip and its checksum; not to be changed."""
    folder, archive, checksum = export_bundle(bundle, tmp_path_factory.mktemp(bundle.name), zipped=True)
    return SimpleNamespace(folder=folder, archive=archive, checksum=checksum)


@pytest.fixture(scope="module")
def answers(exported: SimpleNamespace, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the unpacked zip answers to the questions of exported.py."""
    place, output = tmp_path_factory.mktemp("elsewhere"), tmp_path_factory.mktemp("output")
    with zipfile.ZipFile(exported.archive) as archive:
        archive.extractall(place)
    command = [sys.executable, str(Path(__file__).with_name("exported.py")), *map(str, (scans, SCHEMA, output))]
    folder = place / exported.folder.name
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return {**json.loads((output / "answers.json").read_text()), "output": output}


def monai_bundle(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MONAI_BUNDLE, *map(str, words)]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


# What is in the folder


def test_the_files_are_those_of_the_zoo(exported):
    files = {path.relative_to(exported.folder).as_posix() for path in exported.folder.rglob("*") if path.is_file()}
    wanted = {f"configs/{name}" for name in ("metadata.json", "train.json", "inference.json", "logging.conf")}
    wanted |= {f"configs/{name}.json" for name in ("smoke", "evaluate", "multi_gpu_train")}
    wanted |= {"models/model.pt", "docs/README.md", "docs/data_license.txt", "LICENSE", "scripts/__init__.py"}
    assert wanted <= files
    assert not [name for name in files if "cache" in name or name.startswith("eval") or name.endswith(".pyc")]
    assert max(path.stat().st_size for path in exported.folder.rglob("*")) < 25e6  # more goes into large_files.yml


def test_nothing_names_the_package_or_this_machine(exported):
    for path in exported.folder.rglob("*"):
        if path.suffix in (".json", ".py", ".conf"):
            text = path.read_text(encoding="utf-8")
            assert "custom_components" not in text, path
            assert str(REPOSITORY) not in text, path
            assert "/../" not in text, path


def test_weights_that_configs_name_are_there(exported):
    for name in ("inference.json", "learned_affine.json", "learned_affine_2d.json"):
        path = exported.folder / "configs" / name
        if path.exists():
            for weights in re.findall(r"'/(models/[\w.]+)'", path.read_text()):
                assert (exported.folder / weights).is_file(), f"{name} needs {weights}"


def test_the_page_has_the_sections_of_the_zoos_template(exported):
    text = (exported.folder / "docs" / "README.md").read_text(encoding="utf-8")
    wanted = ["Authors", "Tags", "Model Description", "Data", "Preprocessing", "Performance", "Additional Usage Steps"]
    wanted += ["System Configuration", "Limitations", "Citation", "References", "License"]
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == [section for section in wanted if section in headings]
    assert set(wanted) - set(headings) < {"Citation", "References"}


def test_exporting_twice_gives_equal_bytes(bundle, exported, tmp_path):
    _, archive, checksum = export_bundle(bundle, tmp_path, zipped=True)
    assert archive.read_bytes() == exported.archive.read_bytes()
    assert checksum.read_text() == exported.checksum.read_text()


def test_the_zip_is_named_by_the_version_and_holds_the_folder(exported):
    version = json.loads((exported.folder / "configs" / "metadata.json").read_text())["version"]
    assert exported.archive.name == f"{exported.folder.name}_v{version}.zip"
    with zipfile.ZipFile(exported.archive) as archive:
        for name in archive.namelist():
            assert archive.read(name) == (exported.folder.parent / name).read_bytes()


# What it does where the package is not installed


@pytest.mark.parametrize("question", ["train", "infer", "infer_with_learned_affine"])
def test_it_runs_and_has_every_property_monai_asks_for(answers, question):
    assert answers[question] == []


def test_it_gives_what_the_package_gives(bundle, answers, scans, tmp_path):
    (warped,) = answers["output"].glob("*/warped.nii.gz")
    item = json.loads((scans / "datalist.json").read_text())["validation_pairs"][0]
    item |= {key: str(scans / value) for key, value in item.items() if key != "id"}
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    if "conditions" in config:
        item = {"image": item["fixed"], "ventricles": 4}
    job = ConfigWorkflow(
        config_file=str(bundle / "configs" / "inference.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(bundle),
        affine="none",
        optimize=0,
        output_dir=str(tmp_path),
        **{"dataset#data": [item], "postprocessing#transforms#0#write": ["warped"]},
        **{"postprocessing#transforms#1#picture": False},
    )
    job.initialize()
    job.run()
    (same,) = tmp_path.glob("*/warped.nii.gz")
    np.testing.assert_allclose(nib.load(warped).get_fdata(), nib.load(same).get_fdata(), atol=1e-4)


@pytest.mark.parametrize("question", ["metadata", "in_and_out"])
def test_monai_verifies_its(answers, question):
    assert answers[question] is None


def test_it_loads_with_all_its_weights(answers):
    assert answers["load"] == []


@pytest.mark.parametrize("form", ["torchscript", "onnx"])
def test_other_forms_of_the_network_give_equal_output(answers, form):
    if isinstance(answers[form], str):
        pytest.skip(answers[form])
    assert answers[form] < 1e-4, answers[form]


def test_the_page_for_the_hub_names_the_licence(answers):
    assert "license: apache-2.0" in answers["hub_card"].split("---")[1]


@pytest.mark.parametrize(
    ("question", "part"),
    [("infer_absent_scan", "absent.nii.gz: no such"), ("infer_without_weights", "absent.pt")],
)
def test_bad_input_is_named(answers, question, part):
    last = answers[question]["error"][-1]
    assert part in last
    assert "\n" not in last


def test_a_flat_scan_with_another_is_refused(answers):
    assert "expected two images of one dimension" in answers["infer_flat_scan"]["error"][-1]


def test_flat_scans_are_refused(answers):
    assert re.search("expected (3-D|two) images", answers["infer_flat_scans"]["error"][-1])


def test_monai_downloads_and_runs_the_zip(scans, tmp_path):
    _, archive, _ = export_bundle(VOXELMORPH, tmp_path / "exported", zipped=True)
    words = ["--name", "voxelmorph", "--url", archive.as_uri(), "--bundle_dir", tmp_path]
    done = monai_bundle(tmp_path, "download", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    pair = {role: str(scans / "images" / f"phantom_0{i}.nii.gz") for role, i in (("moving", 3), ("fixed", 4))}
    words = ["--config_file", "configs/inference.json", "--dataset#data", f"[{pair}]", "--output_dir", tmp_path / "out"]
    done = monai_bundle(tmp_path / "voxelmorph", "run", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    written = {path.name for path in (tmp_path / "out").glob("*/*")}
    assert {"warped.nii.gz", "forward_field.nii.gz", "metrics.json"} <= written


# What cannot be exported


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A bundle, to be spoiled."""
    for name in ("voxelmorph", "avsm", "overlays"):
        shutil.copytree(REPOSITORY / "bundles" / name, tmp_path / "bundles" / name)
    shutil.copy(REPOSITORY / "LICENSE", tmp_path)
    return tmp_path / "bundles" / "voxelmorph"


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


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
            {"_target_": "custom_components.commands.demo.run_demo"},
            "there is no custom_components.commands.demo.run_demo in an exported bundle",
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
def test_what_is_broken_is_named(copied, tmp_path, spoil, part):
    spoil(copied)
    check_refusal(copied, tmp_path / "out", part)


def test_overlays_that_do_not_fit_stay_behind():
    names = {Path(name).stem for name in bundle_files(REPOSITORY / "bundles" / "conditional_atlas")}
    assert {"smoke", "evaluate"} <= names
    assert not {"training_free", "svf", "lddmm", "vsvf", "ddf", "learned_affine", "learned_affine_2d"} & names


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


# Segmentation by registration, for MONAI Label


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms of 48 x 44 x 40 voxels of 2 mm: atlas and, in studies/ and truth/, others in four frames."""
    folder = tmp_path_factory.mktemp("label")
    for name in ("studies", "truth"):
        (folder / name).mkdir()
    sections = json.loads(Path(write_phantom_scans(folder, 5, (48, 44, 40), spacing_mm=2.0)).read_text())
    people = sections["training"] + sections["validation"]
    shutil.copy(folder / people[0]["image"], folder / "atlas.nii.gz")
    shutil.copy(folder / people[0]["label"], folder / "atlas_labels.nii.gz")
    for person, name in zip(people[1:], FRAMES, strict=True):
        for kind, place in (("image", "studies"), ("label", "truth")):
            volume = monai_label.orient(nib.load(folder / person[kind]), name)
            nib.save(volume, folder / place / f"{name}.nii.gz")
    with open(folder / "names.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "name"], *([id, name] for id, (name, _) in STRUCTURES.items())])
    return folder


@pytest.fixture(scope="module")
def label_bundle(studies: Path) -> Path:
    files = {"atlas": str(studies / "atlas.nii.gz"), "atlas_labels": str(studies / "atlas_labels.nii.gz")}
    (folder,) = export_for_monai_label(
        VOXELMORPH, studies / "exported", **files, label_names=str(studies / "names.csv")
    )
    return folder


def check_labels(answer: Path, studies: Path, name: str) -> None:
    """Labels on the study's very grid, more like the truth than the atlas's where they were."""
    found, truth = nib.load(answer), load_labels(studies / "truth" / f"{name}.nii.gz")
    assert found.shape == truth.file_shape
    np.testing.assert_allclose(found.affine, truth.file_affine, atol=1e-4)
    atlas = load_labels(studies / "atlas_labels.nii.gz")
    before = resample(atlas.data, atlas.affine, truth.grid, mode="nearest")
    labels = torch.from_numpy(np.asarray(found.dataobj).astype(np.int16))[None]
    dice = [float(mean_dice(one[None], truth.data[None])) for one in (before, labels)]
    assert dice[1] > dice[0] + 0.05, f"Dice {dice[0]:.3f} to {dice[1]:.3f}"


def test_labels_of_the_atlas_come_to_scans_of_any_orientation(label_bundle, studies, tmp_path):
    items = [{"image": str(path)} for path in sorted((studies / "studies").iterdir())]
    words = ["--config_file", "configs/inference.json", "--dataset#data", str(items), "--output_dir", tmp_path]
    words += ["--displayable_configs#affine", "none", "--displayable_configs#optimize", "10"]
    done = monai_bundle(label_bundle, "run", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in FRAMES:
        check_labels(tmp_path / f"{name}_labels.nii.gz", studies, name)
        assert nib.load(tmp_path / f"{name}_labels.nii.gz").get_data_dtype() == np.int16


def test_in_it_there_is_nothing_that_monai_label_could_take_for_the_network(studies, tmp_path):
    """It loads the file in `models` with the shortest name, and shows the others."""
    files = {"atlas": str(studies / "atlas.nii.gz"), "atlas_labels": str(studies / "atlas_labels.nii.gz")}
    (folder,) = export_for_monai_label(VOXELMORPH.with_name("quicksilver"), tmp_path, **files)
    assert [path.name for path in (folder / "models").glob("*.pt")] == ["model.pt"]
    configs = {path.name: path.read_text() for path in (folder / "configs").glob("*.json")}
    named = {name for text in configs.values() for name in re.findall(r"'/(models/[\w./]+)'", text)}
    assert "models/parts/avsm_affine.pt" in named
    assert all((folder / name).is_file() for name in named if "2d" not in name)
    assert not {"evaluate.json", "learned_affine.json", "inference_2d.json"} & configs.keys()
    assert "last.pt" not in "".join(configs.values())


def test_its_page_shows_a_study(label_bundle):
    text = (label_bundle / "docs" / "README.md").read_text()
    assert "{'image': 'study.nii.gz'}" in text


def test_its_metadata_say_what_monai_label_shows(label_bundle):
    jsonschema = pytest.importorskip("jsonschema")
    metadata = json.loads((label_bundle / "configs" / "metadata.json").read_text())
    jsonschema.validate(metadata, json.loads(SCHEMA.read_text()))
    formats = metadata["network_data_format"]
    assert (list(formats["inputs"]), list(formats["outputs"])) == (["image"], ["pred"])
    names = {str(id): name for id, (name, _) in STRUCTURES.items()}
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", **names}
    config = json.loads((label_bundle / "configs" / "inference.json").read_text())
    assert config["displayable_configs"] == {"affine": "itk", "optimize": 0}


def test_hypermorph_shows_its_lambda(studies, tmp_path):
    files = {"atlas": str(studies / "atlas.nii.gz"), "atlas_labels": str(studies / "atlas_labels.nii.gz")}
    (folder,) = export_for_monai_label(VOXELMORPH.with_name("hypermorph"), tmp_path, **files)
    config = json.loads((folder / "configs" / "inference.json").read_text())
    assert (config["displayable_configs"]["hyper"], config["hyper"]) == (0.3, "@displayable_configs#hyper")
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["1"] == "label 1"


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"atlas": "absent.nii.gz"}, "absent.nii.gz: no such image file"),
        ({"atlas": "flat.nii.gz", "atlas_labels": "flat_labels.nii.gz"}, "expected a 3-D atlas"),
        ({"atlas_labels": "empty.nii.gz"}, "expected a 3-D atlas with labels from 1 to 32767"),
        ({"atlas_labels": "far.nii.gz"}, "expected labels where the atlas is"),
        ({"atlas": "atlas.mhd"}, "atlas.mhd: expected a file that ends in .nii, .nii.gz, .nrrd, .mha"),
        ({"label_names": "comma.csv"}, "expected a CSV file in UTF-8 with the columns id"),
        ({"label_names": "background.csv"}, "expected another name for each label"),
        ({"label_names": "other.csv"}, "expected names of labels among [1, 2, 3, 4], got [90]"),
        ({"label_names": "atlas.nii.gz"}, "expected a CSV file in UTF-8 with the columns id"),
        ({"label_names": "twice.csv"}, "expected another name for each label"),
        ({"bundle": "conditional_atlas"}, "registers to its own template"),
    ],
)
def test_bad_atlases_are_named_and_nothing_is_written(studies, tmp_path, changes, part):
    atlas, labels = (nib.load(studies / name) for name in ("atlas.nii.gz", "atlas_labels.nii.gz"))
    nib.save(atlas.slicer[:, :, 20:21], tmp_path / "flat.nii.gz")
    nib.save(labels.slicer[:, :, 20:21], tmp_path / "flat_labels.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(labels.shape, np.uint8), labels.affine), tmp_path / "empty.nii.gz")
    (tmp_path / "other.csv").write_text("id,name\n90,tail\n")
    (tmp_path / "twice.csv").write_text("id,name\n1,cortex\n2,Cortex\n")
    (tmp_path / "comma.csv").write_text("id,name\n1,Left, cortex\n")
    (tmp_path / "background.csv").write_text("id,name\n1,Background\n")
    far = labels.affine.copy()
    far[:3, 3] += 1000
    nib.save(nib.Nifti1Image(np.asarray(labels.dataobj), far), tmp_path / "far.nii.gz")
    for name in ("atlas.nii.gz", "atlas_labels.nii.gz"):
        shutil.copy(studies / name, tmp_path)
    settings = {"bundle": "voxelmorph", "atlas": "atlas.nii.gz", "atlas_labels": "atlas_labels.nii.gz", **changes}
    bundle = VOXELMORPH.with_name(settings.pop("bundle"))
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(part)) as error:
        export_for_monai_label(bundle, tmp_path / "out", **{k: str(tmp_path / v) for k, v in settings.items()})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_endings_and_tables_of_other_systems_are_read(studies, tmp_path):
    for name in ("atlas", "atlas_labels"):
        shutil.copy(studies / f"{name}.nii.gz", tmp_path / f"{name.upper()}.NII.GZ")
    (tmp_path / "names.csv").write_text("id,name\r\n1,Grau\r\n", encoding="utf-8-sig")
    files = {"atlas": str(tmp_path / "ATLAS.NII.GZ"), "atlas_labels": str(tmp_path / "ATLAS_LABELS.NII.GZ")}
    (folder,) = export_for_monai_label(VOXELMORPH, tmp_path, **files, label_names=str(tmp_path / "names.csv"))
    assert sorted(path.name for path in (folder / "atlas").iterdir()) == ["atlas.nii.gz", "atlas_labels.nii.gz"]
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["1"] == "Grau"


# A real server


@pytest.fixture(scope="module")
def label_python(pytestconfig: pytest.Config) -> str:
    """The Python of an environment with MONAI Label: $MORPHZOO_MONAI_LABEL, else one in pytest's cache."""
    given = os.environ.get("MORPHZOO_MONAI_LABEL")
    if shutil.which("curl") is None:
        pytest.skip("the server is asked by curl, which is not installed here")
    try:
        return given or monai_label.make_environment(pytestconfig.cache.mkdir("monai_label"))
    except (RuntimeError, OSError) as error:
        pytest.skip(f"MONAI Label cannot be installed here: {error}")


@pytest.fixture(scope="module")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(label_python: str, label_bundle: Path, studies: Path, server_folder: Path) -> Iterator[str]:
    """The address of a MONAI Label server with the bundle, whose studies are the phantoms."""
    folder = server_folder
    model = shutil.copytree(label_bundle, folder / label_bundle.name)
    change(model / "configs" / "train.json", num_pairs=2, num_val_pairs=2, size=[32, 32, 32])
    shutil.copytree(studies / "studies", folder / "studies")
    with monai_label.running_server(label_python, folder, [model], folder / "studies") as address:
        yield address


def infer(server: str, output: Path, study: str, *words: Any, model: str = "voxelmorph_atlas", **settings: Any) -> int:
    return monai_label.infer(server, output, model, study, *words, **{"affine": "none", **settings})


def test_the_server_lists_the_model(server):
    with urllib.request.urlopen(f"{server}/info/") as answer:
        model = json.load(answer)["models"]["voxelmorph_atlas"]
    assert (model["type"], model["dimension"], model["config"]["optimize"]) == ("segmentation", 3, 0)
    assert model["labels"] == {name: id for id, (name, _) in STRUCTURES.items()}


@pytest.mark.parametrize("name", FRAMES)
def test_the_server_answers_with_labels_on_the_studys_grid(server, studies, tmp_path, name):
    assert infer(server, tmp_path / "answer.nii.gz", name, optimize=10) == 200
    check_labels(tmp_path / "answer.nii.gz", studies, name)


def test_an_uploaded_label_map_is_propagated(server, studies, tmp_path):
    upload = ["-F", f"label=@{studies / 'truth' / 'LAS.nii.gz'}"]
    moving = str(studies / "studies" / "LAS.nii.gz")
    assert infer(server, tmp_path / "answer.nii.gz", "PIR", *upload, optimize=10, moving=moving) == 200
    check_labels(tmp_path / "answer.nii.gz", studies, "PIR")


def test_another_scan_itself_is_brought_to_the_study(server, studies, tmp_path):
    moving, study = str(studies / "studies" / "LAS.nii.gz"), load_image(studies / "studies" / "PIR.nii.gz")
    settings = {"moving": moving, "answer": "image", "optimize": 10}
    assert infer(server, tmp_path / "answer.nii.gz", "PIR", **settings) == 200
    found, before = load_image(tmp_path / "answer.nii.gz"), load_image(moving)
    assert found.file_shape == study.file_shape
    images = [resample(before.data, before.affine, study.grid), found.data]
    errors = [float((scale_intensity(image) - scale_intensity(study.data)).abs().mean()) for image in images]
    assert errors[1] < 0.7 * errors[0], errors
    assert len(np.unique(found.data)) > 1000
    assert infer(server, tmp_path / "answer.nii.gz", "PIR", moving=moving, answer="nothing") >= 400


def test_wrong_requests_get_an_error_and_the_server_stays(server, studies, tmp_path):
    answer = tmp_path / "answer.nii.gz"
    (tmp_path / "corrupt.nii.gz").write_bytes((studies / "studies" / "LAS.nii.gz").read_bytes()[:2000])
    assert infer(server, answer, "LAS", model="nothing") >= 400
    assert infer(server, answer, "nobody") >= 400
    assert infer(server, answer, "", "-F", f"file=@{tmp_path / 'corrupt.nii.gz'}") >= 400
    assert infer(server, answer, "LAS", moving="/absent.nii.gz", label_moving="/absent.nii.gz") >= 400
    assert infer(server, answer, "LAS", moving=str(studies / "studies" / "PIR.nii.gz")) >= 400
    assert infer(server, answer, "LAS") == 200


def test_the_server_trains(server, server_folder, studies, tmp_path):
    models = server_folder / "monaibundle" / "model" / "voxelmorph_atlas" / "models"
    before = torch.load(models / "model.pt", weights_only=True)
    answer = tmp_path / "answer.json"
    assert (
        monai_label.curl(
            answer, "-X", "PUT", f"{server}/datastore/?image=atlas", "-F", f"file=@{studies / 'atlas.nii.gz'}"
        )
        == 200
    )
    truth = {name: studies / "truth" / f"{name}.nii.gz" for name in FRAMES}
    for name, path in {**truth, "atlas": studies / "atlas_labels.nii.gz"}.items():
        url = f"{server}/datastore/label?image={name}&tag=final"
        assert monai_label.curl(answer, "-X", "PUT", url, "-F", f"label=@{path}", "-F", "params={}") == 200
    request = json.dumps({"max_epochs": 1, "multi_gpu": False, "val_split": 0.5})
    url = f"{server}/train/voxelmorph_atlas?run_sync=true"
    assert monai_label.curl(answer, "-X", "POST", url, "-H", "Content-Type: application/json", "-d", request) == 200
    assert [path.name for path in models.glob("*.pt")] == ["model.pt"]
    after = torch.load(models / "model.pt", weights_only=True)
    assert before.keys() == after.keys()
    assert not all(torch.equal(before[name], after[name]) for name in before)
    assert infer(server, tmp_path / "answer.nii.gz", "LAS") == 200


def test_labels_of_rendered_heads_come_closer(label_python, test_data, tmp_path):
    asked = {"voxelmorph": [{}]}
    before, after = monai_label.measure(test_data / "labelmaps3d_2mm" / "datalist.json", tmp_path, label_python, asked)
    for name, (value, _) in before[2].items():
        assert after[2][name][0] > value + 0.3, name
    text = monai_label.table([before, after])
    assert "| before |" in text
    assert "| `voxelmorph_atlas` |" in text
