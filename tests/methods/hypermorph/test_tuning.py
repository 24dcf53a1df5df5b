"""Hyper-parameters of a HyperMorph network: given to the inferer, swept, and chosen by a criterion."""

import pytest
import torch
from torch import nn

from custom_components.data.phantoms import phantom_pair
from custom_components.deformations.velocity import Displacement, StationaryVelocity
from custom_components.evaluation.overlap import label_overlap
from custom_components.fields import warp
from custom_components.inference.prediction import NetworkPredictor
from custom_components.inference.refinement import PairwiseOptimizer
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import GradientPenalty
from custom_components.losses.similarity import LNCC, MSE
from custom_components.methods.hypermorph.inference import HyperInferer, SweepInferer
from custom_components.methods.hypermorph.network import HyperConv, HyperMorphUNet
from custom_components.methods.hypermorph.objective import HyperLoss, LabelCriterion, RegularityCriterion
from custom_components.methods.hypermorph.tuning import sweep_dice, tune_hyper

SIZES = [(24, 21), (14, 17, 16)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])


def hyper_inferer(deformation, hyper=0.5, *, sweep=0, precision="float32", criterion=None, iterations=12, **options):
    """The inferer of the bundle's inference."""
    registration = RegistrationInferer(deformation, NetworkPredictor(precision), **options)
    inferer = HyperInferer(registration, deformation, hyper, criterion=criterion, iterations=iterations)
    return SweepInferer(inferer, deformation, sweep=sweep, precision=precision)


class Shift(nn.Module):
    """A network that moves images by hyper * strength voxels, hyper-parameter h along axis h, the rest along the first.

    It works in training and in evaluation mode, and its field depends on its weights, too.
    """

    def __init__(self, num_hyper=1, strength=4.0):
        super().__init__()
        self.num_hyper = num_hyper
        self.strength = nn.Parameter(torch.tensor(strength))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.seen = []

    def forward(self, image, hyper):
        d = image.ndim - 2
        self.seen.append([parameter.requires_grad for parameter in self.parameters()])
        shift = torch.cat([hyper, hyper.new_zeros(len(hyper), d - self.num_hyper)], 1) * self.strength * self.frozen
        return shift.view(-1, d, *[1] * d).expand(len(image), d, *image.shape[2:])


def blob(size, shift):
    """A smooth blob near the middle as the field `shift` warps it."""
    image = torch.ones(1, 1, *size)
    for axis, (n, s) in enumerate(zip(size, shift, strict=True)):
        x = torch.arange(n) - 0.55 * n + s
        image = image * torch.exp(-0.5 * (x / (0.2 * n)).square()).view(-1, *[1] * (len(size) - 1 - axis))
    return image


def shifted(size, *values, strength=4.0):
    """A pair whose true map is the field of `Shift` for these hyper-parameters, as `tune_hyper` takes it."""
    shift = [strength * value for value in values] + [0.0] * (len(size) - len(values))
    moving, fixed = blob(size, [0.0] * len(size)), blob(size, shift)
    return torch.cat([moving, fixed], 1), {"moving": moving, "fixed": fixed}


def alike(pred, targets):
    return MSE()(pred["warped"], targets["fixed"])


def make_network(spatial_dims, **kwargs):
    """A HyperMorph network with fields of about a voxel that clearly depend on its hyper-parameters."""
    torch.manual_seed(0)
    options = {"encoder_channels": (4, 6), "decoder_channels": (6, 4, 4), "hidden": (8, 8), "flow_std": 0.1, **kwargs}
    network = HyperMorphUNet(spatial_dims, **options)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, HyperConv):
                module.project.weight.mul_(5)
    return network


# tune_hyper


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
def test_wrong_starts_are_named(pairs, start, message):
    with pytest.raises(ValueError, match=message):
        tune_hyper(Shift(), Displacement(), pairs, alike, start=start)


# sweep_dice


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


# HyperInferer


@both
@torch.no_grad()
def test_inferer_hands_its_value_to_the_network(size):
    network, image = make_network(len(size)), phantom_pair(size, seed=1, batch=2)["image"]
    pred = hyper_inferer(StationaryVelocity(), 0.7, inverse=True)(image, network)
    expected = RegistrationInferer(StationaryVelocity(), inverse=True)(image, network, hyper=torch.full((1, 1), 0.7))
    assert pred.keys() == expected.keys() | {"hyper"}
    for key in ("svf", "ddf", "inverse_ddf", "warped"):
        torch.testing.assert_close(pred[key], expected[key], rtol=0, atol=0)
    torch.testing.assert_close(pred["hyper"], torch.full((2, 1), 0.7))
    assert pred["seconds"].shape == (2,)
    assert (pred["ddf"] - hyper_inferer(StationaryVelocity(), 0)(image, network)["ddf"]).abs().max() > 0.05


