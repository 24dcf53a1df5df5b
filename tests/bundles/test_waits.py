"""How often a step of each bundle's training makes the host wait for its device, which is a stand-in for a GPU."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from bundle_cases import EVERY_BUNDLE, OVERLAYS, TINY, read_json, workflow
from ignite.engine import Events

from benchmarks.waits import Waits
from custom_components.training import loss_log

pytestmark = pytest.mark.filterwarnings("ignore")
bundles = EVERY_BUNDLE


def test_a_step_between_two_readings_of_the_losses_waits_for_nothing(bundle, scans, tmp_path, monkeypatch):
    if bundle.name == "metric_learning":
        pytest.skip("each step optimises momenta by L-BFGS, whose line search reads every loss")
    monkeypatch.setattr(loss_log, "_PAUSE", math.inf)
    settings = {"dataset_dir": str(scans), "output_dir": str(tmp_path), "ckpt_dir": str(tmp_path), "max_epochs": 1}
    settings |= {
        **TINY,
        "window": [0.9, 0.45, 0.8],
        "num_pairs": 8,
        "num_patches": 10,
        "device": Waits.device,
        "cache": "device",
    }
    configs = [bundle / "configs" / "train.json", OVERLAYS / "smoke.json"]
    job = workflow(bundle, "train", configs, settings)
    job.initialize()
    trainer, waits, places = job.parser.get_parsed_content("train#trainer"), Waits(), list[Counter[str]]()
    for name in {"network", "mean_stream"} & read_json(configs[0]).keys():
        module = job.parser.get_parsed_content(name)
        waits.mark([*module.parameters(), *module.buffers()])
    for event in (Events.GET_BATCH_STARTED, Events.ITERATION_COMPLETED):
        trainer.add_event_handler(event, lambda: places.append(waits.places.copy()))
    with waits:
        job.run()
    steps = [after - before for before, after in zip(places[::2], places[1::2], strict=True)][2:-1]  # after warming up
    assert steps
    assert [step.total() for step in steps] == [0] * len(steps), steps
    assert not waits.mixed
