"""Labels from atlases: the shipped label maps, rendered and registered to heads whose labels are known."""

from __future__ import annotations

import csv
import json
import runpy
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import setuptools
import torch
from bundle_cases import REPOSITORY, messages
from monai.data import MetaTensor
from support import run

from benchmarks.brain_atlases import write_atlases
from custom_components.commands.exporting import bundle_files
from custom_components.commands.labelling import Labelling
from custom_components.commands.segment import segment
from custom_components.commands.strip import strip
from custom_components.evaluation.overlap import label_overlap
from custom_components.methods.brain_extraction.atlases import read_atlases
from custom_components.methods.brain_extraction.segmenter import BrainSegmenter
from custom_components.methods.brain_extraction.structures import STRUCTURES, class_table, volumes_ml
from custom_components.notices import collecting
from custom_components.space.volumes import load_image
from custom_components.synthesis.brains import BrainContrast
from custom_components.transforms.scan_paths import ScanPath

pytestmark = pytest.mark.filterwarnings("ignore")
BUNDLE = REPOSITORY / "bundles" / "brain_extraction"
MODELS = BUNDLE / "models"
ATLASES = MODELS / "atlases.nii.gz"
CLASSES = list(range(1, len(STRUCTURES)))


def rendered(ids, affine, folder, name="head", contrast="t1", seed=100):
    """Write a head that shows a label map, and the classes of its voxels; their paths."""
    labels = torch.from_numpy(np.asarray(ids).astype(np.int64))
    render = BrainContrast(MODELS / "atlases.csv", zero_background=1.0, contrast=contrast)
    image = render(labels[None, None], render.draw(1, labels.shape, torch.Generator().manual_seed(seed)))[0, 0]
    paths = folder / f"{name}.nii.gz", folder / f"{name}_truth.nii.gz"
    for path, data in zip(paths, (1000 * image, class_table(531)[labels]), strict=True):
        nib.save(nib.Nifti1Image(data.numpy().astype(np.int16), affine), path)
    return paths


def shown(path):
    return np.asarray(nib.load(path).dataobj)


def mean_dice(path, truth):
    found, known = (torch.from_numpy(shown(one).astype(np.int64)) for one in (path, truth))
    return float(label_overlap(found[None, None], known[None, None], CLASSES).nanmean())


@pytest.fixture(scope="module")
def odd_head(tmp_path_factory):
    """The last atlas as a head of axes, directions and spacings (2 x 4 x 2 mm) unlike the atlases', far from them."""
    file = nib.load(ATLASES)
    ids = np.moveaxis(np.asarray(file.dataobj[..., 7]), 0, 2)[::-1, ::2]
    affine = np.array([[0, 0, -2.0, 300.0], [0, 4.0, 0, -121], [2.0, 0, 0, -80], [0, 0, 0, 1]])
    return rendered(ids, affine, tmp_path_factory.mktemp("odd"))


def test_the_shipped_atlases_are_eight_people_who_have_all_structures():
    people = json.loads((MODELS / "atlases.json").read_text())["people"]
    assert len({person["name"] for person in people}) == nib.load(ATLASES).shape[3] == 8
    ids = np.asarray(nib.load(ATLASES).dataobj)
    assert sum(path.stat().st_size for path in MODELS.glob("atlases.*")) < 1.5e6
    for k in range(8):
        assert set(class_table(531)[ids[..., k].astype(np.int64)].unique().tolist()) == {0, *CLASSES}
    with open(MODELS / "atlases.csv", newline="") as file:
        assert {int(row["id"]) for row in csv.DictReader(file)} == set(np.unique(ids).tolist())


def test_an_atlas_is_rendered_alike_each_time_and_each_as_itself():
    first, again = read_atlases(ATLASES, 2), read_atlases(ATLASES, 2)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.image.array, b.image.array)
    assert first[0].image.name == "atlas synthseg_01"
    assert np.abs(first[0].image.array - first[1].image.array).max() > 0.1
    people = json.loads((MODELS / "atlases.json").read_text())["people"]
    np.testing.assert_array_equal(first[1].labels.frame.affine, people[1]["affine"])
    white, cortex = (first[0].image.array[first[0].labels.array == one].mean() for one in (1, 2))
    assert white > cortex > 0  # as T1 shows them


@pytest.mark.parametrize("number", ["-1", "9", "1.5", "many"])
def test_impossible_numbers_are_one_sentence_before_anything_is_written(number, odd_head, tmp_path):
    said = run("segment", odd_head[0], "--atlases", number, "-o", tmp_path / "out")
    assert "atlases" in said
    assert "\n" not in said.strip()
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_atlases_says_what_to_do(odd_head, tmp_path):
    shutil.copytree(BUNDLE / "configs", tmp_path / "own" / "configs")
    metadata = tmp_path / "own" / "configs" / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"atlases": "atlases.nii.gz",', ""))
    with pytest.raises((ValueError, RuntimeError)) as caught:
        segment(str(odd_head[0]), bundle=str(tmp_path / "own"), output=str(tmp_path / "out"))
    assert "own has no atlases; --atlases 0" in messages(caught.value)


