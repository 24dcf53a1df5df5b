"""The inference of each bundle."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_cases import FIRST, has_template, infer, messages, needs, pairs_of, read_image, read_json

pytestmark = pytest.mark.filterwarnings("ignore")
PAIR_FILES = {
    "files.json",
    "warped.nii.gz",
    "warped_label.nii.gz",
    "forward_field.nii.gz",
    "inverse_field.nii.gz",
    "transform.h5",
    "inverse_transform.h5",
    "jacobian.nii.gz",
    "metrics.json",
    "picture.png",
    "report.html",
    "views.json",
}
ATLAS_FILES = {"warped_fixed.nii.gz", "warped_fixed_label.nii.gz"}
UNCERTAINTY_FILES = {"displacement_sd.nii.gz", "velocity_sd.nii.gz", "label_entropy.nii.gz", "uncertainty.png"}
METRIC_FILES = {"sigma.nii.gz", "sigma.png"}
SAMPLE_FILES = {f"sample_{i:02d}_{kind}.nii.gz" for i in (1, 2, 3) for kind in ("warped", "field")}


@pytest.fixture(scope="module")
def registered(bundle: Path, scans: Path, trained: SimpleNamespace) -> Path:
    """The results of inference on the two validation pairs; not to be changed."""
    return infer(bundle, scans, trained.folder / "registered", weights=str(trained.folder / "model.pt"))


def test_inference_writes_exactly_the_expected_files(bundle, registered):
    pytest.importorskip("itk")
    folders = [path for path in registered.iterdir() if path.is_dir()]
    assert {path.name for path in folders} == set(pairs_of(bundle))
    expected = PAIR_FILES | (ATLAS_FILES if has_template(bundle) else set())
    expected |= METRIC_FILES if "weight_sigma" in read_json(bundle / "configs" / "inference.json") else set()
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == expected
    files = {path.name for path in registered.iterdir() if path.is_file()}
    tables = {"metrics.csv", "metrics.json", "index.html", "files.json"}
    assert tables <= files
    templates = {f"template_age-{age}{end}" for age in (50, 60) for end in (".nii.gz", "_label.nii.gz", ".json")}
    assert files - tables == (templates if has_template(bundle) else set())


def test_it_registers_without_a_network(bundle, scans, tmp_path):
    if has_template(bundle):
        pytest.skip("the template is a part of the network")
    infer(bundle, scans, tmp_path, "training_free.json", iterations=[2, 1, 1], **FIRST)
    metrics = read_json(next(tmp_path.glob("*/metrics.json")))
    assert metrics["ncc_after"] > metrics["ncc_aligned"]


def test_results_lie_on_the_grid_of_the_fixed_image(bundle, registered, scans):
    fixed = nib.load(scans / "images" / "phantom_04.nii.gz")
    if has_template(bundle):
        fixed = nib.load(registered / "template_age-50.nii.gz")
        for name in ("warped_fixed.nii.gz", "warped_fixed_label.nii.gz"):
            result = nib.load(registered / "phantom_03" / name)
            assert result.shape == nib.load(scans / "images" / "phantom_03.nii.gz").shape
    for name in ("warped.nii.gz", "warped_label.nii.gz"):
        result = nib.load(registered / pairs_of(bundle)[0] / name)
        assert result.shape == fixed.shape
        np.testing.assert_allclose(result.affine, fixed.affine, atol=1e-5)


def test_inference_twice_gives_equal_numbers(bundle, scans, trained, registered):
    again = infer(bundle, scans, trained.folder / "again", weights=str(trained.folder / "model.pt"))
    for folder in (path for path in registered.iterdir() if path.is_dir()):
        for image in sorted(folder.glob("*.nii.gz")):
            np.testing.assert_array_equal(read_image(again / folder.name / image.name), read_image(image))
        first, second = (read_json(root / folder.name / "metrics.json") for root in (registered, again))
        for metrics in (first, second):
            metrics.pop("seconds")
            metrics["fixed"] = Path(metrics["fixed"]).name  # a template lies in the folder of the run
        assert first == second


def test_weights_of_another_architecture_are_refused(bundle, scans, trained, tmp_path):
    weights = torch.load(trained.folder / "model.pt", weights_only=True)
    weights["surplus.weight"] = torch.zeros(1)
    torch.save(weights, tmp_path / "model.pt")
    network = read_json(bundle / "configs" / "inference.json")["network_def"]["_target_"].rpartition(".")[2]
    with pytest.raises(RuntimeError) as caught:
        infer(bundle, scans, tmp_path / "out", weights=str(tmp_path / "model.pt"))
    assert network in messages(caught.value)
    assert "surplus.weight" in messages(caught.value)
    assert not (tmp_path / "out").exists()


def test_evaluation_writes_a_table_and_a_page(bundle, scans, trained, tmp_path):
    pytest.importorskip("scipy")
    infer(bundle, scans, tmp_path, "evaluate.json", weights=str(trained.folder / "model.pt"))
    assert {"metrics.csv", "metrics.json", "index.html"} <= {path.name for path in tmp_path.iterdir()}
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert all(float(row["dice_after"]) > 0 and float(row["hd95_after_mm"]) >= 0 for row in rows)
    assert read_json(tmp_path / "metrics.json")["num_pairs"] == 2
    assert not list(tmp_path.glob("*/warped.nii.gz"))


def test_optimization_of_the_pair_raises_the_similarity(bundle, scans, trained, registered, tmp_path):
    if "optimize" not in read_json(bundle / "configs" / "inference.json"):
        pytest.skip("the bundle has no pairwise optimisation")
    infer(bundle, scans, tmp_path, weights=str(trained.folder / "model.pt"), optimize=5, **FIRST)
    name = f"{pairs_of(bundle)[0]}/metrics.json"
    assert read_json(tmp_path / name)["ncc_after"] > read_json(registered / name)["ncc_after"]


def test_regions_of_a_label_map_can_have_a_metric_of_their_own(bundle, scans, tmp_path):
    overlay = bundle / "configs" / "inference_predefined.json"
    if not overlay.exists():
        pytest.skip("the bundle has no pre-defined regulariser")
    short = {"iterations": [1, 1, 3], "regions": {"1": [1, 0, 0, 0], "2": [0, 1, 0, 0]}, "region_sigma": 1.0}
    infer(bundle, scans, tmp_path, str(overlay), **short, **FIRST)
    metrics = read_json(tmp_path / pairs_of(bundle)[0] / "metrics.json")
    assert metrics["ncc_after"] > metrics["ncc_aligned"]
    sigma = read_image(tmp_path / pairs_of(bundle)[0] / "sigma.nii.gz")
    assert sigma.min() < 6
    assert sigma.max() == pytest.approx(16, abs=0.5)  # elsewhere the widest alone


@pytest.fixture(scope="module")
def sampled(bundle: Path, scans: Path, trained: SimpleNamespace) -> Path:
    """The results of inference with three samples; not to be changed."""
    if "samples" not in read_json(bundle / "configs" / "inference.json"):
        pytest.skip("the bundle has no uncertainty")
    return infer(bundle, scans, trained.folder / "sampled", weights=str(trained.folder / "model.pt"), samples=3)


def test_inference_with_samples_writes_exactly_the_expected_files(sampled):
    pytest.importorskip("itk")
    for folder in (path for path in sampled.iterdir() if path.is_dir()):
        assert {path.name for path in folder.iterdir()} == PAIR_FILES | UNCERTAINTY_FILES | SAMPLE_FILES
        metrics = read_json(folder / "metrics.json")
        assert metrics["samples"] == 3
        assert metrics["displacement_sd_mm"] > 0
        assert metrics["velocity_sd_mm"] > 0
        assert 0 <= metrics["label_entropy"] <= np.log(3)
        assert 0 <= metrics["sample_folding_percent"] <= 100


def test_samples_leave_the_results_of_the_mean_as_they_are(bundle, registered, sampled):
    needs(bundle, "prior_precision")  # with dropout, the mean is that of the samples
    for folder in (path for path in registered.iterdir() if path.is_dir()):
        for image in sorted(folder.glob("*.nii.gz")):
            np.testing.assert_array_equal(read_image(sampled / folder.name / image.name), read_image(image))
        mean, both = (read_json(root / folder.name / "metrics.json") for root in (registered, sampled))
        assert mean.pop("seconds") > 0
        assert mean.items() <= both.items()


def test_samples_follow_the_seed(bundle, scans, trained, sampled, tmp_path):
    folder, settings = "phantom_03-to-phantom_04", {"weights": str(trained.folder / "model.pt"), "samples": 3, **FIRST}
    again, other = (infer(bundle, scans, tmp_path / str(seed), seed=seed, **settings) / folder for seed in (0, 1))
    for name in sorted(UNCERTAINTY_FILES | SAMPLE_FILES):
        if name.endswith(".nii.gz"):
            np.testing.assert_array_equal(read_image(again / name), read_image(sampled / folder / name))
    for name in ["displacement_sd.nii.gz", *sorted(SAMPLE_FILES)]:
        assert not np.array_equal(read_image(other / name), read_image(sampled / folder / name))
    sd = [read_image(root / "velocity_sd.nii.gz") for root in (other, again)]
    of_the_samples = "prior_precision" not in read_json(bundle / "configs" / "inference.json")
    assert np.array_equal(*sd) != of_the_samples
