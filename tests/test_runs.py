"""How a run starts, and the one sentence with which it ends on an error."""

import os
import subprocess
import sys

import pytest
import torch
from bundle_cases import EVERY_BUNDLE, OVERLAYS, REPOSITORY, read_json

from custom_components import files, runs, weights
from custom_components.random_numbers import RandomState


def caught(call) -> BaseException:
    with pytest.raises(Exception) as info:  # noqa: PT011, what it is does not matter
        call()
    return info.value


def chained(first, message: str) -> BaseException:
    """An error from elsewhere with another one as its cause."""

    def fail() -> None:
        try:
            first()
        except Exception as error:
            raise RuntimeError(message) from error

    return caught(fail)


def test_our_own_sentence_is_found_behind_those_of_others():
    error = chained(lambda: files.read_state("no\nwhere.pt"), 'Failed to evaluate ConfigExpression: \n"$@x.run()"')
    assert runs.sentence(error) == "no where.pt: there is no such file of weights"


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ("Failed to instantiate component 'torch.optim.Adam' with keywords: params,lr\n set ...", "torch.optim.Adam: "),
        ("Failed to evaluate ConfigExpression: \n\"$f(__local_refs['a'])\"", "f(@a): "),
        ("Failed to evaluate ConfigExpression: \n\"$__local_refs['evaluator'].run()\"", ""),
        ("something else", ""),
    ],
)
def test_an_error_of_others_says_which_part_of_a_config_failed(message, place):
    error = chained(lambda: {}["key of mine"], message)
    assert runs.sentence(error) == f"{place}KeyError: key of mine"


def test_an_operation_that_fails_in_our_own_code_says_of_which_kind_it_is():
    error = chained(lambda: weights.load_parts(torch.nn.Linear(1, 1), None), "something else")
    assert runs.sentence(error).startswith("AttributeError: 'NoneType' object has no attribute")


def test_the_sentence_of_a_long_error_is_short():
    assert len(runs.sentence(ValueError("word " * 1000))) < 320


@pytest.mark.parametrize("seed", ["abc", 1.5, True])
def test_a_seed_is_a_whole_number_or_none(seed):
    with pytest.raises(ValueError, match=f"a whole number, got {seed!r}"):
        runs.start(seed)


def test_a_run_in_another_program_changes_no_hook():
    before = sys.excepthook
    try:
        runs.start(3)
        first = torch.rand(1)
        runs.start(3)
        assert torch.equal(torch.rand(1), first)
    finally:
        runs.start(None)
    assert sys.excepthook is before


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_run_that_need_not_be_deterministic_lets_cudnn_choose(deterministic, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", torch.backends.cudnn.deterministic)
    try:
        runs.start(3, deterministic=deterministic)
        assert torch.backends.cudnn.deterministic == deterministic
        assert torch.backends.cudnn.benchmark != deterministic
    finally:
        runs.start(None)


@pytest.mark.parametrize("deterministic", [True, False, None])
def test_on_a_gpu_every_operation_is_deterministic_if_asked_for(deterministic, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = RandomState.now()
    try:
        runs.start(None, deterministic=deterministic)
        assert torch.are_deterministic_algorithms_enabled() == bool(deterministic)
        assert not deterministic or torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        monkeypatch.undo()
        before.restore()
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_is_true_or_false():
    with pytest.raises(ValueError, match="expected deterministic true or false, got 'no'"):
        runs.start(3, deterministic="no")


def test_every_config_starts_a_run():
    """Errors that come before it are none of ours."""
    paths = [bundle / "configs" / f"{job}.json" for bundle in EVERY_BUNDLE for job in ("train", "inference")]
    for path in [*paths, OVERLAYS / "multi_gpu.json"]:
        steps = read_json(path)["initialize"]
        assert next(step for step in steps if isinstance(step, dict))["_target_"] == "custom_components.runs.start"


@pytest.mark.slow
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("job", ["train", "inference"])
def test_a_run_of_a_bundle_ends_with_one_sentence(tmp_path, job, debug):
    bundle = REPOSITORY / "bundles" / "voxelmorph"
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", bundle, "--data_list", "nowhere.json"]
    command += ["--config_file", bundle / "configs" / f"{job}.json", "--output_dir", tmp_path / "out"]
    command += ["--ckpt_dir", tmp_path / "out"] if job == "train" else []
    environment = {"PATH": "", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    environment |= {"MORPHZOO_DEBUG": "1"} if debug else {}
    done = subprocess.run([str(w) for w in command], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) == debug
    if not debug:
        assert done.stderr.splitlines()[-1] == "morphzoo: error: no data list at nowhere.json"
    assert not (tmp_path / "out").exists()
