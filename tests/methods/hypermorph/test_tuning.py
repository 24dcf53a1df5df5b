"""Hyper-parameters of a HyperMorph network chosen by a criterion over many pairs."""

import pytest
import torch
from methods.hypermorph.cases import SIZES, Shift, alike, both, hyper_inferer, make_network, shifted

from custom_components.data.phantoms import phantom_pair
from custom_components.deformations.velocity import Displacement, StationaryVelocity
from custom_components.evaluation.overlap import label_overlap
from custom_components.fields import warp
from custom_components.methods.hypermorph.objective import LabelCriterion
from custom_components.methods.hypermorph.tuning import sweep_dice, tune_hyper


@both
@pytest.mark.parametrize("true", [0.2, 0.63])
def test_tuning_finds_the_known_optimum(size, true):
    (value,), _ = tune_hyper(Shift(), Displacement(), [shifted(size, true)], alike, iterations=30)
    assert value == pytest.approx(true, abs=0.03)


@both
def test_tuning_finds_two_hyper_parameters_at_once(size):
    pairs = [shifted(size, 0.7, 0.25)]
    values, _ = tune_hyper(Shift(2), Displacement(), pairs, alike, start=0.5, iterations=40)
    assert values == pytest.approx([0.7, 0.25], abs=0.03)


def test_the_optimum_is_that_of_all_pairs_together():
    pairs = [shifted(SIZES[0], true) for true in (0.3, 0.4, 0.5)]
    (value,), _ = tune_hyper(Shift(), Displacement(), pairs, alike, iterations=30)
    assert value == pytest.approx(0.4, abs=0.03)
    (value,), _ = tune_hyper(Shift(), Displacement(), pairs, alike, iterations=60, pairs_per_step=2)
    assert value == pytest.approx(0.4, abs=0.06)


def test_labels_choose_hyper_parameters():
    image, targets = shifted(SIZES[0], 0.55)
    targets |= {f"label_{key}": (targets[key] > 0.5).short() for key in ("moving", "fixed")}
    (value,), _ = tune_hyper(Shift(), Displacement(), [(image, targets)], LabelCriterion([1]), iterations=30)
    assert value == pytest.approx(0.55, abs=0.05)


def test_history_has_what_each_iteration_tried():
    pairs = [shifted(SIZES[0], 0.6), shifted(SIZES[0], 0.5)]
    network = Shift()
    values, history = tune_hyper(network, Displacement(), pairs, alike, start=0.2, iterations=9)
    assert len(history) == 9
    assert history[0]["hyper"] == pytest.approx([0.2])
    for entry in history:
        field = 4 * entry["hyper"][0] * torch.eye(2)[0].view(1, 2, 1, 1).expand(1, 2, *SIZES[0])
        expected = [alike({"warped": warp(targets["moving"], field)}, targets) for _, targets in pairs]
        assert entry["criterion"] == pytest.approx(float(sum(expected)) / 2, rel=1e-4)
    assert history[-1]["criterion"] < 0.2 * history[0]["criterion"]
    assert values == min(history, key=lambda entry: entry["criterion"])["hyper"]
    (settled,), history = tune_hyper(network, Displacement(), pairs, alike, start=0.2, iterations=9, pairs_per_step=1)
    assert settled == pytest.approx(history[-1]["hyper"][0], abs=0.01)


def test_tuning_repeats_with_its_seed_and_leaves_torchs_generator_alone():
    pairs = [shifted(SIZES[0], true) for true in (0.1, 0.5, 0.9)]
    state = torch.get_rng_state()
    runs = [
        tune_hyper(Shift(), Displacement(), pairs, alike, iterations=5, pairs_per_step=1, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert runs[0] == runs[1] != runs[2]


def broken(pred, targets):
    raise KeyError("criterion")


@pytest.mark.parametrize(
    ("criterion", "error"),
    [(alike, None), (broken, KeyError), (lambda pred, targets: alike(pred, targets) / 0, RuntimeError)],
    ids=["fine", "error", "infinite"],
)
def test_the_network_is_left_as_it_was(criterion, error):
    network, pairs = Shift(), [shifted(SIZES[0], 0.6)]
    with torch.no_grad():
        if error is None:
            tune_hyper(network, Displacement(), pairs, criterion, iterations=3)
        else:
            with pytest.raises(error, match="criterion"):
                tune_hyper(network, Displacement(), pairs, criterion, iterations=3)
        assert not torch.is_grad_enabled()
    assert all(seen == [False, False] for seen in network.seen)
    assert [parameter.requires_grad for parameter in network.parameters()] == [True, False]
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.state_dict() == {"strength": 4, "frozen": 1}


@pytest.mark.parametrize(
    ("pairs", "start", "message"),
    [
        ([], 0.3, "got 0 pairs"),
        ([shifted(SIZES[0], 0.5)], 0.0, r"start inside \(0, 1\)"),
        ([shifted(SIZES[0], 0.5)], 1.0, r"start inside \(0, 1\)"),
    ],
)
def test_tuning_refuses_starts_that_do_not_fit(pairs, start, message):
    with pytest.raises(ValueError, match=message):
        tune_hyper(Shift(), Displacement(), pairs, alike, start=start)


@both
@torch.no_grad()
def test_swept_dice_is_the_mean_of_the_pairs_that_have_the_label(size):
    network, hyper, pairs = make_network(len(size), num_hyper=2), torch.tensor([[0.0, 0.3], [1.0, 0.3], [0.5, 0.9]]), []
    for seed in (1, 2):
        batch = phantom_pair(size, seed=seed)
        labels = {key: batch[key].clone() for key in ("label_moving", "label_fixed")}
        if seed == 2:
            for label in labels.values():
                label[label == 2] = 0
        pairs.append((batch["image"], {"moving": batch["moving"], "fixed": batch["fixed"], **labels}))
    dice = sweep_dice(network, StationaryVelocity(), pairs, hyper, [1, 2, 9])
    assert dice.shape == (3, 3)
    for row, values in zip(dice, hyper, strict=True):
        found = []
        for image, targets in pairs:
            ddf = hyper_inferer(StationaryVelocity(), values.tolist())(image, network)["ddf"]
            warped = warp(targets["label_moving"], ddf, mode="nearest")
            found.append(label_overlap(warped, targets["label_fixed"], [1, 2])[0])
        assert float(row[0]) == pytest.approx(float(found[0][0] + found[1][0]) / 2, abs=0.01)
        assert float(row[1]) == pytest.approx(float(found[0][1]), abs=0.01)
        assert row[2].isnan()
    assert dice[0, 0] != dice[1, 0]
