"""Training data: momenta of registered pairs, and patches of them."""

import itertools
import json

import monai
import pytest
import torch
from methods.quicksilver.cases import (
    KERNEL,
    OTHER,
    PATCH,
    WHOLE,
    Local,
    random_image,
    strided,
    strides,
    vector_momentum,
)

from custom_components.data.batches import prepare_pair_batch
from custom_components.fields import identity_grid, resize_field
from custom_components.inference.registration import RegistrationInferer
from custom_components.methods.quicksilver.dataset import ContrastBatch, MomentumPatchDataset, OptimizedMomenta
from custom_components.methods.quicksilver.inference import PatchPredictor


class PlaceOptimizer:
    """In place of an optimisation: the momentum is the voxel's place, as the images of `pairs` are."""

    def __init__(self, fails_at=None, **options):
        self.deformation, self.seen, self.calls, self.fails_at = vector_momentum(**options), [], 0, fails_at

    def __call__(self, moving, fixed):
        self.calls += 1
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        self.seen += list(torch.cat([moving, fixed], 1))
        size = self.deformation.parameter_size(fixed.shape[2:])
        return (identity_grid(size) / 64)[None].repeat(len(fixed), 1, 1, 1)


def pairs(number=3, size=(40, 44)):
    """Images that tell the place of a voxel, (index + 1) / 64 along an axis each; the pairs do not differ."""
    image = (identity_grid(size) + 1) / 64
    names = [{"moving_path": f"in/scan{i}.nii.gz", "fixed_path": f"in/scan{i + 1}.mgz"} for i in range(number)]
    return [{"image": image.clone(), "pair": i, **name} for i, name in enumerate(names)]


def patches_of(folder, optimizer=None, items=None, **options):
    settings = {"patch": PATCH, "stride": 2, "num_patches": 20, **options}
    made = {key: settings.pop(key) for key in ("prepare", "settings", "batch_size", "device") if key in settings}
    momenta = OptimizedMomenta(pairs() if items is None else items, optimizer or PlaceOptimizer(), folder, **made)
    return MomentumPatchDataset(momenta, **settings)


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


FILES = ["00000_scan0__scan1.pt", "00001_scan1__scan2.pt", "00002_scan2__scan3.pt"]


def test_every_pair_is_registered_once(tmp_path):
    first, second = PlaceOptimizer(), PlaceOptimizer()
    patches_of(tmp_path / "new" / "momenta", first)
    assert (first.calls, files_in(tmp_path / "new" / "momenta")) == (3, FILES)
    patches_of(tmp_path / "new" / "momenta", second)
    assert second.calls == 0


def test_the_files_are_plain_and_say_what_they_hold(tmp_path):
    patches_of(tmp_path, settings={"weight": 0.5})
    content = torch.load(tmp_path / FILES[0], weights_only=True)
    assert content.keys() == {"image", "momentum", "description"}
    description = json.loads(content["description"])
    assert description.pop("pair") == ["in/scan0.nii.gz", "in/scan1.mgz"]
    assert description == {"kernel": str(KERNEL), "weight": 0.5}


def test_a_missing_file_alone_is_made_again(tmp_path):
    patches_of(tmp_path)
    (tmp_path / FILES[1]).unlink()
    kept = (tmp_path / FILES[0]).stat().st_mtime_ns
    optimizer = PlaceOptimizer()
    patches_of(tmp_path, optimizer)
    assert (optimizer.calls, files_in(tmp_path)) == (1, FILES)
    assert (tmp_path / FILES[0]).stat().st_mtime_ns == kept


