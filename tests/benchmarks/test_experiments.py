"""The scripts of the papers' experiments: what they measure and how they sum up."""

import ast
import csv
import importlib.util
import json
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from custom_components.data.lists import load_list
from custom_components.data.phantoms import write_phantom_scans
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import warp
from custom_components.methods.quicksilver.network import QuicksilverNetwork, load_predictor
from custom_components.methods.rdmm.networks import MetricNetwork
from custom_components.networks.momentum_net import MomentumNetwork
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet

REPOSITORY = Path(__file__).resolve().parents[2]
BUNDLES = REPOSITORY / "bundles"
WIDE = {"encoder_channels": [32, 64, 64, 64], "decoder_channels": [64, 64, 64, 64, 64, 32, 32]}


def script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# What the scripts share

experiments = script(REPOSITORY / "benchmarks" / "experiments.py")


@pytest.fixture
def commands(monkeypatch):
    """The commands that would have been run."""
    seen = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: seen.append(command))
    return seen


def test_training_runs_the_bundle_with_its_settings_to_the_last_step(tmp_path, commands):
    settings = {"size": [32, 32], "labels": [1, 2]}
    experiments.train("hypermorph", tmp_path / "out", tmp_path, settings, steps=40, batch_size=4)
    (command,) = commands
    given = dict(zip(command[4::2], command[5::2], strict=True))
    assert given["--bundle_root"] == str(BUNDLES / "hypermorph")
    assert given["--data_list"] == str(tmp_path / "datalist.json")
    overlay = json.loads((tmp_path / "out" / "overlay.json").read_text())
    assert ast.literal_eval(given["--config_file"])[-1] == str(tmp_path / "out" / "overlay.json")
    assert overlay == {"num_pairs": 16, "batch_size": 4, "size": [32, 32], "labels": [1, 2]}
    assert given["--max_epochs"] == given["--val_interval"] == str(experiments.EPOCHS)
    assert given["--resume"] == "True"
    # Begun anew where it stopped, with the same settings alone.
    experiments.train("hypermorph", tmp_path / "out", tmp_path, settings, steps=40, batch_size=4)
    assert commands[1] == command


def test_finished_training_is_not_done_again(tmp_path, commands):
    (tmp_path / "model.pt").write_bytes(b"weights")
    for _ in range(2):
        experiments.train("hypermorph", tmp_path, tmp_path, {"size": [32, 32]}, steps=40)
    assert not commands
    assert (tmp_path / "model.pt").read_bytes() == b"weights"


@pytest.mark.parametrize("changed", [{"steps": 50}, {"batch_size": 4}, {"settings": {"size": [32, 48]}}])
def test_training_with_other_settings_is_refused(tmp_path, commands, changed):
    given = {"settings": {"size": [32, 32]}, "steps": 40}
    (tmp_path / "model.pt").write_bytes(b"weights")
    experiments.train("hypermorph", tmp_path, tmp_path, **given)
    before = (tmp_path / "settings.json").read_text()
    with pytest.raises(ValueError, match="holds a training with other settings"):
        experiments.train("hypermorph", tmp_path, tmp_path, **{**given, **changed})
    assert (tmp_path / "settings.json").read_text() == before
    assert not commands


def test_rows_are_names_and_numbers(tmp_path):
    (tmp_path / "rows.csv").write_text("moving,fixed,dice,hd\n01,02,0.5,\n")
    (row,) = experiments.read_rows(tmp_path / "rows.csv")
    assert (row["moving"], row["fixed"], row["dice"]) == ("01", "02", 0.5)
    assert np.isnan(row["hd"])


def test_interval_holds_the_mean_difference():
    people = ["a", "b", "c", "d"]
    pairs = [{"moving": m, "fixed": f} for m in people for f in people if m != f]
    rows = [{**pair, "forward": 0.8 + 0.01 * i} for i, pair in enumerate(pairs)]
    base = [{**pair, "forward": 0.7 + 0.01 * i} for i, pair in enumerate(pairs)]
    assert experiments.interval(rows, base, "forward") == "+0.1000 (+0.1000 to +0.1000)"


