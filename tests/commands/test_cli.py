"""The `morphzoo` command: one line for each error, exit code not 0, nothing half-written, earlier results untouched."""

import csv
import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from support import run

from custom_components.commands import demo
from custom_components.commands.workflow import DEFAULT_BUNDLE, bundles_folder, find_bundle
from custom_components.data.phantoms import phantom_pair, write_phantom_scans
from custom_components.evaluation.overlap import mean_dice
from custom_components.space import load_labels, read_affine_transform


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two phantoms with labels, as (image, label) paths each."""
    folder = tmp_path_factory.mktemp("scans")
    path = write_phantom_scans(folder, n=3, size=(40, 36, 32), spacing_mm=2.0, num_validation=1)
    items = [item for section in ("training", "validation") for item in json.loads(Path(path).read_text())[section]]
    return [(Path(path).parent / item["image"], Path(path).parent / item["label"]) for item in items]


@pytest.fixture(scope="module")
def registered(scans, tmp_path_factory):
    """A pair registered without a network."""
    output = tmp_path_factory.mktemp("registered")
    (moving, label_moving), (fixed, label_fixed) = scans[:2]
    words = ["optimize", moving, fixed, "-o", output, "--label_moving", label_moving, "--label_fixed", label_fixed]
    assert run(*words, "--iterations", "[15,15,10]", "--affine", "none") is None
    return next(path for path in output.iterdir() if path.is_dir())


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


@pytest.mark.parametrize("model", ["svf", "lddmm", "vsvf", "ddf"])
def test_other_models_register_without_a_network(model, scans, tmp_path):
    (moving, label_moving), (fixed, label_fixed) = scans[:2]
    words = ["optimize", moving, fixed, "-o", tmp_path, "--label_moving", label_moving, "--label_fixed", label_fixed]
    assert run(*words, "--model", model, "--iterations", "[10,10,5]", "--affine", "none") is None
    (path,) = tmp_path.glob("*/metrics.json")
    metrics = json.loads(path.read_text())
    assert metrics["dice_after"] > metrics["dice_before"] + 0.05
    assert metrics["folding_percent"] < 0.1


def test_a_bundle_of_several_steps_is_optimised_without_its_network(scans, tmp_path):
    (moving, label_moving), (fixed, label_fixed) = scans[:2]
    words = ["optimize", moving, fixed, "-o", tmp_path, "--label_moving", label_moving, "--label_fixed", label_fixed]
    assert run(*words, "--bundle", "avsm", "--iterations", "[10,10,5]", "--affine", "none") is None
    (path,) = tmp_path.glob("*/metrics.json")
    metrics = json.loads(path.read_text())
    assert metrics["dice_after"] > metrics["dice_before"] + 0.05


def test_an_unknown_model_is_refused(scans, tmp_path):
    message = run("optimize", scans[0][0], scans[1][0], "-o", tmp_path, "--model", "demons")
    assert message == "morphzoo: error: there is no model 'demons'; there are svf, lddmm, vsvf, ddf"


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
    assert nib.load(folder / "displacement_sd.nii.gz").shape == nib.load(folder / "forward_field.nii.gz").shape[:3]
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


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """A data list of two 2-D phantoms with labels, each to be registered to the other."""
    return Path(write_phantom_scans(tmp_path_factory.mktemp("slices"), n=4, size=(40, 36)))


@pytest.fixture(scope="module")
def hyper_weights(tmp_path_factory):
    """An untrained 2-D network whose fields move by some voxels, by how many depends on lambda."""
    from monai.bundle import ConfigParser

    configs = [str(find_bundle("hypermorph") / "configs" / f"inference{part}.json") for part in ("", "_2d")]
    network = ConfigParser(ConfigParser.load_config_files(configs)).get_parsed_content("network_def")
    generator = torch.Generator().manual_seed(7)
    weights = network.state_dict()
    for name, value in weights.items():
        if value.ndim > 1:
            size = 1 / value[0].numel() ** 0.5 * (1 if name.endswith("project.weight") else 2**0.5)
            weights[name] = size * torch.randn(value.shape, generator=generator)
    path = tmp_path_factory.mktemp("weights") / "model_2d.pt"
    torch.save(weights, path)
    return path


def with_hyper(slices, output, weights, *words):
    """Register the list's first pair with hypermorph; the exit message and the pair's folder."""
    pair = json.loads(slices.read_text())["validation_pairs"][0]
    paths = {key: slices.parent / pair[key] for key in ("moving", "fixed", "label_moving", "label_fixed")}
    common = ["register", paths.pop("moving"), paths.pop("fixed"), "-o", output, "--bundle", "hypermorph"]
    common += ["--weights", weights, *[word for key, path in paths.items() for word in (f"--{key}", path)]]
    message = run(*common, *words)
    folders = [path for path in output.iterdir() if path.is_dir()] if output.is_dir() else []
    return message, folders[0] if folders else None


def rows_of(path):
    """Rows of a CSV file of numbers."""
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


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
        (["--bundle", "voxelmorph", "--hyper", 0.3], "voxelmorph has no hyper-parameter; --bundle hypermorph has"),
        (["--bundle", "voxelmorph", "--sweep", 5], "voxelmorph has no hyper-parameter; --bundle hypermorph has"),
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
    assert run(*words, "--hyper", 0.7, "--sweep", 2) is None
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
    monkeypatch.setattr(demo, "load_template", lambda: (pair["fixed"], tissues, np.diag([2.0, 2.0, 2.0, 1.0])))
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(find_bundle("hypermorph") / "configs" / "inference.json"))
    torch.save(parser.get_parsed_content("network_def").state_dict(), tmp_path / "model.pt")
    words = ["demo", "-o", tmp_path, "--bundle", "hypermorph", "--weights", tmp_path / "model.pt", "--optimize", 0]
    assert run(*words, "--hyper", 0.4) is None
    (path,) = tmp_path.glob("*/demo.json")
    assert json.loads(path.read_text())["lambda"] == pytest.approx(0.4)
    assert "error against the known deformation" in capsys.readouterr().out


def tune(slices, weights, output, *words):
    common = ["tune", slices, "-o", output, "--weights", weights, "--iterations", 4, "--sweep", 5]
    return run(*common, *words)


def test_tuning_writes_what_it_found_and_prints_it(slices, hyper_weights, tmp_path, capsys):
    assert tune(slices, hyper_weights, tmp_path) is None
    assert {path.name for path in tmp_path.iterdir()} == {"tuned.json", "tuning.csv", "sweep.csv", "structures.csv"}
    tuned = json.loads((tmp_path / "tuned.json").read_text())
    assert (tuned["criterion"], tuned["pairs"], tuned["iterations"]) == ("labels", 2, 4)
    assert 0 < tuned["lambda"] < 1
    shown = capsys.readouterr().out
    assert f"lambda       {tuned['lambda']:.3f}\n" in shown
    assert f"use it with --hyper {round(tuned['lambda'], 4)}; results in {tmp_path}" in shown
    history = rows_of(tmp_path / "tuning.csv")
    assert len(history) == 4
    assert history[0]["lambda"] == pytest.approx(0.3)
    sweep, structures = rows_of(tmp_path / "sweep.csv"), rows_of(tmp_path / "structures.csv")
    assert [row["lambda"] for row in sweep] == [0, 0.25, 0.5, 0.75, 1]
    assert sweep[0].keys() == {"lambda", "dice", "dice_1", "dice_2", "dice_3", "dice_4"}
    for row in sweep:
        assert row["dice"] == pytest.approx(np.mean([row[f"dice_{label}"] for label in (1, 2, 3, 4)]), rel=1e-4)
    assert [row["label"] for row in structures] == [1, 2, 3, 4]
    for row in structures:
        best = max(sweep, key=lambda line: line[f"dice_{int(row['label'])}"])
        assert (row["lambda"], row["dice"]) == (best["lambda"], best[f"dice_{int(row['label'])}"])
    assert len({row["lambda"] for row in structures}) > 1
    assert np.mean([row["dice_tuned"] for row in structures]) == pytest.approx(tuned["dice"], rel=1e-4)


def test_tuned_value_does_in_an_evaluation_what_tuning_says(slices, hyper_weights, tmp_path):
    """Tables of tuning are on the model grid, here the scans' own."""
    assert tune(slices, hyper_weights, tmp_path / "tuned") is None
    tuned = json.loads((tmp_path / "tuned" / "tuned.json").read_text())
    words = ["evaluate", slices, "-o", tmp_path / "out", "--bundle", "hypermorph", "--weights", hyper_weights]
    assert run(*words, "--hyper", tuned["lambda"]) is None
    evaluated = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert evaluated["summary"]["dice_after"]["mean"] == pytest.approx(tuned["dice"], abs=0.01)


