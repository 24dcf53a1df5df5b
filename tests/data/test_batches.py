"""A batch reaches the engine as (image, targets, (), keywords), and images are made of label maps."""

import pytest
import torch
from monai.data import DataLoader, MetaTensor

from custom_components.data.batches import SynthesizedBatch, prepare_pair_batch
from custom_components.data.pairs import ScanPairDataset
from custom_components.data.phantoms import phantom_pair
from custom_components.synthesis.contrast import RandomContrast
from custom_components.synthesis.intensities import LabelIntensities
from custom_components.synthesis.pairs import SynthesizePair
from custom_components.synthesis.slices import TakeSlices
from custom_components.synthesis.warp import RandomWarp

SIZES = [(33, 38), (21, 24, 19)]
both = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])
TARGETS = {"moving", "fixed", "label_moving", "label_fixed"}


def labels_of(size) -> dict[str, torch.Tensor]:
    pair = phantom_pair(size, seed=2, batch=2)
    return {key: pair[key] for key in ("label_moving", "label_fixed")}


def make_batch(**settings) -> SynthesizedBatch:
    return SynthesizedBatch(SynthesizePair(RandomWarp(), RandomContrast(LabelIntensities(5)), strip=0.5), **settings)


@both
def test_pair_batch_is_image_targets_and_nothing_else(size):
    batch = phantom_pair(size, batch=2)
    image, targets, args, kwargs = prepare_pair_batch({**batch, "id": ["a", "b"], "moving_path": ["x", "y"]})
    assert torch.equal(image, batch["image"])
    assert targets.keys() == TARGETS
    assert all(torch.equal(value, batch[key]) for key, value in targets.items())
    assert targets["label_moving"].dtype == torch.int16
    assert (args, kwargs) == ((), {})


def test_masks_of_a_batch_reach_targets_and_inferer():
    batch = phantom_pair(SIZES[0]) | {"mask_fixed": torch.ones(1, 1, *SIZES[0], dtype=torch.int16)}
    _, targets, _, kwargs = prepare_pair_batch(batch)
    assert targets.keys() == TARGETS | {"mask_fixed"}
    assert kwargs == {"masks": {"mask_fixed": targets["mask_fixed"]}}


def test_batch_goes_to_the_device_as_plain_tensors():
    batch = {key: MetaTensor(value) for key, value in phantom_pair(SIZES[0]).items()}
    image, targets, _, _ = prepare_pair_batch(batch, "meta", non_blocking=True)
    assert image.device.type == "meta"
    for tensor in (image, *targets.values()):
        assert type(tensor) is torch.Tensor
        assert tensor.device.type == "meta"


def test_batch_without_labels_has_the_images_alone():
    batch = {key: value for key, value in phantom_pair(SIZES[0]).items() if "label" not in key}
    assert prepare_pair_batch({**batch, "label_moving": ["", ""]})[1].keys() == {"moving", "fixed"}


@both
def test_images_are_made_of_the_label_maps(size):
    image, targets, args, kwargs = make_batch()(labels_of(size), "cpu", True)
    assert image.shape == (2, 2, *size)
    assert image.dtype == torch.float32
    assert targets.keys() == {*TARGETS, "matrix", "matrix_moving", "matrix_fixed"}  # affine maps of the warps
    assert torch.equal(image, torch.cat([targets["moving"], targets["fixed"]], 1))
    assert all(targets[key].shape == (2, 1, *size) for key in TARGETS)
    assert all(targets[key].dtype == torch.int16 for key in ("label_moving", "label_fixed"))
    assert (args, kwargs) == ((), {})


@both
def test_seed_makes_every_call_the_same_and_leaves_torchs_generator_alone(size):
    prepare, labels = make_batch(seed=3), labels_of(size)
    state = torch.get_rng_state()
    first, again = prepare(labels), prepare(labels)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(first[1][key], again[1][key]) for key in TARGETS)
    assert not torch.equal(first[0], make_batch(seed=4)(labels)[0])


@both
def test_without_a_seed_calls_differ_and_repeat_with_torchs_seed(size):
    prepare, labels = make_batch(), labels_of(size)
    runs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        runs.append([prepare(labels)[0] for _ in range(2)])
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(*runs[0])
    assert not torch.equal(runs[0][0], runs[2][0])


@both
def test_label_maps_of_the_batch_are_not_changed(size):
    labels = labels_of(size)
    make_batch(seed=0)(labels)
    assert all(torch.equal(value, labels_of(size)[key]) for key, value in labels.items())


def test_slices_make_a_batch_of_2d_pairs():
    size = (21, 24, 19)
    prepare = make_batch(slices=TakeSlices(3, {2: (6, 12)}, jitter=1), seed=0)
    image, targets, _, _ = prepare(labels_of(size))
    assert image.shape == (6, 2, 21, 24)
    assert all(targets[key].shape == (6, 1, 21, 24) for key in TARGETS)
    assert image.flatten(2).std(2).min() > 0.05
    assert torch.equal(image, prepare(labels_of(size))[0])


def test_synthesis_records_no_gradient():
    class Learned(SynthesizePair):
        def __call__(self, *args):
            result = super().__call__(*args)
            return {**result, "moving": result["moving"] * torch.ones(1, requires_grad=True)}

    prepare = SynthesizedBatch(Learned(RandomWarp(), RandomContrast(LabelIntensities(5))))
    assert not prepare(labels_of(SIZES[0]))[0].requires_grad
    assert torch.is_grad_enabled()


def test_label_maps_with_metadata_give_plain_tensors():
    labels = {key: MetaTensor(value) for key, value in labels_of(SIZES[0]).items()}
    image, targets, _, _ = make_batch()(labels)
    assert all(type(tensor) is torch.Tensor for tensor in (image, *targets.values()))


def test_data_set_of_label_maps_feeds_a_training():
    maps = phantom_pair(SIZES[0], batch=4)["label_moving"]
    dataset = ScanPairDataset([{"label": label, "subject": i} for i, label in enumerate(maps)])
    for batch in DataLoader(dataset, batch_size=2):
        assert make_batch()(batch)[0].shape == (2, 2, *SIZES[0])
