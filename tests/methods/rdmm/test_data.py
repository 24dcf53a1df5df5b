"""Pairs that stay the same, and their stored momenta."""

import pytest
import torch
from methods.rdmm.cases import PAIR_KERNEL, metric, optimizer
from monai.data import list_data_collate

from custom_components.data.batches import prepare_pair_batch
from custom_components.methods.rdmm.data import MomentumStore, SteadyPairs, prepare_named_batch
from custom_components.methods.rdmm.inference import MetricPredictor


def test_stored_momenta_belong_to_their_pair_and_settings(tmp_path):
    store = MomentumStore(tmp_path / "new", {"kernel": PAIR_KERNEL})
    assert store.load(["a"]) is None
    momenta = torch.randn(2, 2, 4, 5)
    store.save(["a", "b"], momenta)
    assert torch.equal(store.load(["b", "a"]), momenta.flip(0))
    assert store.load(["a", "c"]) is None
    assert store.load([]) is None
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"a.pt", "b.pt", "files.json"}
    with pytest.raises(ValueError, match=r"a\.pt: a momentum made with .* take another folder"):
        MomentumStore(tmp_path / "new", {"kernel": "another"}).load(["a"])
    store.clear()
    assert store.load(["a"]) is None
    MomentumStore(tmp_path / "nowhere").clear()


def test_a_store_deletes_replaces_and_reads_its_own_files_alone(tmp_path):
    weights = {"momentum": torch.ones(2, 4, 5), "description": MomentumStore(tmp_path).description}
    for name in ("model.pt", "b.pt"):
        torch.save(weights, tmp_path / name)
    store = MomentumStore(tmp_path)
    store.save(["a"], torch.zeros(1, 2, 4, 5))
    assert store.load(["b"]) is None
    with pytest.raises(FileExistsError, match=r"b\.pt is there already"):
        store.save(["b"], torch.zeros(1, 2, 4, 5))
    MomentumStore(tmp_path).clear()
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "b.pt"}


def test_momenta_of_another_process_are_found(tmp_path):
    one, other = MomentumStore(tmp_path), MomentumStore(tmp_path)
    for store, pair in ((one, "a"), (other, "b"), (one, "c")):
        assert store.load([pair]) is None
        store.save([pair], torch.zeros(1, 2, 4, 5))
    assert all(store.load(["a", "b", "c"]) is not None for store in (one, other))


def test_a_store_needs_a_second_optimiser(tmp_path):
    with pytest.raises(ValueError, match="second visit"):
        MetricPredictor(optimizer(metric()), store=MomentumStore(tmp_path))


class Items:
    """Two pairs of images of the same name in two folders."""

    def __len__(self):
        return 2

    def __getitem__(self, i):
        image = torch.full((2, 8, 8), float(i))
        paths = {"moving_path": f"/data/{i}/scan.nii.gz", "fixed_path": "/data/9/scan.nii.gz"}
        return {"image": image, "moving": image[:1], "fixed": image[1:], **paths}


def noisy(batch, device=None, **options):
    image, targets, args, more = prepare_pair_batch(batch, device, **options)
    return image + torch.rand(image.shape), targets, args, more


def test_pairs_are_the_same_at_each_visit_and_have_names_of_their_own():
    steady = SteadyPairs(Items(), noisy)
    first, again = [steady[i] for i in range(2)], [steady[i] for i in range(2)]
    assert [item["pair"][:-9] for item in first] == ["00000_scan__scan", "00001_scan__scan"]
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one["image"], two["image"])
    assert not torch.equal(first[1]["image"] - 1, first[0]["image"])
    image, targets, _, options = prepare_named_batch(list_data_collate(first))
    assert options == {"pairs": [item["pair"] for item in first]}
    assert image.shape == (2, 2, 8, 8)
    assert set(targets) == {"moving", "fixed"}
    with pytest.raises(IndexError):
        steady[2]
