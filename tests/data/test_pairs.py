"""Pairs are of different people, draws repeat, scans are loaded once."""

import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, RandScaleIntensityd

from custom_components.data.lists import load_list
from custom_components.data.pairs import ScanPairDataset

LOAD = Compose([LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"])])


def numbered(n=6, people=None, size=(4, 4)):
    """Scans that are constant images of their own number, with no file."""
    people = people or list(range(n))
    return [{"image": torch.full((1, *size), float(i)), "subject": f"p{people[i]}"} for i in range(n)]


def drawn(dataset):
    return [(int(item["moving"].max()), int(item["fixed"].max())) for item in (dataset[i] for i in range(len(dataset)))]


def test_drawn_pairs_are_of_different_people_and_reach_all():
    dataset = ScanPairDataset(numbered(6, people=[0, 0, 1, 1, 2, 2]), num_pairs=200).set_random_state(seed=0)
    pairs = drawn(dataset)
    assert all(m // 2 != f // 2 for m, f in pairs)
    assert len(set(pairs)) == 24


def test_scans_of_one_person_may_meet_if_allowed():
    pairs = drawn(ScanPairDataset(numbered(2, people=[0, 0]), partner="another scan", num_pairs=20))
    assert set(pairs) == {(0, 1), (1, 0)}


def test_draws_repeat_with_the_seed_and_change_with_the_epoch():
    dataset = ScanPairDataset(numbered(), num_pairs=12)
    epochs = [drawn(dataset.set_random_state(seed)) for seed in (5, 5, 6)]
    assert epochs[0] == epochs[1] != epochs[2]
    assert drawn(dataset) != epochs[2]


def test_processes_seeded_alike_draw_different_pairs_for_different_indices():
    one, two = (ScanPairDataset(numbered(20), num_pairs=40).set_random_state(0) for _ in range(2))
    first = [int(one[i]["moving"].max()) for i in range(0, 40, 2)]
    second = [int(two[i]["moving"].max()) for i in range(1, 40, 2)]
    assert first != second


def test_random_pair_transform_is_seeded_too():
    def run():
        augment = RandScaleIntensityd("moving", 0.5, prob=1)
        dataset = ScanPairDataset(numbered(), pair_transform=augment).set_random_state(3)
        return [float(dataset[i]["image"].sum()) for i in range(4)]

    assert run() == run()


def test_scans_become_a_pair_with_image_and_compact_labels(phantom_list):
    dataset = ScanPairDataset(load_list(phantom_list), LOAD)
    item = dataset[0]
    assert {"moving", "fixed", "label_moving", "label_fixed", "image", "subject_moving", "subject_fixed"} == item.keys()
    assert item["image"].shape == (2, *item["moving"].shape[1:])
    assert torch.equal(item["image"][:1], item["moving"])
    assert item["moving"].dtype == torch.float32
    assert item["label_fixed"].dtype == torch.int16
    assert type(item["moving"]) is torch.Tensor


def test_large_label_ids_survive():
    scans = [{"label": torch.tensor([[[70000.0, 3.0]]])} | {"subject": i} for i in range(2)]
    item = ScanPairDataset(scans)[0]
    assert item["label_moving"].tolist() == [[[70000, 3]]]
    assert not item["label_moving"].is_floating_point()


def test_labels_alone_make_pairs_and_synthesis_makes_the_images():
    scans = [{"label": torch.full((1, 4, 4), i), "subject": i} for i in range(3)]
    plain = ScanPairDataset(scans)[0]
    assert "image" not in plain

    def synthesize(pair):
        return {**pair, "moving": pair["label_moving"].float(), "fixed": pair["label_fixed"].float()}

    assert ScanPairDataset(scans, pair_transform=synthesize)[0]["image"].shape == (2, 4, 4)


def test_image_is_built_after_the_pair_transform():
    def brighten(pair):
        pair["moving"] += 100  # in place: the cache must not change
        return pair

    dataset = ScanPairDataset(numbered(3), pair_transform=brighten, num_pairs=30)
    assert all(100 <= dataset[i]["image"][0].max() < 103 for i in range(30))


def test_atlas_is_always_fixed_and_scans_come_in_order():
    scans = numbered(4)
    dataset = ScanPairDataset(scans, atlas={"image": torch.full((1, 4, 4), 9.0)})
    assert drawn(dataset) == [(0, 9), (1, 9), (2, 9), (3, 9)]
    longer = drawn(ScanPairDataset(scans, atlas={"image": torch.full((1, 4, 4), 9.0)}, num_pairs=50))
    assert {f for _, f in longer} == {9}
    assert {m for m, _ in longer} == {0, 1, 2, 3}


def test_validation_pairs_are_the_same_in_each_epoch():
    dataset = ScanPairDataset(numbered(6, people=[0, 0, 1, 1, 2, 2]), num_pairs=5, shuffle=False)
    first = drawn(dataset)
    assert first == drawn(dataset)
    assert len(set(first)) == 5
    assert len(ScanPairDataset(numbered(4), shuffle=False)) == 12


def test_scans_meet_within_their_group_only():
    scans = [scan | {"group": i % 2} for i, scan in enumerate(numbered(6))]
    assert all(m % 2 == f % 2 for m, f in drawn(ScanPairDataset(scans, num_pairs=40)))


def test_scan_may_be_paired_with_itself():
    dataset = ScanPairDataset(numbered(4, people=[0, 0, 1, 1]), partner="itself", num_pairs=60)
    assert set(drawn(dataset)) == {(i, i) for i in range(4)}
    assert drawn(dataset.set_random_state(1)) == drawn(dataset.set_random_state(1)) != drawn(dataset)


def test_one_scan_is_enough_to_meet_itself():
    assert drawn(ScanPairDataset(numbered(1), partner="itself", num_pairs=3)) == [(0, 0)] * 3


def test_validation_pairs_with_itself_are_each_scan_once():
    assert drawn(ScanPairDataset(numbered(5), partner="itself", shuffle=False)) == [(i, i) for i in range(5)]
    assert drawn(ScanPairDataset(numbered(6), partner="itself", shuffle=False, num_pairs=3)) == [(0, 0), (2, 2), (4, 4)]


@pytest.mark.parametrize("cache", [True, False])
def test_both_sides_of_a_scan_with_itself_can_be_changed_apart(cache):
    def darken(pair):
        pair["moving"] -= 50
        return pair

    scans = numbered(1) if cache else [{"image": "one", "subject": "a"}]
    load = None if cache else lambda scan: {**scan, "image": torch.zeros(1, 4, 4)}
    item = ScanPairDataset(scans, load, darken, partner="itself", cache=cache)[0]
    assert (item["moving"] == -50).all()
    assert (item["fixed"] == 0).all()


def test_given_pairs_come_in_order_with_the_transform_on_the_pair(phantom_list):
    pairs = load_list(phantom_list, "validation_pairs")
    keys = ["moving", "fixed", "label_moving", "label_fixed"]
    dataset = ScanPairDataset(pairs, Compose([LoadImaged(keys), EnsureChannelFirstd(keys)]))
    assert [dataset[i]["id"] for i in range(len(dataset))] == [pair["id"] for pair in pairs]
    assert dataset[0]["moving"].affine.shape == (4, 4)  # what writes results needs the space of the pair
    assert type(dataset[0]["image"]) is torch.Tensor


def test_scan_is_loaded_once_if_cached_and_each_time_if_not():
    calls = []

    def count(scan):
        calls.append(1)
        return scan

    cached = ScanPairDataset(numbered(3), count)
    drawn(cached), drawn(cached)
    assert len(calls) == 3
    calls.clear()
    drawn(ScanPairDataset(numbered(3), count, cache=False))
    assert len(calls) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_batches_and_repeats_with_the_seed(phantom_list, workers):
    def epoch():
        generator = torch.Generator().manual_seed(1)
        dataset = ScanPairDataset(load_list(phantom_list), LOAD, num_pairs=4)
        loader = DataLoader(dataset, num_workers=workers, batch_size=2, generator=generator)
        return torch.cat([batch["image"] for batch in loader])

    first = epoch()
    assert first.shape[:2] == (4, 2)
    assert torch.equal(first, epoch())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "at least one"),
        (numbered(2, people=[0, 0]), "no pair of different people"),
        ([*numbered(2), {"label": "c.nii.gz", "subject": "c"}], "images of all scans or of none, got 1 without"),
        ([{"image": "a"}, {"moving": "b", "fixed": "c"}], "mixture"),
    ],
)
def test_impossible_data_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        ScanPairDataset(data)


def test_unequal_sizes_are_named():
    scans = [numbered(1)[0], {"image": torch.zeros(1, 5, 4), "subject": "other"}]
    with pytest.raises(ValueError, match="must have one size"):
        ScanPairDataset(scans)[0]


def test_index_beyond_the_end_stops_iteration():
    assert len(list(ScanPairDataset(numbered(3)))) == 3
