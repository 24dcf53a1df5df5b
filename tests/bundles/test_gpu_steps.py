"""What a training on a GPU claims of its steps; the checks themselves are rehearsed on the CPU."""

from __future__ import annotations

import importlib.util
import math
import warnings
from pathlib import Path

import pytest
import torch
from bundle_cases import EVERY_BUNDLE, OVERLAYS, REPOSITORY, TINY, train, workflow
from ignite.engine import Events

from custom_components.training import loss_log

pytestmark = pytest.mark.filterwarnings("ignore")
bundles = EVERY_BUNDLE
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
VOXELMORPH = REPOSITORY / "bundles" / "voxelmorph"
FIRST = {"max_epochs": 1, "num_pairs": 4}


@pytest.fixture(autouse=True)
def settings_of_torch():
    """Trainings here change what torch may choose."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def check_repeats_on(device: str, bundle: Path, scans: Path, folder: Path) -> None:
    """Two trainings have the same losses and weights, to the last digit."""
    runs = [train(bundle, scans, folder / str(i), device=torch.device(device), **FIRST) for i in range(2)]
    assert runs[0] == runs[1]
    weights = [torch.load(folder / str(i) / "model.pt", map_location="cpu") for i in range(2)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def check_loading_on(device: str, scans: Path, folder: Path) -> None:
    """Scans that other processes load, and scans on the device, give the same losses."""
    losses = [
        train(VOXELMORPH, scans, folder / str(i), device=torch.device(device), **FIRST, **also)
        for i, also in enumerate(({"cache": "none", "train#trainer#num_workers": 2}, {"cache": "device"}))
    ]
    assert losses[0] == losses[1]


def check_choices_on(device: str, scans: Path, folder: Path, **also: object) -> None:
    """A training that may choose its kernels, its memory format, or is compiled, follows one that may not."""
    expected = train(VOXELMORPH, scans, folder / "one", device=torch.device(device), **FIRST)
    found = train(VOXELMORPH, scans, folder / "other", device=torch.device(device), **FIRST, **also)
    assert found == pytest.approx(expected, rel=0.01)


def waits_on_gpu(bundle: Path, scans: Path, folder: Path) -> list[list[str]]:
    """What torch says of the waits of each step between two readings of the losses."""
    settings = {"dataset_dir": str(scans), "output_dir": str(folder), "ckpt_dir": str(folder), "max_epochs": 1}
    settings |= {**TINY, "num_pairs": 8, "num_patches": 10, "device": torch.device("cuda"), "cache": "device"}
    job = workflow(bundle, "train", [bundle / "configs" / "train.json", OVERLAYS / "smoke.json"], settings)
    job.initialize()
    trainer, steps = job.parser.get_parsed_content("train#trainer"), list[list[str]]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def begin() -> None:
            caught.clear()
            torch.cuda.set_sync_debug_mode("warn")

        def end() -> None:
            torch.cuda.set_sync_debug_mode("default")
            steps.append([str(one.message) for one in caught if "synchroniz" in str(one.message)])

        trainer.add_event_handler(Events.GET_BATCH_STARTED, begin)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, end)
        job.run()
    return steps[2:-1]  # after warming up


class TestOnGpu:
    pytestmark = gpu

    def test_a_training_repeats_to_the_last_digit(self, bundle, scans, tmp_path):
        check_repeats_on("cuda", bundle, scans, tmp_path)

    def test_a_step_makes_the_host_wait_for_nothing(self, bundle, scans, tmp_path, monkeypatch):
        if bundle.name == "metric_learning":
            pytest.skip("each step optimises momenta by L-BFGS, whose line search reads every loss")
        monkeypatch.setattr(loss_log, "_PAUSE", math.inf)
        steps = waits_on_gpu(bundle, scans, tmp_path)
        assert steps
        assert not any(steps), steps


class TestOneBundleOnGpu:
    pytestmark = gpu

    def test_scans_loaded_by_other_processes_change_no_loss(self, scans, tmp_path):
        check_loading_on("cuda", scans, tmp_path)

    def test_a_training_that_may_choose_follows_one_that_may_not(self, scans, tmp_path):
        check_choices_on("cuda", scans, tmp_path, deterministic=False)

    @pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
    def test_a_compiled_training_follows_one_that_is_not(self, scans, tmp_path):
        check_choices_on("cuda", scans, tmp_path, compile=True)


@pytest.mark.slow
def test_the_checks_pass_on_the_cpu(scans, tmp_path):
    check_repeats_on("cpu", VOXELMORPH, scans, tmp_path / "repeats")
    check_loading_on("cpu", scans, tmp_path / "loading")
    check_choices_on("cpu", scans, tmp_path / "choices", deterministic=False)
