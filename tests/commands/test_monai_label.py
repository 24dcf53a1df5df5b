"""Segmentation by registration, for MONAI Label."""

from __future__ import annotations

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from commands.cases import FRAMES, SCHEMA, VOXELMORPH, check_labels, monai_bundle

from custom_components.commands.label_server_export import export_for_monai_label
from custom_components.data.phantoms import STRUCTURES

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


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
    record = (folder / "scripts" / "training" / "record.py").read_text()
    assert '"last.ckpt"' in record
    assert '"last.pt"' not in record + "".join(configs.values())


def test_its_page_shows_a_study(label_bundle):
    text = (label_bundle / "docs" / "README.md").read_text()
    assert "{'image': 'study.nii.gz'}" in text


def test_its_training_has_handlers_that_monai_label_can_look_into(label_bundle):
    config = json.loads((label_bundle / "configs" / "train.json").read_text())
    assert [handler["_target_"] for handler in config["train"]["handlers"]] == ["scripts.training.TrainingRecord"]
    assert config["val_interval"] == 1
    for part, number in (("train", "@num_pairs"), ("validate", "@num_val_pairs")):
        assert config[part]["dataset"]["num_pairs"] == number, "a component takes the server's items as its data"


def test_its_metadata_say_what_monai_label_shows(label_bundle):
    jsonschema = pytest.importorskip("jsonschema")
    metadata = json.loads((label_bundle / "configs" / "metadata.json").read_text())
    jsonschema.validate(metadata, json.loads(SCHEMA.read_text()))
    formats = metadata["network_data_format"]
    assert (list(formats["inputs"]), list(formats["outputs"])) == (["image"], ["pred"])
    names = {str(id): name for id, (name, _) in STRUCTURES.items()}
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", **names}
    config = json.loads((label_bundle / "configs" / "inference.json").read_text())
    shown = {"affine": "itk", "optimize": 12}
    assert config["displayable_configs"] == {"_target_": "scripts.transforms.asked.Offered", **shown}


def test_hypermorph_shows_its_lambda(studies, tmp_path):
    files = {"atlas": str(studies / "atlas.nii.gz"), "atlas_labels": str(studies / "atlas_labels.nii.gz")}
    (folder,) = export_for_monai_label(VOXELMORPH.with_name("hypermorph"), tmp_path, **files)
    config = json.loads((folder / "configs" / "inference.json").read_text())
    assert (config["displayable_configs"]["hyper"], config["hyper"]) == (0.3, "$@asked.value('hyper')")
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
        ({"label_names": "comma.csv"}, "expected a CSV file (or .tsv) in UTF-8 with the columns id"),
        ({"label_names": "background.csv"}, "expected another name for each label"),
        ({"label_names": "other.csv"}, "expected names of labels among [1, 2, 3, 4], got [90]"),
        ({"label_names": "atlas.nii.gz"}, "expected a CSV file (or .tsv) in UTF-8 with the columns id"),
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
