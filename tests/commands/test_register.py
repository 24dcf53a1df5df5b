"""Pairs are registered with and without a network."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from support import run

import custom_components as mz
from custom_components.commands.bundles import DEFAULT_BUNDLE, bundles_folder, find_bundle
from custom_components.evaluation.overlap import mean_dice
from custom_components.inference.refinement import PairwiseOptimizer
from custom_components.space import load_labels, read_affine_transform, volumes


def test_a_pair_is_registered_without_a_network(registered):
    metrics = json.loads((registered / "metrics.json").read_text())
    assert metrics["dice_after"] > metrics["dice_before"] + 0.05
    assert metrics["folding_percent"] < 0.1
    for name in (
        "warped.nii.gz",
        "warped_label.nii.gz",
        "forward_field.nii.gz",
        "inverse_field.nii.gz",
        "jacobian.nii.gz",
    ):
        assert (registered / name).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["svf", "lddmm", "vsvf", "ddf", "bspline", "demons", "flow"])
def test_other_models_register_without_a_network(model, scans, tmp_path):
    (moving, label_moving), (fixed, label_fixed) = scans[:2]
    words = ["optimize", moving, fixed, "-o", tmp_path, "--label_moving", label_moving, "--label_fixed", label_fixed]
    assert run(*words, "--model", model, "--iterations", "[10,10,5]", "--affine", "none") is None
    (path,) = tmp_path.glob("*/metrics.json")
    metrics = json.loads(path.read_text())
    assert metrics["dice_after"] > metrics["dice_before"] + 0.05
    assert metrics["folding_percent"] < 0.1


@pytest.mark.slow
def test_a_bundle_of_several_steps_is_optimised_without_its_network(scans, tmp_path):
    (moving, label_moving), (fixed, label_fixed) = scans[:2]
    words = ["optimize", moving, fixed, "-o", tmp_path, "--label_moving", label_moving, "--label_fixed", label_fixed]
    assert run(*words, "--bundle", "avsm", "--iterations", "[10,10,5]", "--affine", "none") is None
    (path,) = tmp_path.glob("*/metrics.json")
    metrics = json.loads(path.read_text())
    assert metrics["dice_after"] > metrics["dice_before"] + 0.05


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["avsm", "rdmm", "metric_learning"])
def test_another_model_is_optimised_once_with_both_masks_whatever_the_bundles_steps(
    bundle, scans, tmp_path, monkeypatch
):
    """The model's integration steps are not the bundle's number of steps, and no mask is lost on the way."""
    optimized, calls = PairwiseOptimizer.__call__, []

    def recorded(self, moving, fixed, parameters=None, masks=None, **options):
        calls.append((type(options["deformation"]).__name__, sorted(masks)))
        return optimized(self, moving, fixed, parameters, masks, **options)

    monkeypatch.setattr(PairwiseOptimizer, "__call__", recorded)
    (moving, label_moving), (fixed, label_fixed) = scans[:2]
    words = ["optimize", moving, fixed, "-o", tmp_path, "--mask_moving", label_moving, "--mask_fixed", label_fixed]
    words += ["--bundle", bundle, "--model", "lddmm", "--integration_steps", 3, "--iterations", "[1,1,1]"]
    assert run(*words, "--affine", "none") is None
    assert calls == [("VectorMomentum", ["mask_fixed", "mask_moving"])]


@pytest.mark.slow
def test_time_dependent_lddmm_registers(scans, tmp_path):
    (moving, label_moving), (fixed, label_fixed) = scans[:2]
    words = ["optimize", moving, fixed, "-o", tmp_path, "--label_moving", label_moving, "--label_fixed", label_fixed]
    words += ["--model", "lddmm", "--relaxation", "--integration_steps", 5, "--iterations", "[20,20,10]"]
    assert run(*words, "--affine", "none") is None
    (path,) = tmp_path.glob("*/metrics.json")
    metrics = json.loads(path.read_text())
    assert metrics["dice_after"] > metrics["dice_before"] + 0.05
    assert metrics["folding_percent"] < 0.1


def test_relaxation_is_of_lddmm_alone(scans, tmp_path):
    message = run("optimize", scans[0][0], scans[1][0], "-o", tmp_path, "--model", "svf", "--relaxation")
    assert message.endswith("--relaxation is another way to find the velocities of --model lddmm, not of svf")


def test_an_unknown_model_is_refused(scans, tmp_path):
    message = run("optimize", scans[0][0], scans[1][0], "-o", tmp_path, "--model", "syn")
    assert message == (
        "morphzoo: error: there is no model 'syn'; there are svf, lddmm, vsvf, ddf, bspline, demons, flow"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--optimize", 5], "--optimize has no meaning here (--iterations has)"),
        (["--model", "lddmm", "--hyper", 0.3], "--hyper has no meaning here (--iterations has)"),
        (["--bundle", "hypermorph", "--hyper", "auto"], "which --hyper auto needs: give a number"),
    ],
    ids=["optimize", "hyper", "auto"],
)
def test_settings_of_networks_mean_nothing_without_one(words, said, scans, tmp_path):
    message = run("optimize", scans[0][0], scans[1][0], "-o", tmp_path, *words)
    assert message.startswith("morphzoo: error: optimize uses no network")
    assert message.endswith(said)


def test_a_saved_transform_applies_to_images_labels_and_points(scans, registered, tmp_path):
    (moving, label_moving), (fixed, _) = scans[:2]
    field = registered / "forward_field.nii.gz"
    for source, name in ((moving, "warped.nii.gz"), (label_moving, "warped_label.nii.gz")):
        assert run("apply", field, source, tmp_path / name, "--reference", fixed) is None
        ours, saved = (np.asarray(nib.load(p / name).dataobj) for p in (tmp_path, registered))
        np.testing.assert_allclose(ours, saved, atol=1e-3 * np.abs(saved).max())
    points = tmp_path / "points.csv"
    points.write_text("name,x,y,z\na,1.0,2.0,3.0\nb,-4.0,0.0,2.0\n")
    assert run("apply", field, points, tmp_path / "moved.csv") is None
    assert run("apply", registered / "inverse_field.nii.gz", tmp_path / "moved.csv", tmp_path / "back.csv") is None
    rows = [line.split(",") for line in (tmp_path / "back.csv").read_text().splitlines()]
    assert rows[0] == ["name", "x", "y", "z"]
    error = np.array([[float(v) for v in r[1:]] for r in rows[1:]]) - [[1, 2, 3], [-4, 0, 2]]
    assert np.abs(error).mean() < 0.2  # mm: a tenth of a voxel


def test_apply_takes_series_blank_references_and_names_of_other_tools(scans, registered, tmp_path):
    """Frames, labels with a scale factor, a blank reference; wrong words are refused before any writing."""
    (moving, label), (fixed, _) = scans[:2]
    field, out = registered / "forward_field.nii.gz", tmp_path / "out.nii.gz"
    image, grid = nib.load(moving), nib.load(fixed)
    frames = nib.Nifti1Image(np.stack([image.get_fdata(dtype="f4")] * 2, -1), image.affine)
    frames.header.set_zooms([*frames.header.get_zooms()[:3], 2.5])
    frames.header.set_xyzt_units("mm", "sec")
    frames.header.set_intent("estimate", name="bold")
    nib.save(frames, tmp_path / "series.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(grid.shape, "f4"), grid.affine), tmp_path / "blank.nii.gz")
    assert run("apply", field, tmp_path / "series.nii.gz", out, "--reference", tmp_path / "blank.nii.gz") is None
    moved, saved = nib.load(out), nib.load(registered / "warped.nii.gz").get_fdata()
    assert moved.header.get_zooms()[3] == 2.5
    assert moved.header.get_xyzt_units() == ("mm", "sec")
    assert moved.header.get_intent() == ("estimate", (), "bold")
    for frame in range(2):
        np.testing.assert_allclose(moved.get_fdata()[..., frame], saved, atol=1e-3 * np.abs(saved).max())

    labels = nib.Nifti1Image(nib.load(label).get_fdata(), image.affine)
    labels.set_data_dtype(np.int16)  # with a scale factor
    nib.save(labels, tmp_path / "scaled.nii.gz")
    for words in ([], ["--interpolation", "nearestNeighbor"]):
        assert run("apply", field, tmp_path / "scaled.nii.gz", out, "--reference", fixed, *words) is None
        moved = nib.load(out)
        assert moved.get_data_dtype() == np.int16
        assert np.array_equal(moved.dataobj, nib.load(registered / "warped_label.nii.gz").dataobj)

    out.unlink()
    assert "expected an interpolation among" in run(
        "apply", field, label, out, "--reference", fixed, "--interpolation", "x"
    )
    assert "--reference" in run("apply", field, label, out)
    assert not out.exists()


def test_the_shipped_weights_register_a_pair(scans, tmp_path):
    weights = find_bundle(DEFAULT_BUNDLE) / "models" / "model.pt"
    if not weights.is_file():
        pytest.skip("this copy has no weights")
    (moving, label_moving), (fixed, label_fixed) = scans[:2]
    words = ["register", moving, fixed, "-o", tmp_path, "--label_moving", label_moving, "--optimize", 10]
    assert run(*words) is None
    folder = next(path for path in tmp_path.iterdir() if path.is_dir())
    after = mean_dice(load_labels(folder / "warped_label.nii.gz").data[None], load_labels(label_fixed).data[None])
    before = mean_dice(load_labels(label_moving).data[None], load_labels(label_fixed).data[None])
    assert after > before


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["avsm", "voxelmorph"])
def test_the_learned_affine_aligns_a_pair_for_any_bundle(bundle, scans, tmp_path):
    """Equal images whose headers are 60 mm apart: the map is that shift, found by the shipped network."""
    if not (find_bundle("avsm") / "models" / "affine.pt").is_file():
        pytest.skip("this copy has no weights")
    fixed = nib.load(scans[0][0])
    shifted = fixed.affine.copy()
    shifted[:3, 3] += [60, -20, 35]
    nib.save(nib.Nifti1Image(np.asarray(fixed.dataobj), shifted), tmp_path / "moving.nii.gz")
    words = ["--bundle", bundle, "--affine", "learned", "--optimize", 0]
    if bundle == "avsm":
        words += ["--overlay", find_bundle("avsm").parent / "overlays" / "training_free.json"]
        words += ["--iterations", "[1,1,1]"]
    assert run("register", tmp_path / "moving.nii.gz", scans[0][0], "-o", tmp_path / "out", *words) is None
    folder = next(path for path in (tmp_path / "out").iterdir() if path.is_dir())
    matrix = read_affine_transform(str(folder / "affine.tfm"))
    np.testing.assert_allclose(matrix[:3, 3], [60, -20, 35], atol=0.5)
    np.testing.assert_allclose(matrix[:3, :3], np.eye(3), atol=0.02)


@pytest.fixture(scope="module")
def uncertain_weights(tmp_path_factory):
    """An untrained probabilistic network: almost no motion, velocities that vary by a voxel."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(find_bundle("voxelmorph_probabilistic") / "configs" / "inference.json"))
    torch.manual_seed(0)
    weights = parser.get_parsed_content("network_def").state_dict()
    weights["log_variance.0.bias"].zero_()
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(weights, path)
    return path