@torch.no_grad()
def test_a_call_can_name_other_values():
    network, image = make_network(2, num_hyper=2), phantom_pair(SIZES[0], seed=1, batch=2)["image"]
    inferer, hyper = hyper_inferer(StationaryVelocity(), [0.5, 0.1]), torch.tensor([[0.0, 1.0], [0.9, 0.3]])
    pred = inferer(image, network, hyper=hyper)
    assert torch.equal(pred["hyper"], hyper)
    for i in range(2):
        single = hyper_inferer(StationaryVelocity(), hyper[i].tolist())(image[i : i + 1], network)
        torch.testing.assert_close(pred["ddf"][i : i + 1], single["ddf"], rtol=0, atol=1e-5)
    assert (pred["ddf"] - inferer(image, network)["ddf"]).abs().max() > 0.05


@both
@pytest.mark.parametrize("hyper_encoder", [True, False])
@torch.no_grad()
def test_sweep_runs_from_0_to_1(size, hyper_encoder):
    network = make_network(len(size), num_hyper=2, hyper_encoder=hyper_encoder, half_resolution=True)
    image = phantom_pair(size, seed=1, batch=2)["image"]
    pred = hyper_inferer(StationaryVelocity(), [0.3, 0.8], sweep=5)(image, network)
    assert pred["sweep_ddf"].shape == (2, 5, len(size), *size)
    steps = torch.tensor([[k / 4, 0.8] for k in range(5)])
    torch.testing.assert_close(pred["sweep_hyper"], steps.expand(2, 5, 2))
    assert pred["sweep_seconds"].shape == (2,)
    for k, value in ((0, 0.0), (2, 0.5), (4, 1.0)):
        single = hyper_inferer(StationaryVelocity(), [value, 0.8])(image, network)["ddf"]
        torch.testing.assert_close(pred["sweep_ddf"][:, k], single, rtol=0, atol=1e-5)
    assert (pred["sweep_ddf"][:, 0] - pred["sweep_ddf"][:, 4]).abs().max() > 0.05
    alone = hyper_inferer(StationaryVelocity(), [0.3, 0.8])(image, network)
    torch.testing.assert_close(pred["ddf"], alone["ddf"], rtol=0, atol=0)
    assert not any(key.startswith("sweep") for key in alone)


@torch.no_grad()
def test_sweep_keeps_each_pairs_other_hyper_parameters():
    network, image = make_network(2, num_hyper=2), phantom_pair(SIZES[0], seed=1, batch=2)["image"]
    pred = hyper_inferer(StationaryVelocity(), sweep=2)(image, network, hyper=torch.tensor([[0.5, 0.1], [0.5, 0.9]]))
    assert pred["sweep_hyper"].tolist() == torch.tensor([[[0, 0.1], [1, 0.1]], [[0, 0.9], [1, 0.9]]]).tolist()
    for i, other in enumerate((0.1, 0.9)):
        single = hyper_inferer(StationaryVelocity(), [1.0, other])(image[i : i + 1], network)
        torch.testing.assert_close(pred["sweep_ddf"][i, 1:], single["ddf"], rtol=0, atol=1e-5)


@both
def test_refinement_minimises_the_objective_of_each_pairs_values(size):
    network, image = make_network(len(size), half_resolution=True), phantom_pair(size, seed=1, batch=2)["image"]
    deformation, hyper = StationaryVelocity(), torch.tensor([[0.1], [0.8]])

    def refine(loss):
        return PairwiseOptimizer(deformation, loss, levels=(2, 1), iterations=5)

    terms = RegistrationLoss(MSE(0.1), GradientPenalty(), 1.0)
    inferer = hyper_inferer(deformation, refinement=refine(HyperLoss(terms)), sweep=2)
    with torch.no_grad():
        pred = inferer(image, network, hyper=hyper)
        for i, value in enumerate((0.1, 0.8)):
            plain = RegistrationLoss(MSE(0.1), GradientPenalty(), value, similarity_weight=1 - value)
            single = RegistrationInferer(deformation, refinement=refine(plain))
            expected = single(image[i : i + 1], network, hyper=hyper[i : i + 1])
            assert (pred["svf"][i] - expected["svf"][0]).norm() < 0.01 * expected["svf"].norm()
        unrefined = hyper_inferer(deformation, sweep=2)(image, network, hyper=hyper)
    torch.testing.assert_close(pred["sweep_ddf"], unrefined["sweep_ddf"], rtol=0, atol=0)
    assert (pred["svf"] - unrefined["svf"]).abs().max() > 0.1


