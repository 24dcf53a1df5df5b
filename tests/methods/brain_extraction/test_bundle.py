"""The bundle as MONAI runs it, as the commands run it, and as an exported folder: on heads that a stand-in can find."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_cases import REPOSITORY, messages, read_json, workflow

from custom_components.commands.export import export
from custom_components.commands.exporting import export_bundle
from custom_components.commands.heads import images_in
from custom_components.commands.register import register
from custom_components.commands.segment import segment
from custom_components.commands.strip import strip
from custom_components.commands.words import checked, from_text
from custom_components.methods.brain_extraction.network import BrainUNet
from custom_components.methods.brain_extraction.structures import STRUCTURES

pytestmark = pytest.mark.filterwarnings("ignore")
BUNDLE = REPOSITORY / "bundles" / "brain_extraction"


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Two heads of different axes and spacings, one in a folder of its own, and untrained weights."""
    folder = tmp_path_factory.mktemp("heads")
    (folder / "more").mkdir()
    generator = np.random.default_rng(0)
    for name, size, affine in (
        ("a.nii.gz", (20, 24, 22), np.diag([4.0, 4, 4, 1])),
        ("more/b.nii", (22, 12, 20), np.array([[0, 0, -4.0, 9], [4.0, 0, 0, 3], [0, 8.0, 0, 1], [0, 0, 0, 1]])),
    ):
        data = (1000 * generator.random(size)).astype(np.int16)
        nib.save(nib.Nifti1Image(data, affine), folder / name)
    torch.manual_seed(0)
    torch.save(BrainUNet().state_dict(), folder / "weights.pt")
    labels = (generator.random((20, 24, 22)) * 4).astype(np.uint8)
    nib.save(nib.Nifti1Image(labels, np.diag([4.0, 4, 4, 1])), folder / "a_labels.mgz.nii.gz")
    return folder


