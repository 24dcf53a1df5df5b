"""Batches come out the same, whoever loads them."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.transforms import Randomizable

from custom_components.data.keeping import ScanCache
from custom_components.data.pairs import ScanPairDataset, TrainingPairs
from custom_components.training import loading
from custom_components.training.loading import loader


class Noisy(Randomizable):
    """A scan made anew at each load."""

    def __call__(self, item):
        return {**item, "image": torch.full((1, 6, 4), float(item["subject"])) + float(self.R.rand())}


def pairs(transform=None, **settings) -> ScanPairDataset:
    scans = [{"image": torch.rand(1, 6, 4), "subject": i} for i in range(6)]
    kept = TrainingPairs("list", None, transform, flip_probability=0.5, cache="none", **settings)
    return kept.training(10, data=scans)


def epochs(num_workers, transform=None):
    """Two epochs of batches, and the random number that follows."""
    torch.manual_seed(3)
    dataset = pairs(transform)
    batches = loader(dataset, 2, num_workers=num_workers)
    found = []
    for epoch in range(2):
        torch.manual_seed(epoch)
        dataset.set_random_state(epoch)
        found += [{k: v for k, v in batch.items() if isinstance(v, torch.Tensor)} for batch in batches]
    return found, torch.rand(1)


@pytest.mark.parametrize("transform", [None, Noisy()], ids=["scans", "random scans"])
def test_batches_do_not_depend_on_the_number_of_workers(transform):
    torch.manual_seed(0)
    scans = torch.random.get_rng_state()
    expected, after = epochs(0, transform)
    for num_workers in (1, 2):
        torch.random.set_rng_state(scans)
        found, then = epochs(num_workers, transform)
        assert torch.equal(then, after)
        assert len(found) == len(expected) == 10
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one)
    epochs_differ = [not torch.equal(expected[i]["image"], expected[i + 5]["image"]) for i in range(5)]
    assert any(epochs_differ)


def test_mirrored_pairs_and_whole_ones_occur_in_an_epoch():
    dataset = pairs(Noisy())
    slope = torch.arange(6.0).view(1, 6, 1).expand(1, 6, 4)
    dataset.transform = lambda item: {**item, "image": slope}
    firsts = [float(dataset[i]["moving"][0, 0, 0]) for i in range(10)]
    assert set(firsts) == {0.0, 5.0}


@pytest.mark.parametrize(
    ("kind", "device", "cores", "free", "expected"),
    [
        ("none", "cuda", 16, 1e12, 8),
        ("none", "cuda", 4, 1e12, 3),
        ("none", "cuda", 1, 1e12, 0),
        ("none", "cpu", 16, 1e12, 0),
        ("memory", "cuda", 16, 1e12, 0),
        ("device", "cuda", 16, 1e12, 0),
        ("none", "cuda", 16, 5 * 2 * 2 * 6 * 4 * 4 * 4, 4),  # room for five; four fill 80 %
    ],
)
def test_lists_that_are_kept_nowhere_are_loaded_by_others_for_a_gpu(monkeypatch, kind, device, cores, free, expected):
    dataset = pairs()
    dataset.cache = ScanCache(kind, device)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    monkeypatch.setattr(loading, "_SHARED", SimpleNamespace(exists=lambda: True))
    assert loading._chosen(dataset, 2) == expected


def test_processes_of_one_machine_share_its_cores(monkeypatch):
    dataset = pairs()
    dataset.cache = ScanCache("none", "cuda")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loading._chosen(dataset, 1) == 3


@pytest.mark.parametrize("value", [-1, 1.5, "2"])
def test_workers_are_a_number(value):
    with pytest.raises(ValueError, match="num_workers"):
        loader(pairs(), num_workers=value)


def test_a_pair_is_that_of_its_number():
    dataset = pairs(Noisy())
    one, other = dataset[3, 17], dataset[3, 18]
    assert np.array_equal(dataset[3, 17]["image"], one["image"])
    assert not np.array_equal(one["image"], other["image"])
