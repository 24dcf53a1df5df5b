"""Where transformed scans are kept changes no number of a training."""

import logging

import pytest
import torch
from monai.transforms import Compose

from custom_components.data import keeping
from custom_components.data.keeping import ScanCache
from custom_components.data.lists import load_list
from custom_components.data.pairs import ScanPairDataset, TrainingPairs
from custom_components.training.loading import loader
from custom_components.transforms.scan import LoadScand

LOAD = Compose([LoadScand(2.0, [12, 12, 12], "image")])


def epochs(phantom_list, cache: str, device="cpu") -> list[dict]:
    pairs = TrainingPairs(phantom_list, None, LOAD, flip_probability=0.5, cache=cache, device=device)
    dataset = pairs.training(6).set_random_state(4)
    torch.manual_seed(0)  # MONAI's loader seeds its data set from it
    return [batch for _ in range(2) for batch in loader(dataset, 2, shuffle=False)]


@pytest.mark.parametrize("cache", ["device", "memory", "auto"])
def test_a_cached_training_sees_what_an_uncached_one_sees(phantom_list, cache):
    for kept, loaded in zip(epochs(phantom_list, cache), epochs(phantom_list, "none"), strict=True):
        assert kept.keys() == loaded.keys()
        for key in ("moving", "fixed", "label_moving", "label_fixed", "image"):
            assert torch.equal(kept[key], loaded[key]), key


@pytest.mark.parametrize(("cache", "times"), [("device", 1), ("memory", 1), ("none", 4)])
def test_a_cached_scan_is_loaded_once(phantom_list, cache, times):
    seen = []
    pairs = TrainingPairs(phantom_list, None, lambda item: seen.append(item["image"]) or LOAD(item), cache=cache)
    dataset = pairs.training(6)
    for _ in range(2):
        list(dataset)
    scans = len(load_list(phantom_list, "training"))
    assert len(seen) == (scans if times == 1 else 2 * 6 * 2)


def test_scans_on_the_device_go_through_pairs_and_batches_there(phantom_list):
    dataset = TrainingPairs(phantom_list, None, LOAD, flip_probability=1.0, cache="device", device="meta").training(2)
    assert {value.device.type for value in dataset[0].values() if isinstance(value, torch.Tensor)} == {"meta"}


@pytest.mark.parametrize(
    ("gpu_free", "host_free", "kind"),
    [(4.0, 4.0, "memory"), (4.1, 4.0, "device"), (0.0, 2.1, "memory"), (0.0, 1.9, "none"), (0.0, 1e9, "memory")],
)
def test_room_decides_where_scans_are_kept_and_the_log_says_so(monkeypatch, caplog, gpu_free, host_free, kind):
    scan = {"image": torch.zeros(1, 10, 10), "name": "text"}
    needed = 5 * scan["image"].nbytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (gpu_free * 0.99 * needed, 0))
    monkeypatch.setattr(keeping, "available_bytes", lambda: host_free * needed)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *args: tensor)
    cache = ScanCache("auto", "cuda:0")
    with caplog.at_level(logging.INFO):
        cache.fill(lambda position: dict(scan), 5, shown=False)
    assert cache.kind == kind
    assert cache.uploads == (kind != "device")
    assert (cache.kept is None) == (kind == "none")
    place = {"device": "on cuda:0", "memory": "in memory", "none": "nowhere"}[kind]
    assert f"5 scans of 1.86e-06 GiB in all are kept {place}" in caplog.text


def test_another_cache_is_refused():
    with pytest.raises(ValueError, match="expected a cache out of auto, device, memory, none, got 'disk'"):
        TrainingPairs("list.json", None, None, cache="disk")


def test_an_epoch_without_mirroring_has_none(phantom_list):
    assert ScanPairDataset(load_list(phantom_list), LOAD).pair_transform is None
