"""Metrics that are optimised for a pair."""

import pytest
import torch
from methods.rdmm.cases import BASE, PAIR_KERNEL, both, metric, optimizer, pair, pair_loss, region_loss, trained_looking

from custom_components import fields
from custom_components.data.phantoms import phantom_pair
from custom_components.deformations.kernels import MultiGaussianKernel
from custom_components.deformations.momentum import VectorMomentum
from custom_components.fields import resize_map
from custom_components.inference.multistep import MultiStepInferer
from custom_components.inference.refinement import PairwiseOptimizer
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import MeanEnergy
from custom_components.losses.similarity import MSE
from custom_components.methods.rdmm.metric import MetricSettings, RegionSpecificMomentum, StationaryMetricMomentum
from custom_components.methods.rdmm.networks import RegionMomentumNetwork, RegularizerNetwork
from custom_components.methods.rdmm.objective import (
    MetricLearningLoss,
    OMTPenalty,
    RangePenalty,
    RegionLoss,
    WeightTotalVariation,
)
from custom_components.networks.momentum_net import MomentumNetwork


class Recording(RegionLoss):
    """Remembers the epoch, the schedule and the value of each call."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.epochs, self.schedules, self.values = [], [], []

    def forward(self, pred, batch):
        self.epochs.append(self.epoch)
        self.schedules.append(self.schedule)
        self.values.append(super().forward(pred, batch))
        return self.values[-1]


@pytest.mark.parametrize("method", ["adam", "lbfgs"])
def test_the_schedule_follows_the_iterations_of_an_optimisation(method):
    moving, fixed = pair((20, 22)).chunk(2, 1)
    loss = Recording(pair_loss(), base_range=RangePenalty(PAIR_KERNEL.weights))
    PairwiseOptimizer(metric(), loss, levels=[2, 1], iterations=[4, 6], method=method)(moving, fixed)
    assert sorted(set(loss.epochs)) == [0, 1, 2, 3, 4]
    assert loss.epochs == sorted(loss.epochs)


@pytest.mark.parametrize("rate", [0.2, None])
def test_a_loss_that_rises_by_its_schedule_does_not_end_a_level(rate):
    moving, fixed = pair((20, 22)).chunk(2, 1)
    omt = OMTPenalty(PAIR_KERNEL.sigmas, squared=True)
    loss = Recording(pair_loss(), omt=omt, omt_weight=5.0, static=4, rate=rate)
    search = PairwiseOptimizer(metric(), loss, levels=[1], iterations=[24])
    search.tolerance = 1e-3
    search(moving, fixed)
    if rate is None:
        assert set(loss.epochs) == {0}
    else:
        assert max(loss.epochs) == 11
        assert float(loss.values[-1]) > float(loss.values[0])


def test_a_schedule_that_is_over_lets_a_level_end():
    moving, fixed = pair((20, 22)).chunk(2, 1)
    loss = Recording(pair_loss(), omt=OMTPenalty(PAIR_KERNEL.sigmas, squared=True), static=0, rate=0.2)
    search = PairwiseOptimizer(metric(), loss, levels=[1], iterations=[60])
    search.tolerance = 0.5
    search(moving, fixed)
    assert 10 <= max(loss.epochs) * 2 < 40


def test_given_parameters_are_refined_at_the_end_of_the_schedule():
    moving, fixed = pair((20, 22)).chunk(2, 1)
    loss = Recording(pair_loss(), omt=OMTPenalty(PAIR_KERNEL.sigmas, squared=True), static=10, rate=10.0)
    optimizer = PairwiseOptimizer(metric(), loss, levels=[2, 1], iterations=[2, 2])
    start = optimizer(moving, fixed)
    assert {falling for falling, _ in loss.schedules} == {1.0}
    loss.schedules.clear()
    optimizer(moving, fixed, start)
    assert [pytest.approx(pair) for pair in set(loss.schedules)] == [(0.1, 0.9)]


def test_the_total_variation_of_a_map_is_the_same_on_other_grids():
    size, spacing = (64, 48), (1.0, 1.5)
    deformation = StationaryMetricMomentum(PAIR_KERNEL, spacing, metric=MetricSettings(2.0, "linear"))
    loss = MetricLearningLoss(pair_loss(), variation=WeightTotalVariation(spacing=2.0))
    n, found = len(PAIR_KERNEL.sigmas), []
    ramp = torch.linspace(-0.1, 0.1, 32).view(1, 1, -1, 1).expand(1, n, 32, 24) * torch.arange(n).view(1, n, 1, 1)
    for factor in (1, 2, 4):
        coarse = tuple(k // factor for k in size)
        level = deformation.on_grid(size, coarse)
        small = level.parameter_size(coarse)
        x = torch.cat([torch.zeros(1, 2, *small), resize_map(ramp, small)], 1)
        pred = {**level(x, coarse), "warped": torch.zeros(1, 1, *coarse)}
        images = {key: torch.zeros(1, 1, *coarse) for key in ("moving", "fixed")}
        found.append(float(loss.terms(pred, images)["variation"]))
    assert found == pytest.approx([found[0]] * 3, rel=0.15)


@both
def test_channels_that_a_start_lacks_begin_at_zero(size):
    moving, fixed = pair(size).chunk(2, 1)
    start = 0.1 * torch.randn(1, len(size), *[-(-n // 2) for n in size])
    search = optimizer(metric(), loss=region_loss())
    found = search(moving, fixed, start)
    padded = torch.cat([start, torch.zeros_like(start[:, :1]).expand(-1, 3, *start.shape[2:])], 1)
    assert found.shape == padded.shape
    assert torch.equal(found, search(moving, fixed, padded))


def test_a_pair_can_have_a_deformation_of_its_own():
    moving, fixed = pair((24, 26)).chunk(2, 1)
    given = metric().given(torch.rand(1, 3, 5, 5) + 0.1)
    own = optimizer(given)(moving, fixed)
    assert torch.equal(optimizer(metric())(moving, fixed, deformation=given), own)


def test_the_refinement_of_a_single_step_starts_from_the_networks_answer():
    size = (32, 32)
    image = pair(size)
    deformation = VectorMomentum(PAIR_KERNEL, 1.0, 3)
    network = MomentumNetwork(2, (4, 4, 4), head_std=0.01)
    refine = optimizer(deformation, iterations=2)
    single = MultiStepInferer(deformation, refinement=refine)(image, network)
    expected = RegistrationInferer(deformation, refinement=refine)(image, network)
    assert len(single["steps"]) == 1
    assert torch.equal(single["ddf"], expected["ddf"])
    assert len(MultiStepInferer(deformation, num_steps=2, refinement=refine)(image, network)["steps"]) == 3


def test_the_metric_of_several_steps_is_that_of_the_first():
    size = (32, 32)
    network = RegionMomentumNetwork(MomentumNetwork(2, (4, 4, 4), head_std=0.01), RegularizerNetwork(2, 3))
    inferer = MultiStepInferer(metric(quantity="root"), num_steps=2, from_first=["sigma", "svf"])
    pred = inferer(pair(size), trained_looking(network))
    assert "svf" not in pred
    assert torch.equal(pred["sigma"], pred["steps"][0]["sigma"])
    assert not torch.equal(pred["sigma"], pred["steps"][1]["sigma"])


@pytest.mark.slow
def test_momentum_and_weights_are_optimised_together():
    """Level by level, from nothing; given pre-weights leave the momentum alone."""
    pair = phantom_pair((33, 28), seed=2)
    kernel = MultiGaussianKernel((1.5, 3.0, 6.0), BASE)
    deformation = RegionSpecificMomentum(kernel, num_steps=4, metric=MetricSettings(2.0))
    loss = RegistrationLoss(MSE(0.1), MeanEnergy(), 0.01, regularized="energy")
    options = {"levels": [2, 1], "iterations": [8, 8], "method": "lbfgs"}
    found = PairwiseOptimizer(deformation, loss, **options)(pair["moving"], pair["fixed"])
    assert found.shape == (1, 5, 17, 14)
    assert found[:, 2:].abs().max() > 1e-3
    warped = fields.warp(pair["moving"], deformation(found, (33, 28))["ddf"])
    assert (warped - pair["fixed"]).square().mean() < 0.5 * (pair["moving"] - pair["fixed"]).square().mean()
    again = PairwiseOptimizer(deformation, loss, **options)(pair["moving"], pair["fixed"], found)
    assert again.shape == found.shape
    fixed = deformation.given(deformation(found, (33, 28))["pre_weights"])
    alone = PairwiseOptimizer(fixed, loss, **options)(pair["moving"], pair["fixed"], found[:, :2])
    assert alone.shape == (1, 2, 17, 14)
