"""The pairwise optimiser."""

import math

import pytest
import torch
from inference.cases import both

from custom_components.data.phantoms import phantom_pair
from custom_components.deformations.velocity import Displacement, StationaryVelocity
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import jacobian_determinant, warp
from custom_components.inference.pyramid import shrink
from custom_components.inference.refinement import PairwiseOptimizer
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import GradientPenalty
from custom_components.losses.similarity import LNCC, MSE
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet


def make_optimizer(deformation=None, **kwargs):
    loss = RegistrationLoss(
        LNCC(7), GradientPenalty(), 0.1, folding_weight=10.0, regularized=kwargs.pop("field", "svf")
    )
    return PairwiseOptimizer(deformation or StationaryVelocity(), loss, **kwargs)


@both
@pytest.mark.parametrize("method", ["adam", "lbfgs"])
def test_optimisation_from_zero_aligns_a_phantom(size, method):
    pair = phantom_pair([2 * n for n in size], seed=1)
    moving, fixed = pair["moving"], pair["fixed"]
    optimizer = make_optimizer(levels=(2, 1), iterations=20, method=method)
    svf = optimizer(moving, fixed)
    ddf = StationaryVelocity()(svf, moving.shape[2:])["ddf"]
    before = mean_dice(pair["label_moving"], pair["label_fixed"]).mean()
    after = mean_dice(warp(pair["label_moving"], ddf, mode="nearest"), pair["label_fixed"]).mean()
    assert after > before + 0.3 * (1 - before)
    assert jacobian_determinant(ddf).min() > 0


def test_optimisation_starts_from_given_parameters():
    pair = phantom_pair((48, 48), seed=2)
    moving, fixed = pair["moving"], pair["fixed"]
    first = make_optimizer(levels=(2, 1), iterations=15)(moving, fixed)
    assert torch.equal(make_optimizer(levels=(1,), iterations=0)(moving, fixed, first), first)
    loss = RegistrationLoss(LNCC(7), GradientPenalty(), 0.1)

    def value(svf):
        pred = StationaryVelocity()(svf, moving.shape[2:])
        return float(loss({**pred, "warped": warp(moving, pred["ddf"])}, {"moving": moving, "fixed": fixed}))

    refined = make_optimizer(levels=(1,), iterations=10, learning_rate=0.05)(moving, fixed, first)
    assert value(refined) < value(first) < value(torch.zeros_like(first))


def test_displacements_can_be_optimised_too():
    pair = phantom_pair((48, 48), seed=2)
    optimizer = make_optimizer(Displacement(stride=2), levels=(2, 1), iterations=15, field="ddf")
    ddf = Displacement(stride=2)(optimizer(pair["moving"], pair["fixed"]), (48, 48))["ddf"]
    warped = warp(pair["moving"], ddf)
    assert MSE()(warped, pair["fixed"]) < 0.5 * MSE()(pair["moving"], pair["fixed"])


def test_masked_regions_do_not_pull():
    pair = phantom_pair((48, 48), seed=3)
    disturbed = pair["moving"].clone()
    disturbed[..., :10, :10] = torch.rand(10, 10)
    mask = torch.ones_like(disturbed)
    mask[..., :14, :14] = 0
    optimizer = make_optimizer(levels=(2, 1), iterations=15)
    clean = optimizer(pair["moving"], pair["fixed"], masks={"mask_moving": mask, "mask_fixed": mask})
    masked = optimizer(disturbed, pair["fixed"], masks={"mask_moving": mask, "mask_fixed": mask})
    assert (masked - clean).abs().mean() < 0.25 * clean.abs().mean()


def test_refinement_belongs_to_the_inferer():
    pair = phantom_pair((48, 48), seed=4)
    network = VoxelMorphUNet(2, half_resolution=True)
    refinement = make_optimizer(levels=(2, 1), iterations=15)
    image = torch.cat([pair["moving"], pair["fixed"]], 1)
    with torch.no_grad():
        pred = RegistrationInferer(StationaryVelocity(), refinement=refinement)(image, network)
    assert MSE()(pred["warped"], pair["fixed"]) < 0.5 * MSE()(pair["moving"], pair["fixed"])


