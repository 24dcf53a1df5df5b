"""Seconds and memory of the momentum models."""

import pytest
import torch

from benchmarks import rdmm_speed as speed

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", speed.MODELS)
def test_seconds_and_memory_of_each_model_are_measured(name, monkeypatch):
    monkeypatch.setattr(speed, "SIZES", {2: [36, 44]})
    threads = torch.get_num_threads()
    found = speed.measure(name, 2)
    torch.set_num_threads(threads)
    assert found.keys() == {"map", "step", "map_mb", "step_mb"}
    assert 0 < found["map"] < found["step"]
