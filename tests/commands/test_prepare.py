"""`morphzoo prepare`, the bundle under MONAI's own command, and a training on what they write."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from bundle_cases import OVERLAYS, REPOSITORY, TINY, workflow
from ignite.engine import Events
from preparation.cases import MASKS, write_person
from support import run

FAST = ("--template", "none", "--bias", "False", "--brain", "False", "--masks", MASKS)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Four people as BIDS."""
    root = tmp_path_factory.mktemp("bids")
    for k in range(1, 5):
        write_person(root, k, t2=False)
    return root


@pytest.fixture(scope="module")
def prepared(four, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared") / "out"
    assert (
        run("prepare", four, "-o", output, *FAST, "--size", "32,32,32", "--spacing", "5", "--normalize", "zscore")
        is None
    )
    return output


def test_the_command_says_how_many_are_good_and_where_to_look(four, prepared, capsys):
    assert (
        run("prepare", four, "-o", prepared, *FAST, "--size", "32,32,32", "--spacing", "5", "--normalize", "zscore")
        is None
    )
    printed = capsys.readouterr().out
    assert "4 good, 0 doubtful, 0 failed of 4 sessions" in printed
    assert str(prepared / "qc.html") in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        ([".", "--normalize", "histogram"], "--normalize: expected "),
        ([".", "--jobs", "0"], "expected jobs to be a whole number of at least 1, got 0"),
        ([".", "--smooth", "1"], "prepare has no setting 'smooth'"),
    ],
)
def test_what_is_wrong_is_one_line(four, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(four)
    said = run("prepare", *words, "-o", tmp_path / "out", *FAST)
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


def test_a_template_that_is_not_there_is_one_line(four, tmp_path):
    said = run("prepare", four, "-o", tmp_path / "out", *FAST, "--template", "lost.nii.gz")
    assert said == "morphzoo: error: --template: lost.nii.gz: no such image file"


def test_files_of_others_are_not_replaced(four, tmp_path):
    (tmp_path / "datalist.json").write_text("{}")
    assert "no manifest says that it may be replaced" in run("prepare", four, "-o", tmp_path, *FAST)
    assert (tmp_path / "datalist.json").read_text() == "{}"


@pytest.mark.slow
def test_the_bundle_runs_under_monai(four, tmp_path):
    settings = {"template": "none", "bias": False, "masks": MASKS, "dataset_dir": four, "output_dir": tmp_path / "out"}
    words = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", REPOSITORY / "bundles" / "prepare"]
    words += ["--config_file", REPOSITORY / "bundles" / "prepare" / "configs" / "prepare.json"]
    words += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    subprocess.run([str(word) for word in words], check=True, cwd=REPOSITORY, capture_output=True)
    assert len(json.loads((tmp_path / "out" / "datalist.json").read_text())["training"]) == 2


@pytest.mark.slow
def test_a_training_runs_on_a_prepared_folder(prepared, tmp_path):
    """The README's command of a training, for two short epochs."""
    bundle = REPOSITORY / "bundles" / "voxelmorph"
    paths = {"dataset_dir": str(prepared), "data_list": str(prepared / "datalist.json")}
    settings = {**TINY, "spacing": 5.0, **paths, "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path), "num_pairs": 4}
    job = workflow(bundle, "train", [bundle / "configs" / "train.json", OVERLAYS / "smoke.json"], settings)
    job.initialize()
    trainer, losses = job.parser.get_parsed_content("train#trainer"), []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(float(engine.state.output["loss"]))
    )
    job.run()
    assert len(losses) >= 2
    assert (tmp_path / "model.pt").is_file()