# Probabilistic VoxelMorph


@pytest.fixture(scope="module")
def reproduce():
    return script(BUNDLES / "voxelmorph_probabilistic" / "docs" / "reproduce.py")


@pytest.fixture(scope="module")
def measured(reproduce, tmp_path_factory):
    """The folder of two variants of untrained weights, measured on two pairs of phantoms."""
    folder = tmp_path_factory.mktemp("reproduce")
    slices = Path(write_phantom_scans(folder / "slices", 4, (32, 32))).parent
    threads = torch.get_num_threads()
    for name in ("base", "diagonal"):
        torch.manual_seed(0)
        (folder / name).mkdir()
        torch.save(
            VoxelMorphUNet(2, half_resolution=True, log_variance=-1.0, **WIDE).state_dict(), folder / name / "model.pt"
        )
        reproduce.measure(name, folder / name, slices, samples=4, num_pairs=3)
    torch.set_num_threads(threads)
    return folder


def test_every_measure_of_a_variant_is_a_number(reproduce, measured):
    result = json.loads((measured / "base" / "result.json").read_text())
    rows = reproduce.read_rows(measured / "base" / "rows.csv")
    assert result["pairs"] == len(rows) == 2
    assert {"forward", "inverse", "sample_folded", "refined", "refined_own", "white_folded", "sd"} <= result.keys()
    assert result["refined"] > result["unrefined"]  # from a field of nearly zero
    for kind in ("uncertainty", "uncertainty_refined"):
        deviations = result[kind]["bins_sd"]
        assert len(deviations) == len(result[kind]["bins_error"]) == 10
        assert result[kind]["sd_rms"] > 0


def test_tables_compare_each_variant_with_the_base(reproduce, measured):
    results = {name: json.loads((measured / name / "result.json").read_text()) for name in ("base", "diagonal")}
    rows = {name: reproduce.read_rows(measured / name / "rows.csv") for name in results}
    table = reproduce.tables(results, rows)
    assert table.count("| diagonal |") == 3
    reproduce.calibration_picture(measured / "calibration.png", results)
    assert (measured / "calibration.png").stat().st_size > 0


def test_prior_table_has_both_posteriors(reproduce):
    rows = reproduce.prior_table(samples=1).splitlines()[2:]
    assert len(rows) == 8
    assert "| 10.0 | 2.52 | " in rows[-1]


@pytest.mark.parametrize(("people", "chosen"), [(2, ["a", "b"]), (-1, ["d"])])
def test_subset_keeps_whole_people(reproduce, tmp_path, people, chosen):
    scans = [{"image": f"{person}_{i}.nii", "subject": person} for person in "dbca" for i in range(2)]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": scans, "validation": scans[:1]}))
    assert reproduce.subset(tmp_path, tmp_path, None) == tmp_path / "datalist.json"
    folder = tmp_path / "variant"
    folder.mkdir()
    kept = json.loads(reproduce.subset(tmp_path, folder, people).read_text())
    assert sorted({scan["subject"] for scan in kept["training"]}) == chosen
    assert len(kept["training"]) == 2 * len(chosen)
    assert kept["validation"] == scans[:1]


def test_another_setting_does_not_reuse_a_training(reproduce, tmp_path):
    args = type("Args", (), {"output": tmp_path, "slices": tmp_path, "size": "[32, 32]", "steps": 20})
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "settings.json").write_text('{"size": [32, 32], "num_pairs": 80, "batch_size": 8}')
    with pytest.raises(ValueError, match="holds a training with other settings"):
        reproduce.run("base", args)


def test_a_variant_is_trained_on_its_people_and_measured(reproduce, tmp_path, commands):
    args = {"output": tmp_path, "slices": tmp_path, "size": "[32, 32]", "steps": 20, "samples": 4, "pairs": 3}
    scans = [{"image": f"{person}.nii", "subject": person} for person in "dbca"]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": scans, "validation": scans[:1]}))
    reproduce.run("people_2", type("Args", (), args))
    training, measuring = commands
    given = dict(zip(training[4::2], training[5::2], strict=True))
    assert given["--data_list"] == str(tmp_path / "people_2" / "datalist.json")
    overlay = json.loads(Path(ast.literal_eval(given["--config_file"])[-1]).read_text())
    assert (overlay["size"], overlay["num_pairs"]) == ([32, 32], 16)
    assert "--people" not in given
    assert measuring[-6:] == ["--measure", "people_2", "--samples", "4", "--pairs", "3"]


