"""`morphzoo tune`."""

import json

import numpy as np
import pytest
from commands.cases import rows_of
from support import run


def tune(slices, weights, output, *words):
    common = ["tune", slices, "-o", output, "--weights", weights, "--iterations", 4, "--sweep", 5]
    common += ["--affine", "none"]
    return run(*common, *words)


def test_tuning_writes_what_it_found_and_prints_it(slices, hyper_weights, tmp_path, capsys):
    assert tune(slices, hyper_weights, tmp_path) is None
    assert {path.name for path in tmp_path.iterdir()} == {
        "tuned.json",
        "tuning.csv",
        "sweep.csv",
        "structures.csv",
        "files.json",
    }
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
    assert run(*words, "--affine", "none", "--optimize", 0, "--hyper", tuned["lambda"]) is None
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
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"tuned.json", "tuning.csv", "files.json"}
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
    assert {path.name for path in tmp_path.iterdir()} == {"tuned.json", "tuning.csv", "files.json"}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--criterion", "nonsense"], "expected criterion auto, labels"),
        (["--bundle", "voxelmorph"], "voxelmorph has no setting 'hyper'; hypermorph has"),
    ],
)
def test_wrong_tuning_is_refused_in_one_line(slices, hyper_weights, tmp_path, words, part):
    message = tune(slices, hyper_weights, tmp_path, *words)
    assert message.startswith("morphzoo: error: ")
    assert part in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())