def test_an_interrupted_run_keeps_what_it_made(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        patches_of(tmp_path, PlaceOptimizer(fails_at=2))
    assert files_in(tmp_path) == FILES[:1]
    optimizer = PlaceOptimizer()
    patches_of(tmp_path, optimizer)
    assert (optimizer.calls, files_in(tmp_path)) == (2, FILES)


def test_a_run_that_ends_while_it_writes_leaves_no_half_file(tmp_path, monkeypatch):
    def breaks(content, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", breaks)
        with pytest.raises(KeyboardInterrupt):
            patches_of(tmp_path)
    assert not list(tmp_path.glob("*.pt"))
    patches_of(tmp_path)
    assert files_in(tmp_path) == FILES


def test_pairs_can_be_registered_together(tmp_path):
    optimizer = PlaceOptimizer()
    together = patches_of(tmp_path / "together", optimizer, batch_size=2)
    assert optimizer.calls == 2
    for one, other in zip(together.examples, patches_of(tmp_path / "alone").examples, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    sizes = [(tmp_path / folder / FILES[0]).stat().st_size for folder in ("together", "alone")]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        ({"kernel": OTHER}, {}, [str(OTHER), str(KERNEL)]),
        ({"settings": {"weight": 0.5}}, {"settings": {"weight": 0.25}}, ["weight = 0.5", "0.25"]),
        ({"settings": {"levels": (2, 1)}}, {}, ["levels = [2, 1]", "None"]),
        ({}, {"settings": {"weight": 0.25}}, ["weight = None", "0.25"]),
    ],
    ids=["kernel", "value", "removed", "added"],
)
def test_momenta_made_otherwise_are_refused(tmp_path, before, after, names):
    def patches(kernel=KERNEL, **options):
        return patches_of(tmp_path, PlaceOptimizer(kernel=kernel), **options)

    patches(**before)
    patches(**before)
    with pytest.raises(ValueError, match="take another cache_dir") as error:
        patches(**after)
    assert all(name in str(error.value) for name in [str(tmp_path / FILES[0]), *names])


def test_momenta_of_another_stride_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"momentum of size \(20, 22\) for images of \(40, 44\)"):
        patches_of(tmp_path, stride=1)


def test_an_unknown_quantity_is_named(tmp_path):
    with pytest.raises(ValueError, match="velocity or displacement, got 'speed'"):
        patches_of(tmp_path, quantity="speed")


@pytest.mark.parametrize("size", [(40, 44), (31, 27), (9, 30)], ids=str)
@strides
def test_image_and_momentum_belong_to_the_same_place(tmp_path, stride, size):
    dataset = patches_of(tmp_path, PlaceOptimizer(stride=stride), pairs(2, size), stride=stride)
    assert len(dataset) == 20
    for item in dataset:
        image, momentum = item["image"], item["momentum"]
        assert image.dtype == momentum.dtype == torch.float32
        assert image.shape == (2, *[PATCH * stride] * 2)
        assert momentum.shape == (2, PATCH, PATCH)
        seen = strided(image[None], stride)[0]
        shown = seen.amin(0) > 0  # beyond the image both are 0
        assert torch.equal((64 * seen - 1)[:, shown], 64 * stride * momentum[:, shown])
        assert not momentum[:, ~shown].any()
    with pytest.raises(IndexError, match="item 20 of a dataset of 20 patches"):
        dataset[20]


def places_of(dataset):
    """First voxels of an epoch's patches on the coarse grid, from their momenta."""
    return [tuple((64 * item["momentum"][:, 0, 0]).int().tolist()) for item in dataset]