# HyperMorph


@pytest.fixture(scope="module")
def hyper():
    return script(BUNDLES / "hypermorph" / "docs" / "reproduce.py")


@pytest.fixture(scope="module")
def people(hyper, tmp_path_factory):
    """All pairs of four people, whose files begin with their names."""
    path = Path(write_phantom_scans(tmp_path_factory.mktemp("slices"), 6, (32, 32), num_validation=4))
    text = path.read_text()
    for number, name in enumerate("abcd", start=2):
        for folder in ("images", "labels"):
            scan = path.parent / folder / f"phantom_{number:02d}.nii.gz"
            scan.rename(scan.with_name(f"{name}_{folder}.nii.gz"))
            text = text.replace(f"{folder}/{scan.name}", f"{folder}/{name}_{folder}.nii.gz")
    path.write_text(text)
    return hyper.load_pairs(load_list(path, "validation_pairs"))


def save_untrained(hyper, name, folder):
    """Weights of the size that the variant is trained in, whose fields depend on the hyper-parameters."""
    bundle, settings = hyper.VARIANTS[name]
    configs = [str(BUNDLES / bundle / "configs" / f"{part}.json") for part in ("train", "train_2d")]
    parser = ConfigParser(ConfigParser.load_config_files(configs))
    parser.update({**hyper.SIZES, **settings})
    torch.manual_seed(0)
    weights = parser.get_parsed_content("network_def").state_dict()
    for key in weights:
        weights[key] = weights[key] * (2000 if key == "flow.weight" else 5 if "project" in key else 1)
    folder.mkdir(exist_ok=True)
    torch.save(weights, folder / "model.pt")


@pytest.fixture(scope="module")
def results(hyper, people, tmp_path_factory):
    """The folder of four variants measured on three pairs of two people, one of them tuned."""
    folder = tmp_path_factory.mktemp("hyper")
    for name in ("hyper", "plain_0.2", "gamma", "kernels"):
        save_untrained(hyper, name, folder / name)
        hyper.measure(name, folder / name, people[:3])
        (folder / name / "curve.csv").write_text("epoch,iteration,seconds,cpu_seconds\n1,8,3,40\n2,16,6,80\n")
    hyper.tune(folder / "hyper", people)
    return folder


def test_pairs_know_their_people(people):
    assert [pair["people"] for pair in people[:4]] == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "a")]
    assert people[0]["image"].shape == (2, 32, 32)


def test_every_variant_names_a_network(hyper, tmp_path):
    for name in hyper.VARIANTS:
        save_untrained(hyper, name, tmp_path / name)
        network = hyper.network_of(name, tmp_path / name)
        assert not network.training
        if not name.startswith("plain"):
            assert network.num_hyper == hyper.rows_of_hyper(name).shape[1]


def test_plain_weight_is_that_of_the_objective_with_lambda(hyper):
    """(1 - lambda) 5 similarity + lambda smoothness, over the factor of the similarity."""
    bundle, settings = hyper.plain(0.2)
    assert bundle == "voxelmorph"
    assert settings["weight"] == pytest.approx(0.2 / (0.8 * 5))


def test_measures_of_hyper_parameters_are_those_of_their_fields(hyper, people, results):
    rows = hyper.read_rows(results / "hyper" / "rows.csv")
    assert [(row["moving"], row["fixed"]) for row in rows] == [pair["people"] for pair in people[:3]]
    network, pair = hyper.network_of("hyper", results / "hyper"), people[1]
    with torch.no_grad():
        for key in ("0", "0.35", "1"):
            parameters = network(pair["image"][None], torch.tensor([[float(key)]]))
            ddf = StationaryVelocity(7)(parameters, (32, 32))["ddf"]
            warped = warp(pair["label_moving"][None], ddf, mode="nearest")
            dice = float(mean_dice(warped, pair["label_fixed"][None]))
            assert rows[1][f"dice@{key}"] == pytest.approx(dice, rel=1e-4)
    assert len({rows[1][f"sd@{weight:g}"] for weight in hyper.GRID}) == len(hyper.GRID)
    assert np.isfinite([value for row in rows for value in row.values() if not isinstance(value, str)]).all()


