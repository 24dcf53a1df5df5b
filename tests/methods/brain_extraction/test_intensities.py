"""Percentiles that a host takes in one way and a GPU in another."""

import pytest
import torch

from benchmarks.waits import Waits
from custom_components.methods.brain_extraction import intensities
from custom_components.methods.brain_extraction.intensities import normalize

RANDOM = torch.rand(9, 8, 7, generator=torch.Generator().manual_seed(0))
IMAGES = {"noise": RANDOM, "background": (RANDOM - 0.5).clamp(min=0), "two values": (RANDOM > 0.5).float()}
IMAGES |= {"one value": torch.full((4, 4), 3.0), "one bright voxel": torch.eye(5) * (torch.arange(5) == 2)}


@pytest.mark.parametrize("sample", [10, 200_000])
@pytest.mark.parametrize("name", IMAGES)
def test_a_gpu_finds_the_same_percentiles_and_waits_for_nothing(name, sample, monkeypatch):
    monkeypatch.setattr(intensities, "_SAMPLE", sample)
    expected = normalize(IMAGES[name])
    with Waits() as waits:
        found = normalize(IMAGES[name].to(Waits.device, non_blocking=True))
    assert not waits.places
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=0, atol=1e-6)
