"""The report of a pair: with the true field its numbers are those of a perfect registration."""

import json
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from support import published

from custom_components.data.phantoms import phantom_pair
from custom_components.fields import warp
from custom_components.space.dialects.itk import write_affine_transform
from custom_components.transforms.load import LoadPaird
from custom_components.transforms.report import PairReport
from custom_components.transforms.save import PairFiles

SIZE = (56, 60, 52)


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A phantom pair, loaded from files, with its true fields as the prediction."""
    pytest.importorskip("itk")
    folder = tmp_path_factory.mktemp("pair")
    pair = phantom_pair(SIZE, seed=4, amplitude=5.0)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    paths = {}
    for key in ("moving", "fixed", "label_moving", "label_fixed"):
        paths[key] = str(folder / f"{key}.nii.gz")
        nib.save(nib.Nifti1Image(pair[key][0, 0].numpy(), affine), paths[key])
    item = LoadPaird()(paths)
    pred = {"ddf": pair["ddf"][0], "inverse_ddf": pair["inverse_ddf"][0], "seconds": torch.tensor(0.25)}
    pred["warped"] = warp(item["moving"][None], pair["ddf"])[0]
    return {**item, "pred": pred}


def report(item, folder, *, brain_only=False, **options):
    return published(item, folder, PairFiles(("warped_label",)), PairReport(**options), brain_only=brain_only)


@pytest.fixture(scope="module")
def metrics(registered, tmp_path_factory):
    return report(registered, tmp_path_factory.mktemp("reported"), picture=False).metrics


def test_without_matplotlib_there_is_no_picture(registered, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = report(registered, tmp_path)
    assert "picture" not in result.files
    assert result.metrics["dice_after"] > 0.9
    assert "matplotlib is not installed" in caplog.text


def test_true_field_gives_nearly_perfect_overlap(metrics):
    assert metrics["dice_after"] > 0.92  # nearest neighbour rounds the small structures
    assert metrics["dice_before"] < 0.8
    assert all(metrics[f"dice_after_{label}"] > 0.9 for label in (1, 2, 3, 4))


def test_true_field_does_not_fold(metrics):
    assert metrics["folding_percent"] == 0
    assert 0 < metrics["sd_log_jacobian"] < 1


def test_true_fields_undo_one_another(metrics):
    assert metrics["inverse_consistency_mm"] < 0.1
    assert metrics["displacement_mean_mm"] > 0.5


def test_true_field_raises_the_similarity(metrics):
    assert metrics["ncc_aligned"] < metrics["ncc_after"]
    assert metrics["ncc_after"] > 0.98


def test_lengths_are_in_millimetres(metrics, registered):
    assert metrics["model_spacing_mm"] == [2.0, 2.0, 2.0]
    longest = 2 * registered["pred"]["ddf"].norm(dim=0).max()
    assert 0.5 * longest < metrics["displacement_max_mm"] <= longest + 1e-4


def test_report_names_the_pair_its_files_and_the_time(metrics, registered):
    assert metrics["id"] == "fixed__moving"
    assert (metrics["moving"], metrics["fixed"]) == (registered["moving_path"], registered["fixed_path"])
    assert metrics["seconds"] == 0.25


def test_report_without_a_picture_writes_the_numbers_alone(registered, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it would fail
    result = published(registered, tmp_path, PairReport(picture=False), page="none")
    assert {path.name for path in result.folder.iterdir()} == {"metrics.json", "files.json"}
    assert result.files == {"metrics": result.folder / "metrics.json"}
    assert json.loads((result.folder / "metrics.json").read_text()) == result.metrics


def test_report_draws_the_picture(registered, tmp_path):
    pytest.importorskip("matplotlib")
    result = report(registered, tmp_path)
    assert result.files["picture"] == tmp_path / "fixed__moving" / "picture.png"
    assert result.row["picture"] == str(result.files["picture"])
    assert result.files["picture"].read_bytes().startswith(b"\x89PNG")


def test_labels_asked_for_are_the_ones_measured(registered, tmp_path):
    metrics = report(registered, tmp_path, labels=[2, 3], picture=False).metrics
    assert {"dice_after_2", "dice_after_3"} <= metrics.keys()
    assert "dice_after_1" not in metrics
    assert metrics["dice_after"] == pytest.approx((metrics["dice_after_2"] + metrics["dice_after_3"]) / 2)


def test_surfaces_of_the_true_field_are_close(registered, tmp_path):
    pytest.importorskip("scipy")
    metrics = report(registered, tmp_path, picture=False, surfaces=True).metrics
    assert metrics["hd95_after_mm"] < metrics["hd95_before_mm"] == metrics["hd95_aligned_mm"]
    assert metrics["hd95_after_mm"] <= 2.5


def test_brain_only_judges_where_the_fixed_labels_are(registered, tmp_path):
    """Folds outside the label map do not count then."""
    ddf = registered["pred"]["ddf"].clone()
    ddf[0, :2] = torch.tensor([4.0, -4.0]).view(2, 1, 1)
    data = {**registered, "pred": {**registered["pred"], "ddf": ddf}}
    data["fixed"] = registered["fixed"] + 0.1 * torch.rand_like(registered["fixed"])  # foreground everywhere
    assert report(data, tmp_path, picture=False).metrics["folding_percent"] > 0
    assert report(data, tmp_path, picture=False, brain_only=True).metrics["folding_percent"] == 0


def test_pair_without_labels_has_no_overlap(registered, tmp_path):
    data = {key: value for key, value in registered.items() if not key.startswith("label_")}
    metrics = report(data, tmp_path, picture=False).metrics
    assert not [key for key in metrics if key.startswith("dice")]
    assert metrics["ncc_after"] > 0.98


def test_overlap_and_surfaces_tell_the_same_stages_apart(registered, tmp_path):
    """The moving scan's header is 8 mm off; the alignment takes 6 of them, the deformation the rest."""
    pytest.importorskip("scipy")
    label = nib.load(registered["label_fixed_path"])
    moved = np.eye(4) + 8 * np.eye(4)[:, [0]] * np.eye(4)[3]
    paths = {}
    for role, affine in (("moving", moved @ label.affine), ("fixed", label.affine)):
        for key in (role, f"label_{role}"):
            source = nib.load(registered[f"{key.replace('moving', 'fixed')}_path"])
            paths[key] = str(tmp_path / f"{key}.nii.gz")
            nib.save(nib.Nifti1Image(np.asarray(source.dataobj), affine), paths[key])
    write_affine_transform(tmp_path / "6mm.tfm", np.eye(4) + 6 * np.eye(4)[:, [0]] * np.eye(4)[3])
    item = LoadPaird(affine=str(tmp_path / "6mm.tfm"))(paths)
    ddf = torch.zeros(3, *item["fixed"].shape[1:])
    ddf[0] = 2 / 2  # mm to voxels
    pred = {"ddf": ddf, "warped": warp(item["moving"][None], ddf[None])[0]}
    metrics = report({**item, "pred": pred}, tmp_path / "out", picture=False, surfaces=True).metrics
    dice = [metrics[f"dice_{stage}"] for stage in ("before", "aligned", "after")]
    distance = [metrics[f"hd95_{stage}_mm"] for stage in ("before", "aligned", "after")]
    assert dice == sorted(dice)
    assert dice[-1] > 0.99
    assert distance == pytest.approx([8, 2, 0], abs=0.5)


def test_the_linear_stages_are_taken_apart(registered, tmp_path):
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]) @ np.diag([1.1, 0.9, 1.2])
    matrix[:3, 3] = [4, -5, 6]
    pair = {**registered, "world_matrix": torch.from_numpy(matrix)}
    metrics = report(pair, tmp_path, picture=False).metrics
    assert metrics["affine_rotation_degrees"] == pytest.approx(90)
    np.testing.assert_allclose(metrics["affine_scaling"], [1.1, 0.9, 1.2])
    assert metrics["affine_translation_mm"] == [4, -5, 6]
    parts = [np.array(metrics[f"affine_{name}"]) for name in ("rotation", "scaling", "shear")]
    product = parts[0] @ np.diag(parts[1]) @ parts[2]
    assert np.abs(product - matrix[:3, :3]).max() < 1e-10


def test_a_pair_that_was_not_aligned_has_no_linear_parts(metrics):
    assert not [key for key in metrics if key.startswith("affine_")]