def probabilistic(scans, output, weights, *words):
    (moving, label_moving), (fixed, label_fixed) = scans[:2]
    common = ["register", moving, fixed, "-o", output, "--label_moving", label_moving, "--label_fixed", label_fixed]
    common += ["--bundle", "voxelmorph_probabilistic", "--weights", weights, "--affine", "none", "--spacing", 4.0]
    common += ["--optimize", 0]
    message = run(*common, *words)
    folders = [path for path in output.iterdir() if path.is_dir()] if output.is_dir() else []
    return message, folders[0] if folders else None


def test_samples_of_a_probabilistic_bundle_are_written_and_summarised(scans, uncertain_weights, tmp_path, capsys):
    message, folder = probabilistic(scans, tmp_path, uncertain_weights, "--samples", 2)
    assert message is None
    names = {path.name for path in folder.iterdir()}
    assert {"displacement_sd.nii.gz", "velocity_sd.nii.gz", "label_entropy.nii.gz", "uncertainty.png"} <= names
    samples = {f"sample_{i:02d}_{kind}.nii.gz" for i in (1, 2) for kind in ("warped", "field")}
    assert {name for name in names if name.startswith("sample")} == samples
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["samples"] == 2
    # The image's grid is twice as fine as the velocity's, and has voxels of 4 mm.
    assert metrics["velocity_sd_mm"] == pytest.approx(2 * 4 * 3**0.5, rel=0.2)
    assert metrics["displacement_mean_mm"] < 0.1 < 1 < metrics["displacement_sd_mm"]
    assert 0 < metrics["label_entropy"] < np.log(2)
    shown = capsys.readouterr().out
    assert f"mean uncertainty (SD of the displacement), mm {metrics['displacement_sd_mm']:8.4f}" in shown
    assert "folding of the samples, %" in shown
    reference = nib.load(scans[1][0])
    assert nib.load(folder / "label_entropy.nii.gz").shape == reference.shape
    assert nib.load(folder / "jacobian.nii.gz").shape == reference.shape
    assert nib.load(folder / "displacement_sd.nii.gz").shape != reference.shape