@pytest.mark.parametrize("voxel", [(0, 0), (9, 8), (19, 19)], ids=str)
@pytest.mark.parametrize("channel", [0, 1], ids=["moving", "fixed"])
def test_patches_come_from_all_places_where_an_image_shows_something(tmp_path, channel, voxel):
    items = pairs(1, (20, 20))
    items[0]["image"].fill_(0.02)
    items[0]["image"][channel, voxel[0], voxel[1]] = 0.5
    dataset = patches_of(tmp_path, items=items, patch=3, num_patches=200, background=0.1)
    ranges = [range(max(0, v // 2 - 2), min(7, v // 2) + 1) for v in voxel]
    assert set(places_of(dataset)) == set(itertools.product(*ranges))


def test_pairs_without_content_are_left_out_and_refused_if_there_is_nothing_else(tmp_path):
    items = pairs(3, (20, 20))
    for i in (0, 2):
        items[i]["image"] *= 0
    dataset = patches_of(tmp_path / "one", items=items)
    assert all(item["image"].any() for item in dataset)
    items[1]["image"] *= 0
    with pytest.raises(ValueError, match=r"none of 3 pairs shows anything above 0\.02"):
        patches_of(tmp_path / "none", items=items)


def test_equal_seeds_give_equal_patches_and_epochs_differ(tmp_path):
    epochs = []
    for seed in (5, 5, 6):
        monai.utils.set_determinism(seed)
        try:
            dataset = patches_of(tmp_path)
            epochs.append([places_of(dataset) for _ in range(2)])
        finally:
            monai.utils.set_determinism(None)
    assert epochs[0] == epochs[1] != epochs[2]
    assert epochs[0][0] != epochs[0][1]


def test_random_images_are_the_same_in_every_run_and_others_for_every_pair(tmp_path):
    def prepare(batch, device=None):
        image, *rest = prepare_pair_batch(batch, device)
        return torch.rand_like(image), *rest

    runs = []
    for folder in ("a", "b"):
        torch.manual_seed(len(runs))
        state, optimizer = torch.get_rng_state(), PlaceOptimizer()
        dataset = patches_of(tmp_path / folder, optimizer, prepare=prepare)
        assert torch.equal(torch.get_rng_state(), state)
        for seen, (shown, _) in zip(optimizer.seen, dataset.examples, strict=True):
            assert torch.equal(seen.half(), shown)
        runs.append([image for image, _ in dataset.examples])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    assert not torch.equal(runs[0][0], runs[0][1])


def test_other_quantities_are_those_of_the_deformation(tmp_path):
    deformation = vector_momentum()
    momentum = (identity_grid((PATCH, PATCH)) / 64)[None]
    pred = deformation(momentum, WHOLE)
    expected = {"momentum": momentum, "velocity": pred["velocity"]}
    expected["displacement"] = resize_field(pred["ddf"], (PATCH, PATCH))
    for quantity, field in expected.items():
        item = patches_of(tmp_path, items=pairs(1, WHOLE), quantity=quantity)[0]
        torch.testing.assert_close(item["momentum"], field[0])
    assert (expected["velocity"] - expected["displacement"]).abs().max() > 1e-3


def test_the_network_may_see_another_contrast(tmp_path):
    items, optimizer = pairs(1, WHOLE), PlaceOptimizer()
    items[0] |= {"t2_moving": random_image(WHOLE)[0, :1], "t2_fixed": random_image(WHOLE)[0, 1:]}
    item = patches_of(tmp_path, optimizer, items, inputs=("t2_moving", "t2_fixed"))[0]
    torch.testing.assert_close(item["image"], random_image(WHOLE)[0], rtol=0, atol=1e-3)
    assert torch.equal(optimizer.seen[0], items[0]["image"])


@pytest.mark.parametrize("size", [WHOLE, (13, 14), (9, 11)], ids=["whole", "odd", "smaller than a patch"])
def test_a_correction_is_trained_on_what_the_prediction_lacks(tmp_path, size):
    """And sees what it sees when it is used."""
    predict = PatchPredictor(predictor=Local(), patch=PATCH)
    inferer = RegistrationInferer(vector_momentum(), predict)
    items = pairs(1, size)
    image = items[0]["image"][None]
    seen, predicted = predict.before(image, inferer.deformation)
    assert (seen - image)[:, 1].abs().max() > 0.005
    coarse = tuple(predicted.shape[2:])
    item = patches_of(tmp_path, items=items, inferer=inferer)[0]
    found = item["momentum"][:, : coarse[0], : coarse[1]]
    torch.testing.assert_close(found, identity_grid(coarse) / 64 - predicted[0], rtol=0, atol=2e-3)
    torch.testing.assert_close(item["image"][:, : size[0], : size[1]], seen[0], rtol=0, atol=5e-4)


def test_an_inferer_without_predictor_changes_nothing(tmp_path):
    plain, other = (
        patches_of(tmp_path, inferer=i) for i in (None, RegistrationInferer(vector_momentum(), PatchPredictor()))
    )
    for one, two in zip(plain.examples, other.examples, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_the_network_may_see_other_images_than_the_result_is_judged_by() -> None:
    batch = {key: torch.rand(2, 1, 4, 5) for key in ("moving", "fixed", "contrast_fixed")}
    batch["image"] = torch.cat([batch["moving"], batch["fixed"]], 1)
    image, targets, *rest = ContrastBatch(["moving", "contrast_fixed"])(batch)
    assert torch.equal(image, torch.cat([batch["moving"], batch["contrast_fixed"]], 1))
    same, plain, *others = prepare_pair_batch(batch)
    assert rest == others
    assert all(torch.equal(targets[key], plain[key]) for key in targets | plain)
    assert torch.equal(ContrastBatch()(batch)[0], same)