def test_columns_of_a_variant_follow_its_hyper_parameters(hyper, results):
    rows = {name: hyper.read_rows(results / name / "rows.csv") for name in ("plain_0.2", "gamma")}
    assert rows["plain_0.2"][0].keys() == {"moving", "fixed", "before", "dice", "folded", "sd"}
    keys = {key.partition("@")[2] for key in rows["gamma"][0] if key.startswith("dice@")}
    assert len(keys) == len(hyper.rows_of_hyper("gamma")) == 11 * len(hyper.GAMMAS)
    assert {"0,0", "0.1,0.2", "1,1"} <= keys


def test_what_was_measured_is_not_measured_again(hyper, people, results, monkeypatch):
    monkeypatch.setattr(hyper, "network_of", None)
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    hyper.measure("hyper", results / "hyper", people)
    hyper.tune(results / "hyper", people)
    assert before == {path: path.stat().st_mtime_ns for path in results.rglob("*")}


def test_tuning_is_judged_on_other_people(hyper, people, results):
    tuned = json.loads((results / "hyper" / "tuned.json").read_text())
    assert tuned["pairs"] == {"tune": 2, "judge": 2}
    assert len(tuned["history"]) == 30
    chosen = {key: value for key, value in tuned.items() if key not in ("pairs", "history")}
    assert all(0 <= weight <= 1 and 0 < dice <= 1 for weight, dice in chosen.values())
    assert {"best", "labels", "regularity 0.5", "each pair, regularity 0.5"} <= chosen.keys()
    assert hyper.halves(["a", "b", "c", "d"]) == {"tune": ["a", "b"], "judge": ["c", "d"]}
    network = hyper.network_of("hyper", results / "hyper")
    judged = [pair for pair in people if set(pair["people"]) == {"c", "d"}]
    with torch.no_grad():
        hyper_row = torch.tensor([[chosen["labels"][0]]])
        fields = [StationaryVelocity(7)(network(p["image"][None], hyper_row), (32, 32))["ddf"] for p in judged]
    dice = np.mean([hyper.dice(ddf, pair) for ddf, pair in zip(fields, judged, strict=True)])
    assert chosen["labels"][1] == pytest.approx(dice, rel=1e-4)


def test_hyper_tables_hold_every_variant_that_was_measured(hyper, results):
    text = hyper.tables(results)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    with (results / "hyper" / "rows.csv").open(newline="") as file:
        mean = np.mean([float(row["dice@0.2"]) for row in csv.DictReader(file)])
    (line,) = [line for line in lines if line[:2] == ["0.2", "hyper"] and len(line) == 5]
    assert line[2] == f"{mean:.4f}"
    assert [line[0] for line in lines if len(line) == 5 and line[1] == "kernels"] == [str(w) for w in hyper.GRID]
    assert [line[0] for line in lines if len(line) == 5 and line[1] == "plain_0.2"] == ["0.2"]
    # Differences where both are there: for the one weight of the plain network.
    assert [line[:2] for line in lines if len(line) == 3 and "(" in line[2]] == [["0.2", "hyper"], ["0.2", "kernels"]]
    assert sum(line.startswith("gamma ") and "gamma 0 at lambda" in line for line in text.splitlines()) == 5
    assert "| plain_0.2 | 80 |" in text
    assert "| labels | " in text
    assert "nan" not in text


def test_hyper_tables_of_one_variant_alone_can_be_made(hyper, results, tmp_path):
    (tmp_path / "plain_0.2").mkdir()
    (tmp_path / "plain_0.2" / "rows.csv").write_text((results / "plain_0.2" / "rows.csv").read_text())
    assert hyper.tables(tmp_path).count("plain_0.2") == 1
    hyper.pictures(tmp_path)
    assert not list(tmp_path.glob("*.png"))


