"""Weights of a metric: sums, bounds, formulas, masks."""

import pytest
import torch
from methods.rdmm.cases import BASE, KERNEL, SIGMA, grids, logits, scene, shot_of
from torch.autograd import gradcheck

from custom_components.deformations.kernels import gaussian_kernel
from custom_components.methods.rdmm.metric import RegionFlow
from custom_components.methods.rdmm.weights import (
    border_mask,
    label_weights,
    smooth_weights,
    softmax_weights,
    weighted_linear_softmax,
)


def test_smoothed_weights_keep_constants_and_sums():
    h = torch.rand(2, 3, 7, 6, dtype=torch.float64)
    smoothed = smooth_weights(h, 1.3, (1.0, 0.7))
    torch.testing.assert_close(smoothed, gaussian_kernel(1.3, padding="reflect")(h, (1.0, 0.7)))
    torch.testing.assert_close(smooth_weights(torch.ones_like(h), 1.3), torch.ones_like(h))
    torch.testing.assert_close(smoothed.sum((2, 3)), h.sum((2, 3)))
    assert smooth_weights(h, 0.0) is h


@grids
def test_a_mask_stops_the_border_and_keeps_the_energy(size, spacing):
    momentum, h = scene(size, spacing)
    mask = border_mask(size, 2, 0.05, spacing, like=momentum)
    assert mask.shape == (1, 1, *size)
    shot = shot_of(momentum, h, spacing=spacing, mask=mask, num_steps=20)
    free = shot_of(momentum, h, spacing=spacing)
    assert shot.velocity[:, :, 0].abs().max() < 0.4 * free.velocity[:, :, 0].abs().max()
    flow = RegionFlow(KERNEL, h, weight_sigma=SIGMA, spacing=spacing, mask=mask)
    after = flow.respond(shot.momentum, smooth_weights(shot.state[1], SIGMA, spacing))[0]
    after = (shot.momentum * after).sum(1).flatten(1).mean(1)
    torch.testing.assert_close(after, shot.energy, rtol=1e-4, atol=0)


def test_a_border_mask_is_a_squared_product_of_error_functions():
    mask = border_mask((60, 50), 10, 3.0)[0, 0].double()

    def edge(n, length):
        x = torch.arange(length).double()
        return 0.5 * (torch.erf((x - n + 0.5) / 3 / 2**0.5) - torch.erf((x - (length - n) + 0.5) / 3 / 2**0.5))

    expected = edge(10, 60).view(-1, 1) * edge(10, 50)
    torch.testing.assert_close(mask, expected.square(), rtol=0, atol=3e-3)
    assert torch.equal(border_mask((5, 6), 1, 0.0)[0, 0, :, 2], torch.tensor([0.0, 1, 1, 1, 0]))
    assert torch.equal(border_mask((5, 6), 0, 0.0), torch.ones(1, 1, 5, 6))


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("mapping", [softmax_weights, weighted_linear_softmax])
@pytest.mark.parametrize("size", [(4, 5), (2, 3, 4)], ids=["2-D", "3-D"])
def test_weights_sum_to_one_and_start_at_the_base(mapping, squared, size):
    power = 2 if squared else 1
    zero = mapping(torch.zeros(1, 3, *size), [2.0, 3.0, 5.0], squared=squared)
    expected = torch.tensor(BASE).view(1, 3, *[1] * len(size)).expand_as(zero)
    torch.testing.assert_close(zero**power, expected)
    for scale in (0.1, 1.0, 100.0):
        weights = mapping(logits(size, 2, scale), BASE, squared=squared)
        assert weights.min() > 0
        torch.testing.assert_close((weights**power).sum(1), torch.ones(2, *size).double())


@pytest.mark.parametrize("squared", [False, True])
def test_weights_are_at_least_the_minimum(squared):
    weights = weighted_linear_softmax(logits(scale=5.0), BASE, squared=squared, minimum=0.02)
    assert 0.02 <= weights.min() < 0.0205


def test_linear_weights_are_their_formula():
    x = torch.tensor([0.1, -0.05, 0.1]).view(1, 3, 1, 1)
    expected = torch.tensor([0.25, 0.2, 0.55]).view(1, 3, 1, 1)
    torch.testing.assert_close(weighted_linear_softmax(x, BASE), expected)
    x = torch.tensor([0.6, 0.0, 0.0]).view(1, 3, 1, 1)  # 0.6, 0.1, 0.3
    torch.testing.assert_close(
        weighted_linear_softmax(x, BASE), torch.tensor([0.6, 0.1, 0.3]).view(1, 3, 1, 1), rtol=1e-6, atol=1e-6
    )
    x = torch.tensor([1.2, 0.0, 0.0]).view(1, 3, 1, 1)  # 1, 0, 0.1 before the sum
    result = weighted_linear_softmax(x, BASE, minimum=0.0).flatten()
    torch.testing.assert_close(result, torch.tensor([1.0, 0.0, 0.1]) / 1.1)


def test_softmax_weights_are_the_normalized_softmax():
    x, limit = logits(), 1.5
    logit = 0.5 * torch.tensor(BASE).double().log().view(1, 3, 1, 1) + limit * torch.tanh(x / limit)
    softmax = torch.softmax(logit, 1)
    torch.testing.assert_close(softmax_weights(x, BASE, squared=True), softmax / softmax.norm(dim=1, keepdim=True))
    extreme = softmax_weights(100 * x.sign(), BASE, limit=1.0)
    assert 0 < extreme.min() < extreme.max() < 1


@pytest.mark.parametrize("squared", [False, True])
def test_weights_are_differentiable(squared):
    x = (0.05 * logits((2, 3), 1)).requires_grad_()
    for mapping in (softmax_weights, weighted_linear_softmax):
        assert gradcheck(lambda x, f=mapping: f(x, BASE, squared=squared), (x,))


def test_label_weights_are_the_roots_of_their_regions():
    labels = torch.zeros(2, 1, 9, 8, dtype=torch.int64)
    labels[0, :, 2:5], labels[1, :, :, 6:] = 3, 1
    h = label_weights(labels, {3: (1, 1, 2), 1: (0, 1, 0)}, elsewhere=(0.0, 0.0, 1.0))
    torch.testing.assert_close(h[0, :, 3, 3].square(), torch.tensor([0.25, 0.25, 0.5]))
    torch.testing.assert_close(h[1, :, 3, 7], torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(h[:, :, 8, 0], torch.tensor([[0.0, 0.0, 1.0]] * 2))
    smooth = label_weights(labels, {3: (1, 1, 2), 1: (0, 1, 0)}, (0.0, 0.0, 1.0), sigma=1.0, spacing=(1.0, 0.7))
    torch.testing.assert_close(smooth.square().sum(1), torch.ones(2, 9, 8))
    assert (smooth[0, 0, :, 0].diff().abs() < 0.3).all()
    volume = label_weights(torch.ones(1, 1, 3, 4, 2, dtype=torch.uint8), {}, (1.0, 3.0))
    torch.testing.assert_close(volume.square()[0, :, 0, 0, 0], torch.tensor([0.25, 0.75]))