@pytest.mark.parametrize("criterion", ["auto", "regularity"])
def test_tuning_by_regularity_needs_no_labels(slices, hyper_weights, tmp_path, criterion):
    pairs = json.loads(slices.read_text())["validation_pairs"]
    (tmp_path / "list.json").write_text(
        json.dumps({"validation_pairs": [{key: pair[key] for key in ("moving", "fixed")} for pair in pairs]})
    )
    words = ["--dataset_dir", slices.parent, "--criterion", criterion]
    assert tune(tmp_path / "list.json", hyper_weights, tmp_path / "out", *words) is None
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"tuned.json", "tuning.csv"}
    assert json.loads((tmp_path / "out" / "tuned.json").read_text())["criterion"] == "regularity"
    message = tune(tmp_path / "list.json", hyper_weights, tmp_path / "out", *words[:-1], "labels")
    assert "needs a moving and a fixed label map of every pair" in message


def test_labels_are_only_looked_at_when_tuning_by_regularity(slices, hyper_weights, tmp_path):
    found = {}
    for criterion in ("labels", "regularity"):
        assert tune(slices, hyper_weights, tmp_path / criterion, "--criterion", criterion) is None
        assert json.loads((tmp_path / criterion / "tuned.json").read_text())["criterion"] == criterion
        found[criterion] = rows_of(tmp_path / criterion / "tuning.csv")[0]
    assert found["labels"]["lambda"] == found["regularity"]["lambda"]
    assert found["labels"]["criterion"] != found["regularity"]["criterion"]
    sweeps = [(tmp_path / criterion / "sweep.csv").read_text() for criterion in found]
    assert sweeps[0] == sweeps[1]


