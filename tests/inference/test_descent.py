"""Descent by smooth steps."""

import math

import pytest
import torch
from inference.cases import both

from custom_components.data.phantoms import phantom_pair
from custom_components.deformations.velocity import Displacement, StationaryVelocity
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import jacobian_determinant, warp
from custom_components.inference.descent import Diffused, diffused, force_of_a_voxel, strength
from custom_components.inference.refinement import PairwiseOptimizer
from custom_components.inference.refiner import refiner
from custom_components.losses.pair import pair_loss
from custom_components.losses.similarity import LNCC, MSE


def registered(pair, deformation=None, start=None, **options):
    deformation = deformation or StationaryVelocity()
    options = {"levels": [2, 1], "iterations": 12, **options}
    found = refiner(deformation, **options)(pair["moving"], pair["fixed"], start)
    return deformation(found, pair["fixed"].shape[2:])["ddf"]


def overlap(pair, ddf):
    return float(mean_dice(warp(pair["label_moving"], ddf, mode="nearest"), pair["label_fixed"]).mean())


def sd_log_jacobian(ddf):
    return float(jacobian_determinant(ddf).clamp(min=1e-3).log().std())


@both
@pytest.mark.parametrize("kind", [StationaryVelocity, Displacement])
def test_a_phantom_is_aligned_from_zero(size, kind):
    pair = phantom_pair([2 * n for n in size], seed=1)
    ddf = registered(pair, kind(), regularized="svf" if kind is StationaryVelocity else "ddf")
    before = overlap(pair, torch.zeros_like(ddf))
    assert overlap(pair, ddf) > before + 0.3 * (1 - before)
    assert jacobian_determinant(ddf).min() > 0


@both
def test_an_image_registered_to_itself_stays_where_it_is(size):
    image = phantom_pair([2 * n for n in size], seed=1)["fixed"]
    pair = {"moving": image, "fixed": image}
    assert float(registered(pair).abs().max()) < 1e-3
    network = 0.5 * torch.randn(1, len(size), *StationaryVelocity().parameter_size(image.shape[2:]))
    assert float(registered(pair, start=network, levels=[1]).abs().max()) < 1e-3  # a network's answer does not help


def test_auto_is_as_good_as_a_number_of_iterations():
    pair = phantom_pair((96, 96), seed=1)
    fields = [registered(pair, iterations=iterations) for iterations in ("auto", 12)]
    assert overlap(pair, fields[0]) > overlap(pair, fields[1]) - 0.01
    assert sd_log_jacobian(fields[0]) < 1.2 * sd_log_jacobian(fields[1])


@both
def test_noise_moves_an_image_less_than_by_adam(size):
    torch.manual_seed(0)
    pool = torch.nn.functional.avg_pool2d if len(size) == 2 else torch.nn.functional.avg_pool3d
    image = pool(torch.rand(1, 1, *size), 7, 1, 3)
    image = (image - image.min()) / (image.max() - image.min())
    noisy = {key: image + 0.03 * torch.randn_like(image) for key in ("moving", "fixed")}
    adam = PairwiseOptimizer(StationaryVelocity(), pair_loss(0.1, folding_weight=30.0), levels=[2, 1], iterations=20)(
        noisy["moving"], noisy["fixed"]
    )
    moved = StationaryVelocity()(adam, size)["ddf"]
    assert float(registered(noisy).norm(dim=1).mean()) < 0.8 * float(moved.norm(dim=1).mean())


def test_smoothness_trades_overlap_for_regularity():
    pair = phantom_pair((96, 96), seed=3)
    fields = [registered(pair, smoothness=smoothness) for smoothness in (0.25, 1.0, 4.0, 16.0)]
    roughness = [sd_log_jacobian(ddf) for ddf in fields]
    assert roughness == sorted(roughness, reverse=True)
    assert overlap(pair, fields[0]) > overlap(pair, fields[-1])


def test_each_sample_of_a_batch_is_registered_on_its_own():
    pairs = [phantom_pair((64, 64), seed=seed) for seed in (1, 2)]
    both_at_once = {key: torch.cat([pair[key] for pair in pairs]) for key in ("moving", "fixed")}
    starts = [0.3 * torch.randn(1, 2, 32, 32), torch.zeros(1, 2, 32, 32)]
    together = registered(both_at_once, start=torch.cat(starts), levels=[1])
    for i, (pair, start) in enumerate(zip(pairs, starts, strict=True)):
        alone = registered(pair, start=start, levels=[1])
        assert torch.allclose(together[i : i + 1], alone, atol=2e-3)


def test_a_pair_in_a_batch_with_another_keeps_its_field():
    torch.manual_seed(0)
    image = phantom_pair((64, 64), seed=1)["fixed"]
    small = {"moving": warp(image, torch.full((1, 2, 64, 64), 0.4)), "fixed": image}
    noise = {key: torch.rand(1, 1, 64, 64) for key in ("moving", "fixed")}
    together = registered({key: torch.cat([small[key], noise[key]]) for key in small}, similarity="lncc")
    assert torch.allclose(together[:1], registered(small, similarity="lncc"), atol=2e-3)


@pytest.mark.parametrize("similarity", [MSE(), MSE(0.01), LNCC(5)])
def test_the_unit_of_the_similarity_does_not_matter(similarity):
    pair = phantom_pair((64, 64), seed=1)
    loss = Diffused(pair_loss(0.0, similarity=similarity), 1.0)
    optimizer = refiner(StationaryVelocity(), levels=[2, 1], iterations=12)
    optimizer.loss = loss
    ddf = StationaryVelocity()(optimizer(pair["moving"], pair["fixed"]), (64, 64))["ddf"]
    assert overlap(pair, ddf) > overlap(pair, torch.zeros_like(ddf)) + 0.05


def test_a_force_is_that_of_one_voxel_at_any_resolution():
    image = phantom_pair((96, 96), seed=1)["fixed"]
    loss = Diffused(pair_loss(0.0, similarity=LNCC(5)), 1.0)
    force = force_of_a_voxel(StationaryVelocity(), loss, {"fixed": image}, 1.2)
    assert force.shape == (1, 1, 1, 1)
    assert float(force) > 0
    blank = force_of_a_voxel(StationaryVelocity(), loss, {"fixed": torch.zeros_like(image)}, 1.2)
    assert float(blank) == 0


@both
def test_diffusion_keeps_the_mean_and_spreads_a_point_as_a_gaussian(size):
    field = torch.zeros(1, 1, *[41] * len(size))
    field[(0, 0, *[20] * len(size))] = 1
    spread = diffused(field, [1.5] * len(size))
    assert float(spread.sum()) == pytest.approx(1, abs=1e-4)
    index = torch.arange(41.0) - 20
    profile = spread.sum(tuple(range(3, field.ndim)))[0, 0]
    assert float((profile * index.square()).sum()) == pytest.approx(1.5**2, rel=1e-3)
    constant = torch.full_like(field, 2.0)
    assert torch.allclose(diffused(constant, [0.3] * len(size)), constant, atol=1e-5)


def test_an_empty_background_does_not_weaken_the_strength():
    force = torch.zeros(1, 2, 40, 40)
    force[:, 0, 10:20, 10:20] = 3.0
    assert float(strength(force)) == pytest.approx(3.0)
    assert float(strength(torch.zeros_like(force))) == 0


@pytest.mark.parametrize("variance", [-1.0, math.inf, math.nan])
def test_a_variance_that_is_none_is_refused(variance):
    with pytest.raises(ValueError, match="variance"):
        Diffused(MSE(), variance)