def test_where_no_brain_was_found_nothing_is_registered(odd_head, monkeypatch):
    monkeypatch.setattr(Labelling, "proposals", None)
    volume = load_image(odd_head[0])
    mask = torch.zeros(1, *volume.file_shape, dtype=torch.uint8)
    item = {"image_path": ScanPath(volume), "mask": MetaTensor(mask), "measures": {"brain_ml": 0.0}}
    found = Labelling(BUNDLE, 1)(item)
    assert not found["pred"].any()
    assert found["measures"] == {"brain_ml": 0.0, **volumes_ml(mask, volume.file_affine)}


@pytest.mark.parametrize(("shift", "warned"), [(0, False), (12, True)])
def test_labels_that_are_not_where_the_mask_is_are_told(odd_head, monkeypatch, shift, warned):
    volume = load_image(odd_head[0])
    size = volume.data.shape[1:]
    mask = torch.zeros(1, *size, dtype=torch.uint8)
    mask[:, 20:40, 20:30, 20:60] = 1
    proposals = mask.roll(shift, 1), torch.rand(1, *size)
    monkeypatch.setattr(Labelling, "proposals", lambda self, volume: proposals)
    item = {"image_path": ScanPath(volume), "mask": MetaTensor(mask), "measures": {}}
    with collecting() as warnings:
        Labelling(BUNDLE, 1)(item)
    assert bool(warnings) == warned
    assert not warned or "overlap by a Dice of 0.40" in warnings[0]


def test_without_atlases_the_labels_are_the_networks(odd_head, tmp_path):
    segment(str(odd_head[0]), output=str(tmp_path), atlases=0)
    volume = load_image(odd_head[0])
    labels = BrainSegmenter(MODELS / "model.pt").labels(volume.meta_tensor(volume.data))
    np.testing.assert_array_equal(shown(tmp_path / "head_labels.nii.gz"), labels[0].numpy())


def test_an_exported_bundle_and_a_wheel_have_the_atlases(monkeypatch):
    files = bundle_files(BUNDLE)
    names = {f"atlases.{ending}" for ending in ("nii.gz", "csv", "json")}
    for name in names:
        assert files[f"models/{name}"] == (MODELS / name).read_bytes()
    found = {}
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(setuptools, "setup", found.update)
    runpy.run_path("setup.py")
    packed = [
        path for folder, paths in found["data_files"] if folder.endswith("brain_extraction/models") for path in paths
    ]
    assert names < {Path(path).name for path in packed}


def test_the_atlases_are_made_again_from_the_label_maps(test_data, tmp_path):
    write_atlases(test_data / "labelmaps3d_2mm", tmp_path)
    for name in ("atlases.csv", "atlases.json"):
        assert (tmp_path / name).read_text() == (MODELS / name).read_text()
    np.testing.assert_array_equal(shown(tmp_path / "atlases.nii.gz"), shown(ATLASES))
    assert write_atlases(test_data / "labelmaps3d_2mm", tmp_path)[0] == "synthseg_01"


@pytest.mark.slow
def test_labels_lie_on_the_images_own_grid_alike_each_time_and_a_failure_is_a_row(odd_head, tmp_path):
    image, truth = odd_head
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    for folder in ("once", "twice"):
        with pytest.raises(RuntimeError, match="1 of 2 images failed, the others are done"):
            segment(str(tmp_path / "bad.nii.gz"), str(image), output=str(tmp_path / folder), atlases=1)
    found = nib.load(tmp_path / "once" / "head_labels.nii.gz")
    assert found.shape == nib.load(image).shape
    np.testing.assert_allclose(found.affine, nib.load(image).affine, atol=1e-4)
    np.testing.assert_array_equal(shown(found.get_filename()), shown(tmp_path / "twice" / "head_labels.nii.gz"))
    assert mean_dice(found.get_filename(), truth) > 0.5
    strip(str(image), output=str(tmp_path / "mask"))
    tables = [list(csv.DictReader((tmp_path / one / "volumes.csv").open())) for one in ("once", "mask")]
    assert tables[0][0]["brain_ml"] == tables[1][0]["brain_ml"]
    assert float(tables[0][0]["thalamus_ml"]) == pytest.approx(
        (shown(found.get_filename()) == 7).sum() * 0.016, rel=1e-3
    )
    assert tables[0][1]["failure"]


@pytest.mark.slow
def test_a_t2_like_head_is_labelled_by_t1_like_atlases(tmp_path):
    file = nib.load(ATLASES)
    image, truth = rendered(file.dataobj[..., 6], file.affine, tmp_path, contrast="t2")
    segment(str(image), output=str(tmp_path / "out"), atlases=2)
    assert mean_dice(tmp_path / "out" / "head_labels.nii.gz", truth) > 0.5


@pytest.mark.slow
def test_two_atlases_label_a_person_whom_nobody_saw_better_than_the_network(test_data, tmp_path):
    file = nib.load(test_data / "labelmaps3d_2mm" / "synthseg_03.nii.gz")
    image, truth = rendered(file.dataobj, file.affine, tmp_path)
    for number in (0, 2):
        segment(str(image), output=str(tmp_path / str(number)), atlases=number)
    network, atlases = (mean_dice(tmp_path / str(n) / "head_labels.nii.gz", truth) for n in (0, 2))
    assert atlases > network + 0.1