def test_hyper_pictures_are_drawn(hyper, results):
    hyper.pictures(results)
    assert all((results / name).stat().st_size > 1000 for name in ("lambda.png", "gamma.png"))


@pytest.mark.parametrize(("name", "zero_at_one"), [("hyper", -1), ("zero_at_one", 0)])
def test_what_is_none_reaches_the_training(hyper, tmp_path, commands, name, zero_at_one):
    """MONAI leaves out of its command line what is None."""
    experiments.train("hypermorph", tmp_path, tmp_path, hyper.VARIANTS[name][1], steps=10)
    (command,) = commands
    configs = ast.literal_eval(command[command.index("--config_file") + 1])
    parser = ConfigParser(ConfigParser.load_config_files(configs))
    assert parser.get_parsed_content("network_def").zero_at_one == zero_at_one


# Quicksilver


@pytest.fixture(scope="module")
def quicksilver():
    return script(BUNDLES / "quicksilver" / "docs" / "reproduce.py")


def test_quicksilver_rows_are_errors_in_millimetres(quicksilver):
    labels = torch.zeros(1, 1, 12, 12)
    labels[..., 3:9, 3:9] = 1
    pairs = [{"label_moving": labels, "label_fixed": labels}] * 2
    truth = torch.zeros(2, 2, 12, 12)
    shifted = truth.clone()
    shifted[0, 0] = 0.3
    shifted[0, 1] = 0.4
    found = quicksilver.row("x", shifted, truth, pairs, 2.0)
    assert found["all"] == pytest.approx([0, 0, 0, 0.5, 1, 1, 1])
    assert found["brain"] == pytest.approx(found["all"])
    assert found["dice"] == [1, 1]
    assert found["positive"] == 1
    shifted[1, 0, 5] = -3
    assert quicksilver.row("x", shifted, truth, pairs, 2.0)["positive"] == 0.5
    deviation = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(0))
    same = quicksilver.correlations(deviation, 2 * deviation, pairs)
    assert same == pytest.approx({"correlation": 1, "deviation": 0.5})


def test_quicksilver_table_has_every_variant(quicksilver, tmp_path, monkeypatch):
    write_phantom_scans(tmp_path / "scans", 4, (40, 36))

    kernel = quicksilver.objects("train_2d", tmp_path, 1).get_parsed_content("kernel")

    def train(bundle, folder, slices, settings, **_):
        folder.mkdir(parents=True)
        options = {
            "dropout": settings.get("dropout", 0.0),
            "quantity": settings.get("network_def#quantity", "momentum"),
        }
        network = QuicksilverNetwork(2, 4, 2, True, True, kernel=kernel, **options)
        if "predictor" in settings:
            load_predictor(network, settings["predictor"])
        torch.save(network.state_dict(), folder / "model.pt")

    monkeypatch.setattr(quicksilver, "train", train)
    monkeypatch.setattr(quicksilver, "optimised", lambda config, pairs, path: (0.1 * torch.randn(1, 2, 184, 220), 1.0))
    monkeypatch.setattr(quicksilver, "REFINEMENT", 1)
    quicksilver.run([str(tmp_path / "scans"), str(tmp_path / "out"), "--pairs", "1", "--samples", "2", "--steps", "10"])
    text = (tmp_path / "out" / "tables.md").read_text()
    names = ["none", "optimisation", "momentum, step 5", "velocity, step 14", "displacement, step 14"]
    for name in (*names, "correction, step 14", "correction, step 14, 1 iterations", "probabilistic, 2 samples"):
        assert text.count(f"| {name} |") == 2, name
    assert "rank correlation" in text


# AVSM


@pytest.fixture(scope="module")
def avsm():
    return script(BUNDLES / "avsm" / "docs" / "reproduce.py")