def test_shrinking_keeps_corners_and_means():
    image = torch.rand(1, 1, 33, 40)
    small = shrink(image, 4)
    assert small.shape == (1, 1, 9, 10)
    assert small.mean() == pytest.approx(image.mean().item(), abs=0.02)
    ramp = torch.arange(33.0).view(1, 1, 33, 1).expand(1, 1, 33, 40)
    torch.testing.assert_close(shrink(ramp, 2)[0, 0, 1:-1, 0], 2 * torch.arange(1.0, 16.0))


def test_a_loss_that_is_not_finite_stops_the_run():
    image = torch.full((1, 1, 16, 16), float("nan"))
    with pytest.raises(RuntimeError, match="became nan in iteration 1"):
        make_optimizer(levels=(1,), iterations=5)(image, image)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_optimizer(levels=(2, 1), iterations=(5,)), "iterations for 2 levels"),
        (lambda: make_optimizer(method="newton"), "adam or lbfgs"),
    ],
)
def test_the_optimiser_refuses_settings_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class Plateau(RegistrationLoss):
    """Similarities that go as given, whatever the deformation, with a total that is lowest in its second evaluation."""

    def __init__(self, similarities):
        super().__init__(None, GradientPenalty(), 0.0)
        self.values, self.seen, self.evaluations = similarities, [], 0

    def forward(self, pred, batch):
        pred["terms"] = {"similarity": torch.tensor(self.values(self.evaluations))}
        self.seen.append(pred["svf"].detach().clone())
        self.evaluations += 1
        total = {1: 0.5}.get(self.evaluations - 1, 1.0 / self.evaluations + 1)
        return total + (pred["svf"] - 1).square().mean() - (pred["svf"].detach() - 1).square().mean()


@pytest.mark.parametrize(
    ("similarities", "expected"),
    [
        (lambda i: 0.5, 10),
        (lambda i: max(0.3, 0.9 - 0.05 * i), 22),
        (lambda i: 0.9 * 0.95**i, 100),
        (lambda i: 0.5 + 0.1 * (-1) ** i, 11),
    ],
    ids=["no gain", "a gain that ends", "a gain without end", "noise"],
)
def test_auto_ends_when_the_similarity_gains_nothing_more(similarities, expected, caplog):
    pair, loss = phantom_pair((16, 16), seed=2), Plateau(similarities)
    optimizer = PairwiseOptimizer(StationaryVelocity(), loss, levels=[1], iterations="auto")
    optimizer.tolerance = -math.inf
    with caplog.at_level("INFO"):
        optimizer(pair["moving"], pair["fixed"])
    assert loss.evaluations == expected
    assert f"{expected} iterations, similarity term" in caplog.text


def test_auto_keeps_the_parameters_of_the_lowest_loss():
    pair, loss = phantom_pair((16, 16), seed=2), Plateau(lambda i: 0.5)
    found = PairwiseOptimizer(StationaryVelocity(), loss, levels=[1], iterations="auto")(pair["moving"], pair["fixed"])
    torch.testing.assert_close(found, loss.seen[1])
    assert not torch.allclose(found, loss.seen[-1])


@pytest.mark.parametrize("method", ["adam", "lbfgs"])
def test_auto_aligns_as_a_fixed_number_of_iterations_does(method):
    pair = phantom_pair((48, 48), seed=1)
    moving, fixed = pair["moving"], pair["fixed"]
    for iterations in ("auto", 60):
        svf = make_optimizer(levels=(2, 1), iterations=iterations, method=method)(moving, fixed)
        ddf = StationaryVelocity()(svf, moving.shape[2:])["ddf"]
        after = mean_dice(warp(pair["label_moving"], ddf, mode="nearest"), pair["label_fixed"]).mean()
        assert after > 0.9, iterations