def rows_of(folder):
    with open(folder / "volumes.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_strip_writes_masks_and_images_on_the_own_grids(heads, tmp_path):
    found = strip(
        str(heads / "a.nii.gz"), str(heads / "more"), output=str(tmp_path / "out"), weights=str(heads / "weights.pt")
    )
    assert str(found) == f"2 images done; results in {tmp_path / 'out'}"
    assert [set(head.files) for head in found.heads] == [{"mask", "stripped"}] * 2
    for name, source in (("a", "a.nii.gz"), ("b", "more/b.nii")):
        image = nib.load(heads / source)
        mask, stripped = (nib.load(tmp_path / "out" / f"{name}_{kind}.nii.gz") for kind in ("mask", "stripped"))
        for one in (mask, stripped):
            np.testing.assert_allclose(one.affine, image.affine, atol=1e-4)
        inside = np.asarray(mask.dataobj) > 0
        assert stripped.get_data_dtype() == np.int16
        np.testing.assert_array_equal(np.asarray(stripped.dataobj), np.where(inside, np.asarray(image.dataobj), 0))
    assert [row["image"] for row in rows_of(tmp_path / "out")] == [str(heads / "a.nii.gz"), str(heads / "more/b.nii")]


def test_segment_writes_label_maps_and_volumes(heads, tmp_path):
    segment(str(heads / "a.nii.gz"), output=str(tmp_path), weights=str(heads / "weights.pt"), atlases=0)
    labels = np.asarray(nib.load(tmp_path / "a_labels.nii.gz").dataobj)
    (row,) = rows_of(tmp_path)
    for number, (name, _) in enumerate(STRUCTURES[1:], 1):
        assert float(row[f"{name}_ml"]) == pytest.approx((labels == number).sum() * 0.064, rel=1e-3)


def test_an_image_that_fails_is_a_row_and_the_others_are_done(heads, tmp_path):
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    flat = tmp_path / "flat.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((20, 20, 1)).astype(np.float32), np.eye(4)), flat)
    given = [str(tmp_path / "bad.nii.gz"), str(flat), str(heads / "a.nii.gz")]
    with pytest.raises(RuntimeError, match="2 of 3 images failed, the others are done"):
        strip(*given, output=str(tmp_path / "out"), weights=str(heads / "weights.pt"))
    rows = rows_of(tmp_path / "out")
    assert [bool(row["failure"]) for row in rows] == [False, True, True]
    assert "expected a 3-D image" in rows[2]["failure"]
    assert (tmp_path / "out" / "a_mask.nii.gz").is_file()


def test_a_second_run_replaces_its_own_results_and_no_other_file(heads, tmp_path):
    options = {"output": str(tmp_path / "out"), "weights": str(heads / "weights.pt")}
    for _ in range(2):
        strip(str(heads / "a.nii.gz"), **options)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a_mask.nii.gz").write_text("mine")
    with pytest.raises(RuntimeError, match="no manifest says that it may be replaced"):
        strip(str(heads / "a.nii.gz"), **{**options, "output": str(tmp_path / "other")})
    assert (tmp_path / "other" / "a_mask.nii.gz").read_text() == "mine"


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ([], ValueError, "expected images"),
        (["nowhere.nii.gz"], FileNotFoundError, "no such file"),
        (["texts"], ValueError, "no images"),
    ],
)
def test_folders_without_images_are_refused(given, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("")
    with pytest.raises(error, match=words):
        images_in(given, "out")


def test_results_inside_a_folder_are_no_images_of_it(tmp_path):
    for name in ("a.nii.gz", "out/a_mask.nii.gz", "out2/b.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = images_in([str(tmp_path)], tmp_path / "out")
    assert found == [str(tmp_path / "a.nii.gz"), str(tmp_path / "out2" / "b.nii.gz")]


@pytest.mark.parametrize(
    ("settings", "words"), [({"threshold": 2.0}, "threshold"), ({"bundle": "voxelmorph"}, "finds no")]
)
def test_wrong_settings_are_refused_before_anything_is_written(heads, tmp_path, settings, words):
    options = {"output": str(tmp_path / "out"), "weights": str(heads / "weights.pt"), **settings}
    with pytest.raises((ValueError, RuntimeError)) as caught:
        strip(str(heads / "a.nii.gz"), **options)
    assert words in messages(caught.value)
    assert not (tmp_path / "out").exists()


def test_several_words_become_several_images():
    words = checked(["strip", "a.nii", "b, c.nii", "-o", "out", "--border", "2"], {"strip": strip})
    assert words == ["strip", "'a.nii'", "'b, c.nii'", "--output='out'", "--border='2'"]

    def several(*images: str, border: float = 0.0) -> tuple:
        return images, border

    assert from_text(several)("1", "2", border="2") == (("1", "2"), 2.0)


def run_inference(heads, output, *overlays, **settings):
    item = {"image": str(heads / "a.nii.gz"), "label": str(heads / "a_labels.mgz.nii.gz")}
    settings = {"output_dir": str(output), "weights": str(heads / "weights.pt"), "dataset#data": [item], **settings}
    configs = [BUNDLE / "configs" / f"{name}.json" for name in ("inference", *overlays)]
    job = workflow(BUNDLE, "infer", configs, settings)
    job.initialize()
    assert job.check_properties() == []
    job.run()


def test_monai_runs_inference_as_the_commands_do(heads, tmp_path):
    run_inference(heads, tmp_path / "monai")
    strip(str(heads / "a.nii.gz"), output=str(tmp_path / "ours"), weights=str(heads / "weights.pt"))
    masks = [np.asarray(nib.load(tmp_path / one / "a_mask.nii.gz").dataobj) for one in ("monai", "ours")]
    np.testing.assert_array_equal(*masks)
    assert (tmp_path / "monai" / "a_labels.nii.gz").is_file()


def test_evaluation_measures_the_structures_and_writes_no_image(heads, tmp_path):
    run_inference(heads, tmp_path, "evaluate")
    (row,) = rows_of(tmp_path)
    assert 0 <= float(row["mean_dice"]) <= 1
    assert {"white matter_dice", "brain_ml", "thalamus_ml"} <= row.keys()
    assert not list(tmp_path.glob("*.nii.gz"))


def test_metadata_name_the_classes():
    outputs = read_json(BUNDLE / "configs" / "metadata.json")["network_data_format"]["outputs"]["pred"]
    assert outputs["channel_def"] == {str(i): name for i, (name, _) in enumerate(STRUCTURES)}


def test_it_needs_no_atlas_for_monai_label(tmp_path):
    with pytest.raises(ValueError, match="segmentation model already"):
        export("brain_extraction", str(tmp_path), atlas="a", atlas_labels="b", **{"for": "monai-label"})


def test_it_registers_no_pairs(heads):
    pair = [str(heads / "a.nii.gz"), str(heads / "more" / "b.nii")]
    with pytest.raises(ValueError, match="morphzoo segment IMAGE"):
        register(*pair, bundle="brain_extraction")


@pytest.mark.slow
def test_the_exported_bundle_runs_without_the_package(heads, tmp_path):
    (folder,) = export_bundle(BUNDLE, tmp_path)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"configs/evaluate.json", "models/model.pt", "scripts/methods/brain_extraction/network.py"} <= files
    assert {"models/atlases.nii.gz", "models/atlases.csv", "models/atlases.json"} <= files
    item = json.dumps([{"image": str(heads / "a.nii.gz")}])
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    command += ["--dataset#data", item, "--output_dir", str(tmp_path / "out")]
    environment = {"PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "a_labels.nii.gz").is_file()
