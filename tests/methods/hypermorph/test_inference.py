"""Registration with hyper-parameters: given, found for the pair, swept."""

import pytest
import torch
from methods.hypermorph.cases import SIZES, Shift, alike, both, hyper_inferer, make_network, shifted

from custom_components.data.phantoms import phantom_pair
from custom_components.deformations.velocity import Displacement, StationaryVelocity
from custom_components.fields import jacobian_determinant
from custom_components.inference.refiner import refiner
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.similarity import LNCC, MSE
from custom_components.methods.hypermorph.objective import RegularityCriterion
from custom_components.methods.hypermorph.refinement import HyperRefinement
from custom_components.networks.zero import ZeroField


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
@torch.no_grad()
def test_refinement_is_that_of_each_pairs_smoothness(size):
    network, image = make_network(len(size), half_resolution=True), phantom_pair(size, seed=1, batch=2)["image"]
    deformation, hyper = StationaryVelocity(), torch.tensor([[0.1], [0.8]])
    settings = {"levels": (2, 1), "iterations": 5, "similarity": "lncc"}
    refine = HyperRefinement(deformation, usual=0.5, **settings)
    pred = hyper_inferer(deformation, refinement=refine, sweep=2)(image, network, hyper=hyper)
    for i, smoothness in enumerate((1 / 9, 4.0)):
        single = RegistrationInferer(deformation, refinement=refiner(deformation, smoothness=smoothness, **settings))
        expected = single(image[i : i + 1], network, hyper=hyper[i : i + 1])
        torch.testing.assert_close(pred["svf"][i : i + 1], expected["svf"], rtol=0, atol=1e-4)
    unrefined = hyper_inferer(deformation, sweep=2)(image, network, hyper=hyper)
    torch.testing.assert_close(pred["sweep_ddf"], unrefined["sweep_ddf"], rtol=0, atol=0)
    assert (pred["svf"] - unrefined["svf"]).abs().max() > 0.1


@both
@torch.no_grad()
def test_a_larger_lambda_makes_a_smoother_refined_field_and_1_none(size):
    image, deformation = phantom_pair(size, seed=1)["image"], StationaryVelocity()
    refine = HyperRefinement(deformation, levels=(2, 1), iterations=8, similarity="lncc")
    spreads = []
    for value in (0.0, 0.3, 0.7, 1.0):
        pred = hyper_inferer(deformation, value, refinement=refine)(image, ZeroField(len(size)))
        spreads.append(float(jacobian_determinant(pred["ddf"]).std()))
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 0.2 * spreads[0]


def test_a_usual_lambda_of_1_has_no_smoothness():
    with pytest.raises(ValueError, match="expected the usual lambda between 0 and 1, got 1"):
        HyperRefinement(StationaryVelocity(), usual=1)


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
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_the_inferer_refuses_hyper_parameters_that_do_not_fit(kwargs, message):
    with pytest.raises(ValueError, match=message):
        hyper_inferer(StationaryVelocity(), **kwargs)


def test_more_values_than_the_network_has_are_named():
    with pytest.raises(ValueError, match=r"expected 1 hyper-parameters"):
        hyper_inferer(StationaryVelocity(), [0.5, 0.5])(phantom_pair(SIZES[0])["image"], make_network(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sweep": 3}, "a sweep needs a network"), ({"hyper": "auto", "criterion": alike}, "'auto' needs a network")],
    ids=["sweep", "auto"],
)
def test_a_network_without_hyper_parameters_is_refused(options, message):
    with pytest.raises(ValueError, match=f"{message} with hyper-parameters, not ZeroField"):
        hyper_inferer(StationaryVelocity(), **options)(phantom_pair(SIZES[0])["image"], ZeroField(2))