@pytest.mark.parametrize(("labels", "ids"), [("[2,3]", [2, 3]), ("3", [3])])
def test_tuning_counts_the_labels_asked_for(slices, hyper_weights, tmp_path, labels, ids):
    assert tune(slices, hyper_weights, tmp_path, "--labels", labels) is None
    assert [row["label"] for row in rows_of(tmp_path / "structures.csv")] == ids


def test_tables_of_an_earlier_tuning_are_not_left_beside_another(slices, hyper_weights, tmp_path):
    assert tune(slices, hyper_weights, tmp_path) is None
    assert tune(slices, hyper_weights, tmp_path, "--sweep", 0) is None
    assert {path.name for path in tmp_path.iterdir()} == {"tuned.json", "tuning.csv"}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--criterion", "nonsense"], "expected criterion auto, labels"),
        (["--bundle", "voxelmorph"], "voxelmorph has no hyper-parameter; --bundle hypermorph has"),
    ],
)
def test_wrong_tuning_is_refused_in_one_line(slices, hyper_weights, tmp_path, words, part):
    message = tune(slices, hyper_weights, tmp_path, *words)
    assert message.startswith("morphzoo: error: ")
    assert part in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


def test_evaluation_of_a_list_writes_a_table(scans, tmp_path):
    (moving, label_moving), (fixed, label_fixed) = scans[:2]
    pair = {
        "moving": str(moving),
        "fixed": str(fixed),
        "label_moving": str(label_moving),
        "label_fixed": str(label_fixed),
    }
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"validation_pairs": [{**pair, "id": "one"}, {**pair, "id": "two"}]}))
    overlay = bundles_folder() / "overlays" / "training_free.json"
    assert (
        run(
            "evaluate",
            path,
            "-o",
            tmp_path / "out",
            "--overlay",
            overlay,
            "--iterations",
            "[2,2,2]",
            "--affine",
            "none",
        )
        is None
    )
    assert {"metrics.csv", "metrics.json", "index.html"} <= {p.name for p in (tmp_path / "out").iterdir()}


def bad_files(folder, good):
    image = nib.load(good)
    data = np.asarray(image.dataobj, dtype=np.float32)

    def save(name, array):
        nib.save(nib.Nifti1Image(array, image.affine), folder / name)
        return folder / name

    truncated = folder / "truncated.nii.gz"
    truncated.write_bytes(
        gzip.compress(good.read_bytes() if good.suffix != ".gz" else gzip.decompress(good.read_bytes()))[:2000]
    )
    with_nan = data.copy()
    with_nan[3, 3, 3] = np.nan
    return {
        "missing": folder / "missing.nii.gz",
        "truncated": truncated,
        "four-dimensional": save("four.nii.gz", np.stack([data, data], -1)),
        "not finite": save("nan.nii.gz", with_nan),
        "constant": save("constant.nii.gz", np.ones_like(data)),
    }


