"""What the experiments share: training, intervals, tables."""

import ast
import json
import sys
from subprocess import PIPE

import numpy as np
import pytest

from benchmarks import experiments
from benchmarks.experiments import BUNDLES


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


def test_a_training_is_killed_when_it_should_stop():
    asked = []
    experiments._run_until(lambda: len(asked) or asked.append(1), [sys.executable, "-c", "input()"], {"stdin": PIPE})
    assert asked


def test_a_training_that_fails_before_its_stop_is_an_error():
    with pytest.raises(RuntimeError, match="ended with 3 before"):
        experiments._run_until(lambda: False, [sys.executable, "-c", "raise SystemExit(3)"], {})


def test_a_measure_is_taken_once(tmp_path):
    found = [experiments.measure_once(tmp_path / "x.json", lambda value=value: {"dice": value}) for value in (0.5, 0.6)]
    assert found == [{"dice": 0.5}] * 2


def test_markdown_shows_three_digits_and_empty_cells():
    text = experiments.markdown(["method", "Dice"], [["a", 0.12345], ["b", None]])
    assert text == "| method | Dice |\n| --- | --- |\n| a | 0.123 |\n| b |  |\n"


def test_unknown_variants_are_named(capsys):
    parser = experiments.experiment_parser("A title.\n\nMore.", {"base": 1})
    with pytest.raises(SystemExit):
        experiments.chosen_variants(parser, "base,bose", {"base": 1})
    assert "there is no variant bose; there are base" in capsys.readouterr().err


def test_label_maps_are_rendered_by_the_overlay_before_the_bundles_own():
    files = experiments.config_files("voxelmorph", ["train", "train_labelmaps"])
    assert [path.name for path in files] == ["train.json", "rendered.json", "train_labelmaps.json"]
    assert all(path.is_file() for path in files)
