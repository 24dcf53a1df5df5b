"""Curves of trainings in one picture."""

from pathlib import Path

import pytest

from benchmarks import learning_curves
from benchmarks.learning_curves import read_learning


def test_seconds_go_on_where_a_training_was_resumed(tmp_path):
    table = "epoch,cpu_seconds,score\n1,1800,\n2,3600,0.5\n3,900,\n4,1800,0.6\n"
    (tmp_path / "curve.csv").write_text(table)
    curve = read_learning(tmp_path / "curve.csv")
    assert (curve.hours, curve.scores, curve.is_device) == ([1.0, 1.5], [0.5, 0.6], False)


def test_a_curve_of_a_gpu_has_its_seconds_and_the_first_of_its_scores(tmp_path):
    (tmp_path / "curve.csv").write_text("seconds,steps,dice_before,dice_t1,dice_t2\n36,10,0.4,0.6,0.3\n")
    curve = read_learning(tmp_path / "curve.csv")
    assert (curve.hours, curve.scores, curve.is_device) == ([0.01], [0.6], True)


@pytest.mark.parametrize(
    "table", ["epoch,loss\n1,0.3\n", "cpu_seconds,score\n5,\n", "", "model,seconds,score\na,1,0.3\nb,2,0.2\n"]
)
def test_a_table_without_seconds_or_scores_is_no_curve(table, tmp_path):
    (tmp_path / "curve.csv").write_text(table)
    assert read_learning(tmp_path / "curve.csv") is None


@pytest.mark.parametrize(("name", "beginning"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_curves_become_a_picture(name, beginning, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "one.csv").write_text("cpu_seconds,score\n60,0.5\n120,0.6\n")
    (tmp_path / "two.csv").write_text("cpu_seconds,loss\n60,0.5\n")
    words = [f"{n}={tmp_path / n}.csv" for n in ("one", "two")]
    assert learning_curves.main([*words, "--output", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_bytes().startswith(beginning)
    out = capsys.readouterr().out
    assert out.splitlines()[0].endswith(": one")
    assert "no curve of seconds and scores: two" in out


def test_a_missing_file_is_named(tmp_path, capsys):
    assert learning_curves.main(["a=/nowhere/a.csv", "--output", str(tmp_path / "a.png")]) == 1
    assert capsys.readouterr().err == "error: /nowhere/a.csv: nothing to draw\n"
    assert not (tmp_path / "a.png").exists()


def test_the_bundles_ship_curves():
    files = learning_curves.shipped()
    assert {"hypermorph", "quicksilver correction", "synthmorph gpu"} <= set(files)
    assert all(isinstance(path, Path) and path.is_file() for path in files.values())
