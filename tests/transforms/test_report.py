"""The report of a saved pair: with the true field its numbers are those of a perfect registration."""

import json
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

from custom_components.data.phantoms import phantom_pair
from custom_components.fields import warp
from custom_components.transforms.load import LoadPaird
from custom_components.transforms.report import ReportPaird
from custom_components.transforms.save import SavePaird

SIZE = (56, 60, 52)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A phantom pair, loaded from files, with its true fields as the prediction, and saved."""
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
    return SavePaird(str(folder / "out"))({**item, "pred": pred})


@pytest.fixture(scope="module")
def metrics(saved):
    return ReportPaird(picture=False)(saved)["metrics"]


def test_without_matplotlib_there_is_no_picture(saved, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = ReportPaird()(saved)
    assert "picture" not in result["output_files"]
    assert result["metrics"]["dice_after"] > 0.9
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
    assert metrics["ncc_before"] < metrics["ncc_after"]
    assert metrics["ncc_after"] > 0.98


def test_lengths_are_in_millimetres(metrics, saved):
    assert metrics["model_spacing_mm"] == [2.0, 2.0, 2.0]
    longest = 2 * saved["pred"]["ddf"].norm(dim=0).max()
    assert 0.5 * longest < metrics["displacement_max_mm"] <= longest + 1e-4


def test_report_names_the_pair_its_files_and_the_time(metrics, saved):
    assert metrics["id"] == "fixed__moving"
    assert (metrics["moving"], metrics["fixed"]) == (saved["moving_path"], saved["fixed_path"])
    assert metrics["seconds"] == 0.25


def test_report_without_a_picture_writes_the_numbers_alone(saved, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it would fail
    result = ReportPaird(picture=False)({**saved, "output_dir": str(tmp_path)})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    assert result["output_files"]["metrics"] == str(tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text()) == result["metrics"]


def test_report_draws_the_picture(saved, tmp_path):
    pytest.importorskip("matplotlib")
    result = ReportPaird()({**saved, "output_dir": str(tmp_path)})
    assert result["metrics"]["picture"] == result["output_files"]["picture"] == str(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_labels_asked_for_are_the_ones_measured(saved, tmp_path):
    metrics = ReportPaird([2, 3], picture=False)({**saved, "output_dir": str(tmp_path)})["metrics"]
    assert {"dice_after_2", "dice_after_3"} <= metrics.keys()
    assert "dice_after_1" not in metrics
    assert metrics["dice_after"] == pytest.approx((metrics["dice_after_2"] + metrics["dice_after_3"]) / 2)


def test_surfaces_of_the_true_field_are_close(saved, tmp_path):
    pytest.importorskip("scipy")
    metrics = ReportPaird(picture=False, surfaces=True)({**saved, "output_dir": str(tmp_path)})["metrics"]
    assert metrics["hd95_after_mm"] < metrics["hd95_before_mm"]
    assert metrics["hd95_after_mm"] <= 2.5


def test_brain_only_judges_where_the_fixed_labels_are(saved, tmp_path):
    """Folds outside the label map do not count then."""
    ddf = saved["pred"]["ddf"].clone()
    ddf[0, :2] = torch.tensor([4.0, -4.0]).view(2, 1, 1)
    data = {**saved, "output_dir": str(tmp_path), "pred": {**saved["pred"], "ddf": ddf}}
    data["fixed"] = saved["fixed"] + 0.1 * torch.rand_like(saved["fixed"])  # foreground everywhere
    everywhere = ReportPaird(picture=False)(data)["metrics"]["folding_percent"]
    assert everywhere > 0
    assert ReportPaird(picture=False, brain_only=True)(data)["metrics"]["folding_percent"] == 0


def test_pair_without_labels_has_no_overlap(saved, tmp_path):
    data = {key: value for key, value in saved.items() if not key.startswith("label_")}
    files = {key: value for key, value in saved["output_files"].items() if key != "warped_label"}
    metrics = ReportPaird(picture=False)({**data, "output_files": files, "output_dir": str(tmp_path)})["metrics"]
    assert not [key for key in metrics if key.startswith("dice")]
    assert metrics["ncc_after"] > 0.98
