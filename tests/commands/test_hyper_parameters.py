"""Hyper-parameters on the command line."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from commands.cases import rows_of
from support import run

from custom_components.commands import subjects
from custom_components.commands.bundles import find_bundle
from custom_components.data.phantoms import phantom_pair


def with_hyper(slices, output, weights, *words):
    """Register the list's first pair with hypermorph; the exit message and the pair's folder."""
    pair = json.loads(slices.read_text())["validation_pairs"][0]
    paths = {key: slices.parent / pair[key] for key in ("moving", "fixed", "label_moving", "label_fixed")}
    common = ["register", paths.pop("moving"), paths.pop("fixed"), "-o", output, "--bundle", "hypermorph"]
    common += ["--affine", "none", "--optimize", 0, "--weights", weights]
    common += [word for key, path in paths.items() for word in (f"--{key}", path)]
    message = run(*common, *words)
    folders = [path for path in output.iterdir() if path.is_dir()] if output.is_dir() else []
    return message, folders[0] if folders else None


def test_a_pair_is_registered_at_a_given_lambda_and_swept(slices, hyper_weights, tmp_path):
    message, folder = with_hyper(slices, tmp_path, hyper_weights, "--hyper", 0.2, "--sweep", 3)
    assert message is None
    swept = {"sweep.csv", "sweep_structures.csv", "sweep_warped.nii.gz", "sweep.png"}
    names = {path.name for path in folder.iterdir()}
    assert swept | {"warped.nii.gz", "warped_label.nii.gz", "picture.png", "metrics.json"} <= names
    assert {name for name in names if name.startswith("sweep")} == swept
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["lambda"] == pytest.approx(0.2)
    assert metrics["displacement_mean_mm"] > 0.1
    assert np.isfinite([value for value in metrics.values() if isinstance(value, int | float)]).all()
    assert None not in metrics.values()
    rows = rows_of(folder / "sweep.csv")
    assert [row["lambda"] for row in rows] == [0, 0.5, 1]
    assert np.isfinite([list(row.values()) for row in rows]).all()
    assert len({row["displacement_mean_mm"] for row in rows}) == 3
    reference = nib.load(next((slices.parent / "images").iterdir()))
    assert nib.load(folder / "sweep_warped.nii.gz").shape == (*reference.shape, 3)


def test_the_value_of_a_sweep_is_that_of_a_registration(slices, hyper_weights, tmp_path):
    _, swept = with_hyper(slices, tmp_path / "swept", hyper_weights, "--hyper", 0.2, "--sweep", 3)
    _, plain = with_hyper(slices, tmp_path / "plain", hyper_weights, "--hyper", 0.5)
    row, metrics = rows_of(swept / "sweep.csv")[1], json.loads((plain / "metrics.json").read_text())
    both = row.keys() & metrics.keys()
    assert {"lambda", "ncc_after", "sd_log_jacobian"} <= both
    assert {key: row[key] for key in both} == pytest.approx({key: metrics[key] for key in both}, rel=1e-4)
    images = [np.asarray(nib.load(path).dataobj) for path in (swept / "sweep_warped.nii.gz", plain / "warped.nii.gz")]
    np.testing.assert_allclose(images[0][..., 1], images[1], atol=1e-4)
    assert not [path.name for path in plain.iterdir() if path.name.startswith("sweep")]


def test_auto_chooses_a_lambda_for_the_pair(slices, hyper_weights, tmp_path):
    message, folder = with_hyper(slices, tmp_path, hyper_weights, "--hyper", "auto")
    assert message is None
    chosen = json.loads((folder / "metrics.json").read_text())["lambda"]
    assert 0 < chosen < 1
    assert abs(chosen - 0.3) > 0.01  # where the search starts


def test_lambda_weighs_the_refinement_too(slices, tmp_path):
    """Without a network it is all that lambda does."""
    pair = json.loads(slices.read_text())["validation_pairs"][0]
    words = ["optimize", *[slices.parent / pair[key] for key in ("moving", "fixed")], "--bundle", "hypermorph"]
    words += ["--affine", "none"]
    spread = []
    for value in (0.05, 0.95):
        assert run(*words, "-o", tmp_path / f"{value}", "--hyper", value, "--iterations", "[10,10,10]") is None
        (path,) = (tmp_path / f"{value}").glob("*/metrics.json")
        metrics = json.loads(path.read_text())
        assert metrics["lambda"] == pytest.approx(value)
        spread.append(metrics["sd_log_jacobian"])
    assert spread[1] < 0.5 * spread[0]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--hyper", 1.5], "expected hyper-parameters in [0, 1], got 1.5"),
        (["--hyper", "much"], "or 'auto' (with a criterion) for hyper, got 'much'"),
        (["--hyper", "0.1,0.2"], "expected 1 hyper-parameters for each image, got values of shape [1, 2]"),
        (["--hyper"], "--hyper needs a number, for instance --hyper 0.3"),
        (["--sweep"], "--sweep needs a number"),
        (["--sweep", 1], "expected a sweep of at least 2 values, or 0 for none, got 1"),
        (["--bundle", "voxelmorph", "--hyper", 0.3], "voxelmorph has no setting 'hyper'; hypermorph has"),
        (["--bundle", "voxelmorph", "--sweep", 5], "voxelmorph has no setting 'sweep'; hypermorph has"),
    ],
)
def test_wrong_hyper_parameters_are_refused_in_one_line(slices, hyper_weights, tmp_path, words, part):
    message, folder = with_hyper(slices, tmp_path, hyper_weights, *words)
    assert message.startswith("morphzoo: error: ")
    assert part in message
    assert "\n" not in message
    assert folder is None


def test_evaluation_takes_a_lambda_and_a_sweep(slices, hyper_weights, tmp_path, capsys):
    words = ["evaluate", slices, "-o", tmp_path, "--bundle", "hypermorph", "--weights", hyper_weights]
    assert run(*words, "--affine", "none", "--optimize", 0, "--hyper", 0.7, "--sweep", 2) is None
    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert summary["num_pairs"] == 2
    assert summary["summary"]["lambda"] == {"mean": pytest.approx(0.7), "sd": 0, "n": 2}
    assert "lambda " in capsys.readouterr().out
    for folder in (path for path in tmp_path.iterdir() if path.is_dir()):
        assert {path.name for path in folder.glob("sweep*")} == {"sweep.csv", "sweep_structures.csv"}


def test_evaluation_refuses_a_lambda_without_number(slices, hyper_weights, tmp_path):
    words = ["evaluate", slices, "-o", tmp_path, "--bundle", "hypermorph", "--weights", hyper_weights]
    assert "error: " in str(run(*words, "--hyper"))


def test_demo_takes_a_lambda(tmp_path, monkeypatch, capsys):
    pair = phantom_pair((40, 44, 36), seed=1, amplitude=0.0)
    tissues = torch.cat([(pair["label_fixed"] == label).float() for label in (1, 2)], 1)
    monkeypatch.setattr(subjects, "load_template", lambda: (pair["fixed"], tissues, np.diag([2.0, 2.0, 2.0, 1.0])))
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(find_bundle("hypermorph") / "configs" / "inference.json"))
    torch.save(parser.get_parsed_content("network_def").state_dict(), tmp_path / "model.pt")
    words = ["demo", "-o", tmp_path, "--bundle", "hypermorph", "--weights", tmp_path / "model.pt", "--optimize", 0]
    assert run(*words, "--affine", "none", "--hyper", 0.4) is None
    (path,) = tmp_path.glob("*/demo.json")
    assert json.loads(path.read_text())["lambda"] == pytest.approx(0.4)
    assert "error against the known deformation" in capsys.readouterr().out