@pytest.mark.parametrize("kind", ["missing", "truncated", "four-dimensional", "not finite", "constant"])
def test_bad_images_are_named_in_one_line(kind, scans, tmp_path):
    bad = bad_files(tmp_path, scans[0][0])[kind]
    out = tmp_path / "out"
    message = run("register", bad, scans[1][0], "-o", out)
    assert message.startswith("morphzoo: error: ")
    assert "\n" not in message
    assert bad.name in message
    assert not list(out.glob("*/*"))


def test_a_failing_run_leaves_earlier_results_alone(registered, scans, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in registered.iterdir()}
    bad = tmp_path / scans[0][0].name  # the same name: the same result folder
    bad.write_bytes(b"no image")
    assert "error" in run("optimize", bad, scans[1][0], "-o", registered.parent)
    assert before == {path.name: path.stat().st_mtime_ns for path in registered.iterdir()}


def test_labels_of_another_size_without_a_frame_are_refused(scans, tmp_path):
    label = nib.Nifti1Image(np.ones((5, 6, 7), np.uint8), None)
    label.header.set_qform(None, code=0)
    label.header.set_sform(None, code=0)
    nib.save(label, tmp_path / "label.nii.gz")
    message = run(
        "optimize", scans[0][0], scans[1][0], "-o", tmp_path / "out", "--label_moving", tmp_path / "label.nii.gz"
    )
    assert "label.nii.gz" in message


def test_a_checkpoint_of_another_architecture_is_named(scans, tmp_path):
    torch.save({"encoder.weight": torch.zeros(3)}, tmp_path / "other.pt")
    message = run("register", scans[0][0], scans[1][0], "-o", tmp_path / "out", "--weights", tmp_path / "other.pt")
    assert message.startswith("morphzoo: error: ")
    assert "other.pt" in message


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--bundle", "nosuch"], "there is no bundle 'nosuch'; there are avsm, conditional_atlas, hypermorph"),
        (["--max_epcohs", "3"], "no setting 'max_epcohs'"),
        (
            ["--bundle", "voxelmorph", "--samples", "2"],
            "error: voxelmorph has no uncertainty to sample; --bundle voxelmorph_probabilistic has",
        ),
        (["--weights", "nowhere.pt"], "nowhere.pt"),
    ],
)
def test_wrong_settings_are_named(words, part, scans, tmp_path):
    assert part in run("register", scans[0][0], scans[1][0], "-o", tmp_path / "out", *words)


def test_an_empty_list_is_named(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps({"validation_pairs": []}))
    assert "list.json" in run("evaluate", tmp_path / "list.json", "-o", tmp_path / "out")


def test_an_output_folder_that_cannot_be_made_is_named(scans, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot make the output folder" in run("register", scans[0][0], scans[1][0], "-o", tmp_path / "file" / "out")


def test_points_without_coordinates_are_named(registered, tmp_path):
    (tmp_path / "p.csv").write_text("a,b\n1,2\n")
    assert "p.csv" in run("apply", registered / "forward_field.nii.gz", tmp_path / "p.csv", tmp_path / "q.csv")
    assert not (tmp_path / "q.csv").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["nothing"], "there is no bundle 'nothing'"),
        (["voxelmorph", "--for", "slicer"], "export takes --for monai-label"),
        (["voxelmorph", "--zipp"], "and no 'zipp'"),
        (["voxelmorph", "--atlas", "atlas.nii.gz"], "an atlas is for --for monai-label"),
        (["voxelmorph", "--zip", "out"], "--zip takes no value"),
        (["voxelmorph", "--for", "monai-label"], "needs --atlas IMAGE and --atlas-labels LABELS"),
    ],
)
def test_wrong_exports_are_refused_in_one_line(words, part, tmp_path):
    message = run("export", *words, "-o", tmp_path / "out")
    assert part in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


def test_export_prints_what_it_wrote(tmp_path, capsys):
    assert run("export", "voxelmorph", "-o", tmp_path, "--zip") is None
    written = capsys.readouterr().out.split()
    assert [Path(path).suffix for path in written] == ["", ".zip", ".sha256"]
    assert all(Path(path).exists() for path in written)