def test_avsm_pairs_are_off_by_a_known_map_and_compared(avsm, tmp_path):
    """An oblique header moves the image by the map that was drawn, and the table has a row for each method."""
    write_phantom_scans(tmp_path / "scans", 4, (40, 36))
    torch.manual_seed(0)
    network = MomentumNetwork(2, (16, 32, 64, 64, 64))
    torch.save(network.state_dict(), tmp_path / "momentum.pt")
    out = tmp_path / "out"
    words = [str(tmp_path / "scans"), str(out), "--pairs", "2", "--no_itk", "--only", "avsm, 1 step"]
    avsm.run([*words, "--momentum_weights", str(tmp_path / "momentum.pt"), "--fixed_offset", "--scale", "0"])
    text = (out / "table.md").read_text()
    for name in ("affine: none", "affine: learned-1", "affine: learned-7", "avsm, 1 step"):
        assert text.count(f"| {name} |") == 1, name
    assert "\n2 pairs" in text
    given = load_list(tmp_path / "scans" / "datalist.json", "validation_pairs", tmp_path / "scans")
    made = load_list(out / "pairs.json", "none", out)
    before, after = (nib.load(item["moving"]).affine for item in (given[0], made[0]))
    matrix = after @ np.linalg.inv(before)
    angle = np.degrees(np.arccos((np.trace(matrix[:3, :3]) - 1) / 2))
    assert angle == pytest.approx(20, abs=1e-3)
    centre = before @ [19.5, 17.5, 0, 1]
    assert np.linalg.norm((matrix @ centre - centre)[:3]) == pytest.approx(20, abs=1e-3)
    avsm.run([*words, "--momentum_weights", str(tmp_path / "momentum.pt")])  # what is there is not done again
    assert (out / "table.md").read_text().count("avsm, 1 step") == 1
    with pytest.raises(SystemExit):
        avsm.run([*words[:-1], "avsm, 9 steps"])


# Region-specific metrics


@pytest.fixture(scope="module")
def regions():
    return script(BUNDLES / "rdmm" / "docs" / "reproduce.py")


def test_metrics_are_compared_on_the_same_pairs(regions, tmp_path, monkeypatch):
    write_phantom_scans(tmp_path / "scans", 4, (32, 32))
    monkeypatch.setattr(regions, "SEARCH", {"levels": [1], "iterations": [3]})
    for name, (bundle, network, settings) in regions.METHODS.items():
        shorter = {**settings, **({"levels": [1], "iterations": [3]} if "iterations" in settings else {})}
        monkeypatch.setitem(regions.METHODS, name, (bundle, network, shorter))
    torch.manual_seed(0)
    torch.save(MetricNetwork(2, 4).state_dict(), tmp_path / "local.pt")
    methods = ["vSVF, 0.003", "LDDMM, 0.001", "RDMM, optimised, 0.003", "metric learning, local, 0.003"]
    words = [str(tmp_path / "scans"), str(tmp_path / "out"), "--pairs", "2"]
    regions.run([*words, "--only", ";".join(methods), "--trained", f"local={tmp_path / 'local.pt'}"])
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:7]] == ["unregistered", *methods]
    assert lines[-1] == "2 pairs"
    assert len({line.count("|") for line in lines[:7]}) == 1
    assert float(lines[5].split("|")[6]) > 0  # the mean of sigma
    for wrong in (["--only", "nothing"], ["--trained", "other=x.pt"]):
        with pytest.raises(SystemExit):
            regions.run([*words, *wrong])


def test_a_network_is_trained_for_the_steps_that_are_asked_for(regions, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(regions, "train", lambda *args, **options: seen.append((args, options)))
    parser = regions.script_parser(regions.__doc__, regions.METHODS)
    args = parser.parse_args([str(tmp_path), str(tmp_path / "out"), "--steps", "200"])
    assert regions.trained_here("local", args) == tmp_path / "out" / "networks" / "local" / "model.pt"
    assert regions.trained_here("RDMM", args).parent.name == "RDMM"
    assert [args[0] for args, _ in seen] == ["metric_learning", "rdmm"]
    assert [options for _, options in seen] == [{"steps": 20, "batch_size": 8}, {"steps": 200, "batch_size": 4}]