@torch.no_grad()
def test_sweep_in_bfloat16_has_fields_in_float32():
    network, image = make_network(2), phantom_pair(SIZES[0], seed=1)["image"]
    exact, rough = (
        hyper_inferer(StationaryVelocity(), sweep=3, precision=precision)(image, network)
        for precision in ("float32", "bfloat16")
    )
    assert rough["sweep_ddf"].dtype == torch.float32
    difference = (exact["sweep_ddf"] - rough["sweep_ddf"]).abs().max()
    assert 0 < difference < 0.05 * exact["sweep_ddf"].abs().max()
    torch.testing.assert_close(rough["sweep_ddf"][:, 1], rough["ddf"], rtol=0, atol=1e-5)


@torch.no_grad()
def test_auto_finds_the_optimum_of_each_pair():
    trues = (0.35, 0.6)
    image = torch.cat([shifted(SIZES[0], true)[0] for true in trues])
    inferer = hyper_inferer(Displacement(), "auto", criterion=alike, iterations=30)
    pred = inferer(image, Shift())
    assert pred["hyper"].flatten().tolist() == pytest.approx(trues, abs=0.03)
    assert float(MSE()(pred["warped"], image[:, 1:])) < 1e-3
    assert not any(value.requires_grad for value in pred.values())


@torch.no_grad()
def test_masks_reach_the_criterion_of_auto_pair_by_pair():
    seen = []

    def criterion(pred, targets):
        seen.append({key: float(value.mean()) for key, value in targets.items() if "mask" in key})
        return MSE()(pred["warped"], targets["fixed"], targets["mask_fixed"])

    image = torch.cat([shifted(SIZES[0], 0.5)[0]] * 2)
    masks = {"mask_fixed": torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, *SIZES[0])}
    hyper_inferer(Displacement(), "auto", criterion=criterion, iterations=1)(image, Shift(), masks=masks)
    assert seen == [{"mask_fixed": 1.0}, {"mask_fixed": 2.0}]


@both
@torch.no_grad()
def test_auto_is_no_worse_than_its_start(size):
    network, batch = make_network(len(size), half_resolution=True), phantom_pair(size, seed=1, batch=2)
    criterion = RegularityCriterion(LNCC(5), limit=0.1)
    pred = hyper_inferer(StationaryVelocity(), "auto", criterion=criterion)(batch["image"], network)
    start = hyper_inferer(StationaryVelocity(), 0.3)(batch["image"], network)
    assert ((pred["hyper"] > 0) & (pred["hyper"] < 1)).all()
    assert not torch.allclose(pred["hyper"], torch.tensor(0.3), atol=0.01)
    for i in range(2):
        found, before = (
            criterion({k: v[i : i + 1] for k, v in fields.items()}, {"fixed": batch["fixed"][i : i + 1]})
            for fields in (pred, start)
        )
        assert found <= before


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"hyper": -0.1}, r"in \[0, 1\], got -0.1"),
        ({"hyper": 1.2}, r"in \[0, 1\], got 1.2"),
        ({"hyper": float("nan")}, r"in \[0, 1\]"),
        ({"hyper": [0.2, 1.5]}, r"in \[0, 1\], got \[0.2, 1.5\]"),
        ({"hyper": []}, r"in \[0, 1\]"),
        ({"hyper": "best", "criterion": alike}, "'auto' .* got 'best'"),
        ({"hyper": "auto"}, "with a criterion"),
        ({"sweep": 1}, "at least 2 values"),
        ({"sweep": -2}, "at least 2 values"),
    ],
    ids=str,
)
def test_wrong_arguments_of_the_inferer_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        hyper_inferer(StationaryVelocity(), **kwargs)


def test_more_values_than_the_network_has_are_named():
    with pytest.raises(ValueError, match=r"expected 1 hyper-parameters"):
        hyper_inferer(StationaryVelocity(), [0.5, 0.5])(phantom_pair(SIZES[0])["image"], make_network(2))
