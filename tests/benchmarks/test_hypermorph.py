"""The experiments of HyperMorph: measures over lambda, tuning, tables and pictures."""

import ast
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from benchmarks import experiments
from benchmarks import hypermorph as hyper
from benchmarks.experiments import BUNDLES
from custom_components.data.lists import load_list
from custom_components.data.phantoms import write_phantom_scans
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import warp
from custom_components.files import write_metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def people(tmp_path_factory):
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


def save_untrained(name, folder):
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
def results(people, tmp_path_factory):
    """The folder of four variants measured on three pairs of two people, one of them tuned."""
    folder = tmp_path_factory.mktemp("hyper")
    for name in ("hyper", "plain_0.2", "gamma", "kernels"):
        save_untrained(name, folder / name)
        hyper.measure(name, folder / name, people[:3])
        (folder / name / "curve.csv").write_text("epoch,iteration,seconds,cpu_seconds\n1,8,3,40\n2,16,6,80\n")
    write_metrics(folder / "hyper" / "tuned.json", hyper.tuned(folder / "hyper", people))
    return folder


def test_pairs_know_their_people(people):
    assert [pair["people"] for pair in people[:4]] == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "a")]
    assert people[0]["image"].shape == (2, 32, 32)


def test_every_variant_names_a_network(tmp_path):
    for name in hyper.VARIANTS:
        save_untrained(name, tmp_path / name)
        network = hyper.network_of(name, tmp_path / name)
        assert not network.training
        if not name.startswith("plain"):
            assert network.num_hyper == hyper.rows_of_hyper(name).shape[1]


def test_plain_weight_is_that_of_the_objective_with_lambda():
    """(1 - lambda) 5 similarity + lambda smoothness, over the factor of the similarity."""
    bundle, settings = hyper.plain(0.2)
    assert bundle == "voxelmorph"
    assert settings["weight"] == pytest.approx(0.2 / (0.8 * 5))


def test_measures_of_hyper_parameters_are_those_of_their_fields(people, results):
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


def test_columns_of_a_variant_follow_its_hyper_parameters(results):
    rows = {name: hyper.read_rows(results / name / "rows.csv") for name in ("plain_0.2", "gamma")}
    assert rows["plain_0.2"][0].keys() == {"moving", "fixed", "before", "dice", "folded", "sd"}
    keys = {key.partition("@")[2] for key in rows["gamma"][0] if key.startswith("dice@")}
    assert len(keys) == len(hyper.rows_of_hyper("gamma")) == 11 * len(hyper.GAMMAS)
    assert {"0,0", "0.1,0.2", "1,1"} <= keys


def test_what_was_measured_is_not_measured_again(people, results, monkeypatch):
    monkeypatch.setattr(hyper, "network_of", None)
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    hyper.measure("hyper", results / "hyper", people)
    assert before == {path: path.stat().st_mtime_ns for path in results.rglob("*")}


def test_tuning_is_judged_on_other_people(people, results):
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


def test_hyper_tables_hold_every_variant_that_was_measured(results):
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


def test_hyper_tables_of_one_variant_alone_can_be_made(results, tmp_path):
    (tmp_path / "plain_0.2").mkdir()
    (tmp_path / "plain_0.2" / "rows.csv").write_text((results / "plain_0.2" / "rows.csv").read_text())
    assert hyper.tables(tmp_path).count("plain_0.2") == 1
    hyper.pictures(tmp_path)
    assert not list(tmp_path.glob("*.png"))


def test_hyper_pictures_are_drawn(results):
    hyper.pictures(results)
    assert all((results / name).stat().st_size > 1000 for name in ("lambda.png", "gamma.png"))


@pytest.mark.parametrize(("name", "zero_at_one"), [("hyper", -1), ("zero_at_one", 0)])
def test_what_is_none_reaches_the_training(tmp_path, commands, name, zero_at_one):
    """MONAI leaves out of its command line what is None."""
    experiments.train("hypermorph", tmp_path, tmp_path, hyper.VARIANTS[name][1], steps=10)
    (command,) = commands
    configs = ast.literal_eval(command[command.index("--config_file") + 1])
    parser = ConfigParser(ConfigParser.load_config_files(configs))
    assert parser.get_parsed_content("network_def").zero_at_one == zero_at_one