def test_without_samples_a_probabilistic_bundle_registers_as_any_other(scans, uncertain_weights, tmp_path, capsys):
    message, folder = probabilistic(scans, tmp_path, uncertain_weights)
    assert message is None
    assert not [path.name for path in folder.iterdir() if path.name.startswith(("sample", "uncertainty"))]
    assert "samples" not in json.loads((folder / "metrics.json").read_text())
    assert "uncertainty" not in capsys.readouterr().out


def test_fewer_than_no_samples_are_refused_in_one_line(scans, uncertain_weights, tmp_path):
    message, folder = probabilistic(scans, tmp_path, uncertain_weights, "--samples", -1)
    assert message.startswith("morphzoo: error: ")
    assert "-1 samples" in message
    assert "\n" not in message
    assert folder is None


def test_in_python_the_result_is_a_value_and_nothing_is_printed(scans, tmp_path, capsys):
    (moving, label_moving), (fixed, label_fixed) = scans[:2]
    labels = {"label_moving": label_moving, "label_fixed": label_fixed}
    settings = {"iterations": [2, 2, 2], "affine": "none"}
    result = mz.optimize(str(moving), str(fixed), str(tmp_path), **labels, **settings)
    assert capsys.readouterr().out == ""
    assert result.folder == tmp_path / f"{fixed.name.partition('.')[0]}__{moving.name.partition('.')[0]}"
    assert json.loads(result.files["metrics"].read_text()) == result.metrics
    np.testing.assert_allclose(result.warped.affine, nib.load(fixed).affine, atol=1e-4)
    assert result.ddf.shape[0] == 3
    assert f"mean Dice of the labels {result.metrics['dice_before']:29.4f}" in str(result)


