"""Penalties of the weights of a metric, and their schedules."""

import math

import pytest
import torch
from methods.rdmm.cases import BASE, logits
from torch.autograd import gradcheck

from custom_components.methods.rdmm.objective import (
    InputRangePenalty,
    OMTPenalty,
    RangePenalty,
    WeightTotalVariation,
    omt_weight,
    range_weight,
)
from custom_components.methods.rdmm.weights import softmax_weights

SIGMAS = (1.0, 2.0, 8.0)


def test_transport_costs_are_shares_of_the_longest_way():
    weights = torch.tensor([0.5, 0.3, 0.2]).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    # log(8 / sigma) / log(8): 1, 2/3, 0
    assert float(OMTPenalty(SIGMAS)(weights)) == pytest.approx(0.5 + 0.3 * 2 / 3)
    assert float(OMTPenalty(SIGMAS, 2)(weights)) == pytest.approx(0.5 + 0.3 * 4 / 9)
    assert float(OMTPenalty(SIGMAS, squared=True)(weights)) == pytest.approx(0.25 + 0.09 * 2 / 3)
    for i, expected in enumerate((1, 2 / 3, 0)):
        assert float(OMTPenalty(SIGMAS)(torch.eye(3)[i].view(1, 3, 1, 1, 1))) == pytest.approx(expected)
    assert float(OMTPenalty(SIGMAS[::-1])(torch.eye(3)[2].view(1, 3, 1, 1))) == pytest.approx(1)


def test_the_range_penalty_is_the_squared_distance_from_the_base():
    weights = torch.tensor([0.6, 0.0, 0.8]).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    expected = sum((w - b**0.5) ** 2 for w, b in zip((0.6, 0.0, 0.8), BASE, strict=True))
    assert float(RangePenalty([4, 6, 10])(weights)) == pytest.approx(expected)
    plain = sum((w - b) ** 2 for w, b in zip((0.6, 0.0, 0.8), BASE, strict=True))
    assert float(RangePenalty(BASE, squared=False)(weights)) == pytest.approx(plain)
    zero = torch.zeros(1, 3, 2, 3, 4)
    assert float(RangePenalty(BASE)(softmax_weights(zero, BASE, squared=True))) == pytest.approx(0, abs=1e-12)


def test_the_input_range_penalty_is_what_the_clamp_cuts_off():
    x = torch.tensor([1.2, 0.0, 0.0]).view(1, 3, 1, 1)  # entries 1, -0.1, 0.1
    penalty = InputRangePenalty(BASE, minimum=0.01)
    assert float(penalty(x)) == pytest.approx(0.11**2)
    x = torch.tensor([1.8, 0.0, 0.0]).view(1, 3, 1, 1)  # 1.4, -0.3, -0.1
    assert float(penalty(x)) == pytest.approx(0.4**2 + 0.31**2 + 0.11**2)
    assert not penalty(0.01 * logits()).any()
    x.requires_grad_()
    penalty(x).backward()
    assert x.grad[0, 0] > 0 > x.grad[0, 1]


@pytest.mark.parametrize("spacing", [1.0, (2.0, 0.5)])
def test_total_variation_of_a_step_is_its_height_times_its_share_of_the_voxels(spacing):
    weights = torch.full((2, 2, 10, 6), 0.3)
    weights[:, :, :, 3:] = torch.tensor([0.8, 0.1]).view(2, 1, 1)
    h = 1.0 if spacing == 1.0 else 0.5
    c = [0.5 / h / 6, 0.2 / h / 6]
    assert float(WeightTotalVariation(spacing=spacing)(weights)) == pytest.approx(math.hypot(*c))
    assert float(WeightTotalVariation(spacing=spacing, coupled=False)(weights)) == pytest.approx(sum(c))


