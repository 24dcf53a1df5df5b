"""A trainer is refused, before its first step, with settings and data that it cannot use."""

import pytest
import torch
from torch import nn

from custom_components.data.batches import prepare_pair_batch
from custom_components.data.pairs import ScanPairDataset, TrainingPairs
from custom_components.losses.pair import pair_loss
from custom_components.space.grids import fixed_size_grid
from custom_components.training import BestCheckpoint, TrainingRecord, trainer, validator


def scans(*labelled: bool) -> list[dict]:
    image = torch.rand(1, 8, 8)
    return [{"image": image, "subject": i, **({"label": image > 0.5} if has else {})} for i, has in enumerate(labelled)]


def make(data=None, loss=None, **settings) -> object:
    network, device = nn.Conv2d(2, 2, 1), torch.device("cpu")
    data = ScanPairDataset(data or scans(True, True), cache=False)
    common = (network, data, lambda x, n: {}, prepare_pair_batch, device)
    optimizer = torch.optim.SGD(network.parameters(), lr=settings.pop("learning_rate", 0.1))
    settings = {"max_epochs": 2, **settings}
    return trainer(
        *common, loss_function=loss or nn.MSELoss(), optimizer=optimizer, evaluator=validator(*common), **settings
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_epochs", v) for v in (0, -1, 1.5, "2", None)),
        *(("batch_size", v) for v in (0, -1, 1.5, "2", None)),
        *(("val_interval", v) for v in (0, -1, 1.5, "2", None, 3)),
        *(("learning_rate", v) for v in (0, float("inf"))),
        *((name, v) for name in ("amp", "compile") for v in ("false", 1)),
    ],
)
def test_a_setting_that_makes_no_training_is_named(name, value):
    with pytest.raises(ValueError, match=f"expected (a )?{name} .*got {value!r}"):
        make(**{name: value})


def test_scans_without_the_labels_of_the_loss_are_counted():
    with pytest.raises(ValueError, match=r"2 of 3 items have no 'label'.*the loss compares them"):
        make(scans(True, False, False), pair_loss(1.0, labels=[1]))
    make(scans(True, False, False), pair_loss(1.0))
    make(scans(True, True), pair_loss(1.0, labels=[1]))


def test_scans_of_one_batch_have_the_same_keys():
    with pytest.raises(ValueError, match=r"1 of 2 items have no 'label'.*give batch_size 1"):
        make(scans(True, False), batch_size=2)


def test_an_atlas_needs_no_labels_for_a_batch():
    data = ScanPairDataset(scans(True, True), atlas={"image": torch.rand(1, 8, 8)}, cache=False)
    data.check_keys((), alike=True)


@pytest.mark.parametrize("value", [-0.1, 1, "x", None])
def test_the_decay_of_an_average_is_a_share(tmp_path, value):
    with pytest.raises(ValueError, match=r"ema_decay.*at least 0 and below 1"):
        TrainingRecord({}, make(), BestCheckpoint(tmp_path), tmp_path, ema_decay=value)


@pytest.mark.parametrize("value", [-0.1, 1.1, "x", None])
def test_a_flip_has_a_probability(value):
    with pytest.raises(ValueError, match=r"flip_probability.*at least 0 and of at most 1"):
        TrainingPairs("list.json", None, None, flip_probability=value)


@pytest.mark.parametrize("value", [0, -1, 1.5, "x"])
def test_an_epoch_has_at_least_one_pair(value):
    with pytest.raises(ValueError, match=f"at least 1, got {value!r}$"):
        TrainingPairs("list.json", None, None).training(value, data=scans(True, True))


@pytest.mark.parametrize("name", ["weight", "folding_weight", "segmentation_weight"])
@pytest.mark.parametrize("value", [-1, float("nan"), "x", None])
def test_the_weights_of_a_loss_are_numbers_from_0_on(name, value):
    with pytest.raises(ValueError, match=f"expected {name} to be a number of at least 0, got {value!r}"):
        pair_loss(**{"weight": 1.0, name: value})


@pytest.mark.parametrize("labels", [[], "x", 1, [1.5], [-1], ["1"]])
def test_labels_are_ids(labels):
    with pytest.raises(ValueError, match="expected labels 'all' or a list of ids from 0 on"):
        pair_loss(1.0, labels=labels)


@pytest.mark.parametrize("size", ["x", 32, [32], [1, 32], [0, 0], [32.5, 32], [8, 8, 8, 8], None])
def test_a_grid_has_a_size(size):
    with pytest.raises(ValueError, match="size"):
        fixed_size_grid(1.0, size)


@pytest.mark.parametrize("spacing", ["x", 0, -1, float("nan"), [1.0, "x"], None, [1.0], [1.0, 1.0, 1.0]])
def test_a_grid_has_a_spacing(spacing):
    with pytest.raises(ValueError, match="expected spacing_mm to be one positive number or 2 of them"):
        fixed_size_grid(spacing, [32, 32])