def test_the_command_line_prints_the_summary_alone(scans, tmp_path, capsys):
    words = ["optimize", scans[0][0], scans[1][0], "-o", tmp_path, "--iterations", "[1,1,1]", "--affine", "none"]
    assert run(*words) is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("correlation with the fixed image")
    assert lines[-1].startswith(f"results in {tmp_path}")
    assert len(lines) <= 9


def test_the_dimension_is_found_in_the_header_alone(scans, tmp_path, monkeypatch):
    read = []
    original = volumes._read_volume
    monkeypatch.setattr(volumes, "_read_volume", lambda path: read.append(Path(path).name) or original(path))
    words = ["--iterations", "[1,1,1]", "--affine", "none", "--label_moving", scans[0][1], "--label_fixed", scans[1][1]]
    assert run("optimize", scans[0][0], scans[1][0], "-o", tmp_path, *words) is None
    assert len(read) == 4


def test_a_quality_goes_with_no_number_of_iterations(scans):
    (moving, _), (fixed, _) = scans[:2]
    with pytest.raises(ValueError, match="--quality says how many iterations"):
        mz.register(moving, fixed, quality="best", optimize=3)
    with pytest.raises(ValueError, match="expected fast or default or best"):
        mz.register(moving, fixed, quality="superb")
    with pytest.raises(ValueError, match="optimize uses no network: --quality"):
        mz.optimize(moving, fixed, quality="best")
    same_person = bundles_folder() / "overlays" / "same_person.json"
    with pytest.raises(ValueError, match="and so does --overlay"):
        mz.register(moving, fixed, quality="best", overlay=[str(same_person)])
    with pytest.raises(ValueError, match="rdmm has no --quality"):
        mz.register(moving, fixed, bundle="rdmm", quality="best")