def test_total_variation_costs_less_at_an_edge():
    weights = torch.full((1, 2, 4, 12), 0.3)
    weights[..., 6:] = 0.8
    image = torch.zeros(1, 1, 4, 12)
    image[..., 6:] = 1.0
    penalty = WeightTotalVariation(edges=4.0, sigma=0.0)
    # The difference of the weights stands at voxel 5, where the image's slope is 1/2.
    assert float(penalty(weights, image) / penalty(weights)) == pytest.approx(1 / (1 + 4 * 0.5))
    assert float(penalty(weights, torch.ones(1, 1, 4, 12)) / penalty(weights)) == pytest.approx(1)
    smooth = WeightTotalVariation(edges=4.0, sigma=2.0)
    assert penalty(weights, image) < smooth(weights, image) < penalty(weights)
    assert penalty(weights, image.repeat_interleave(2, 3)) < penalty(weights)
    both = torch.cat([image, torch.zeros_like(image)], 1)
    assert penalty(weights, both) == penalty(weights, image)


def test_total_variation_has_a_gradient_at_constant_weights():
    weights = torch.full((1, 3, 4, 5), 0.3, dtype=torch.float64, requires_grad=True)
    WeightTotalVariation()(weights).backward()
    assert torch.equal(weights.grad, torch.zeros_like(weights))


def test_penalties_are_differentiable():
    weights = softmax_weights(logits((3, 4)), BASE).requires_grad_()
    image = torch.rand(2, 1, 5, 6, dtype=torch.float64)
    for penalty in (OMTPenalty(SIGMAS), OMTPenalty(SIGMAS, squared=True), RangePenalty(BASE)):
        assert gradcheck(penalty, (weights,))
    assert gradcheck(lambda w: WeightTotalVariation(sigma=0.8, spacing=(1.0, 0.7))(w, image), (weights,))
    assert gradcheck(InputRangePenalty(BASE), (logits((3, 4)).requires_grad_(),))


@pytest.mark.parametrize(
    ("rate", "shares"),
    [
        (5.0, {0: 1, 9: 1, 10: 0.83, 15: 0.65, 20: 0.40, 25: 0.20, 31: 0.1, 200: 0.1, 10**6: 0.1}),
        (10.0, {0: 1, 20: 0.79, 30: 0.58, 40: 0.33, 60: 0.1}),
    ],
)
def test_the_schedules_have_the_published_values(rate, shares):
    for epoch, share in shares.items():
        assert range_weight(epoch, rate=rate) == pytest.approx(share, abs=0.006), epoch
        assert range_weight(epoch, 10.0, rate=rate) == pytest.approx(10 * range_weight(epoch, rate=rate))
        assert omt_weight(epoch, 0.5, rate=rate) == pytest.approx(0.5 * (1 - range_weight(epoch, rate=rate)))
    assert omt_weight(0) == omt_weight(9) == 0
    assert omt_weight(100, 0.1) == pytest.approx(0.09)
    assert range_weight(3, static=2, rate=1.0) == pytest.approx(1 / (1 + math.e))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: OMTPenalty((1.0, 1.0)), "different positive standard deviations"),
        (lambda: OMTPenalty((0.0, 1.0)), "different positive standard deviations"),
        (lambda: OMTPenalty(SIGMAS)(torch.zeros(1, 2, 4, 4)), "expected 3 channels"),
        (lambda: RangePenalty((0.0, 1.0)), "positive base weights"),
        (lambda: RangePenalty(BASE)(torch.zeros(1, 4, 4, 4)), "expected 3 channels"),
        (lambda: InputRangePenalty(BASE)(torch.zeros(1, 4, 4, 4)), "expected 3 channels"),
        (lambda: WeightTotalVariation(-1.0), "edges and sigma of at least 0"),
        (lambda: WeightTotalVariation()(torch.zeros(2, 3, 4, 4), torch.zeros(3, 1, 4, 4)), "an image for weights"),
        (lambda: WeightTotalVariation(spacing=(1, 2, 3))(torch.zeros(2, 3, 4, 4)), "expected a positive spacing"),
    ],
)
def test_penalties_refuse_settings_and_weights_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
