"""The loss of momenta."""

import pytest
import torch
import torch.nn.functional as F
from methods.quicksilver.cases import KERNEL, OTHER, dimensions

from custom_components.deformations.kernels import HelmholtzKernel
from custom_components.fields import identity_grid
from custom_components.methods.quicksilver.objective import MomentumLoss


def loss_of(loss, pred, true):
    return loss({"prediction": pred}, {"momentum": true})


@pytest.mark.parametrize("penalty", ["l1", "l2"])
@pytest.mark.parametrize("kernel", [None, KERNEL], ids=["plain", "smoothed"])
def test_equal_momenta_have_no_loss(kernel, penalty):
    momentum = torch.randn(2, 2, 15, 15)
    assert loss_of(MomentumLoss(penalty, kernel), momentum, momentum) == 0


@dimensions
def test_without_a_kernel_the_loss_is_the_mean_difference(dims):
    pred, true = torch.randn(2, 3, dims, *[7] * dims)
    torch.testing.assert_close(loss_of(MomentumLoss(), pred, true), (pred - true).abs().mean())
    torch.testing.assert_close(loss_of(MomentumLoss("l2"), pred, true), (pred - true).square().mean())


def test_the_term_is_left_for_the_logs():
    pred = {"prediction": torch.ones(1, 2, 7, 7)}
    MomentumLoss("l2")(pred, {"momentum": torch.zeros(1, 2, 7, 7)})
    assert pred["terms"] == {"l2": 1}


@pytest.mark.parametrize("exponent", [0.5, 1.0])
@pytest.mark.parametrize("place", [6, 0, 12], ids=["middle", "start", "end"])
def test_a_difference_is_smoothed_as_on_a_large_grid(place, exponent):
    """Also at the patch's border: nothing wraps around."""
    kernel = HelmholtzKernel(1.0, 1.0, 0.5, power=2)
    difference = torch.zeros(1, 2, 15, 15)
    difference[:, :, place : place + 3, place : place + 3] = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1)
    large = kernel.powered(F.pad(difference, (40, 41, 40, 41)), exponent, 0.8)[..., 40:55, 40:55]
    for penalty, expected in (("l1", large.abs().mean()), ("l2", large.square().mean())):
        loss = MomentumLoss(penalty, kernel, 0.8, exponent)
        torch.testing.assert_close(loss_of(loss, difference, torch.zeros_like(difference)), expected, rtol=1e-3, atol=0)


def test_squares_with_half_the_kernel_are_those_of_the_metric():
    kernel, difference = HelmholtzKernel(0.25, 1.0, power=2), torch.zeros(1, 2, 15, 15)
    difference[:, :, 5:10, 5:10] = torch.randn(1, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    loss = loss_of(MomentumLoss("l2", kernel), difference, torch.zeros_like(difference))
    torch.testing.assert_close(loss, (difference * kernel(difference)).mean(), rtol=1e-3, atol=0)


@dimensions
@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_the_finest_detail_hardly_counts_with_a_kernel(penalty, dims):
    smooth = torch.ones(1, dims, *[15] * dims)
    finest = 1 - 2 * (identity_grid(smooth.shape[2:]).sum(0) % 2) * smooth
    zero = torch.zeros_like(smooth)
    assert loss_of(MomentumLoss(penalty), finest, zero) == loss_of(MomentumLoss(penalty), smooth, zero)
    loss = MomentumLoss(penalty, KERNEL)
    assert loss_of(loss, finest, zero) < 0.1 * loss_of(loss, smooth, zero)


@pytest.mark.parametrize("penalty", ["l1", "l2"])
@pytest.mark.parametrize("kernel", [None, OTHER], ids=["plain", "smoothed"])
def test_the_loss_is_differentiable(kernel, penalty):
    """In float32; all differences are positive, so that the absolute value has no kink near."""
    generator = torch.Generator().manual_seed(0)
    pred, true = torch.rand(2, 2, 2, 5, 6, generator=generator, dtype=torch.float64)
    loss = MomentumLoss(penalty, kernel)
    inputs = ((pred + 2).requires_grad_(),)
    assert torch.autograd.gradcheck(lambda p: loss_of(loss, p, true), inputs, eps=0.01, atol=1e-4, rtol=0.01)


def test_an_unknown_penalty_is_named():
    with pytest.raises(ValueError, match="expected penalty l1 or l2, got 'l3'"):
        MomentumLoss("l3")
