"""Shooting in a metric that differs from place to place."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from methods.rdmm.cases import (
    ANISOTROPIC,
    BASE,
    GRIDS,
    KERNEL,
    SIGMA,
    VOXELS,
    WIDE,
    bump,
    grids,
    images,
    kinds,
    parameters_for,
    random_case,
    scene,
    shot_of,
    tensors,
)
from torch.autograd import gradcheck

from custom_components import fields
from custom_components.deformations.kernels import gaussian_kernel, smooth_weighted
from custom_components.deformations.operators import coadjoint
from custom_components.deformations.shooting import EPDiff, shoot
from custom_components.methods.rdmm.metric import MetricSettings, RegionFlow
from custom_components.methods.rdmm.weights import border_mask, smooth_weights

tiny = pytest.mark.parametrize("size", [(5, 6), (4, 5, 3)], ids=["2-D", "3-D"])


def energy_of(momentum, pre_weights, spacing, kernel=KERNEL, sigma=SIGMA):
    weights = smooth_weights(pre_weights, sigma, spacing)
    velocity = smooth_weighted(momentum, weights, kernel, spacing, form="square")
    return (momentum * velocity).sum(1).flatten(1).mean(1)


@grids
def test_the_energy_is_constant(size, spacing):
    momentum, h = scene(size, spacing, 0.8 if len(size) == 2 else 0.6)
    momentum = torch.cat([momentum, -0.5 * momentum])
    shot = shot_of(momentum, h, spacing=spacing, num_steps=20)
    torch.testing.assert_close(shot.energy, energy_of(momentum, h, spacing))
    after = energy_of(shot.momentum, shot.state[1], spacing)
    torch.testing.assert_close(after, shot.energy, rtol=1e-4, atol=0)
    assert shot.velocity.norm(dim=1).max() > (0.35 if len(size) == 2 else 0.1)
    assert (shot.momentum - momentum).abs().max() > 0.2 * momentum.abs().max()
    assert (shot.state[1] - h).abs().max() > 0.1


def force(momentum, weights, slopes, spacing):
    """By the kernels' Fourier transforms, Gaussian by Gaussian."""
    smoother, total = gaussian_kernel(SIGMA, padding="reflect"), 0.0
    for i, gaussian in enumerate(KERNEL.components()):
        product = (momentum * gaussian(weights[:, i : i + 1] * momentum, spacing)).sum(1, keepdim=True)
        total = total + smoother(product, spacing) * slopes[:, i]
    return total / torch.tensor(spacing, dtype=torch.float64).view(1, -1, *[1] * len(spacing))


def flow_of(pre_weights, spacing):
    return RegionFlow(KERNEL, pre_weights, weight_sigma=SIGMA, spacing=spacing)


@grids
def test_the_right_hand_side_is_its_formula(size, spacing):
    momentum, h = scene(size, spacing)
    rates, voxels = flow_of(h, spacing)((momentum, h))
    weights = gaussian_kernel(SIGMA, padding="reflect")(h, spacing)
    velocity = smooth_weighted(momentum, weights, KERNEL, spacing, form="square")
    torch.testing.assert_close(voxels * torch.tensor(spacing).view(1, -1, *[1] * len(size)), velocity)
    slopes = fields.spatial_gradient(h)
    expected = coadjoint(momentum, velocity, voxels, spacing) + force(momentum, weights, slopes, spacing)
    torch.testing.assert_close(rates[0], expected)
    torch.testing.assert_close(rates[1], -(slopes * voxels.unsqueeze(1)).sum(2))


@grids
def test_the_force_is_the_derivative_of_the_energy(size, spacing):
    momentum, h = scene(size, spacing)
    flow = flow_of(h, spacing)
    h.requires_grad_()
    velocity, derivative = flow.respond(momentum, smooth_weights(h, SIGMA, spacing))
    (gradient,) = torch.autograd.grad(0.5 * (momentum * velocity).sum(), h)
    torch.testing.assert_close(smooth_weights(derivative, SIGMA, spacing), gradient)


class WrongFlow(RegionFlow):
    """The force with another gradient of the pre-weights: that at time 0, or none."""

    def __init__(self, pre_weights, slopes, spacing):
        super().__init__(KERNEL, pre_weights, weight_sigma=SIGMA, spacing=spacing)
        self.slopes = slopes

    def __call__(self, state):
        rates, voxels = super().__call__(state)
        slopes = self.slopes - fields.spatial_gradient(state[1])
        change = force(state[0], smooth_weights(state[1], SIGMA, self.spacing), slopes, self.spacing)
        return (rates[0] + change, *rates[1:]), voxels


@pytest.mark.parametrize("wrong", ["none", "time 0"])
def test_the_energy_is_not_constant_with_another_force(wrong):
    size, spacing = GRIDS[0]
    momentum, h = scene(size, spacing, 0.8)
    slopes = fields.spatial_gradient(h) * (wrong == "time 0")
    shot = shoot(WrongFlow(h, slopes, spacing), momentum, num_steps=20, checkpoint=False)
    before, after = energy_of(momentum, h, spacing), energy_of(*shot.state, spacing)
    assert abs(float(after / before) - 1) > 0.03


@grids
def test_constant_pre_weights_give_the_ordinary_geodesic(size, spacing):
    momentum, _ = scene(size, spacing)
    h = torch.tensor(BASE, dtype=torch.float64).sqrt().view(1, 3, *[1] * len(size)).expand(1, 3, *size)
    one = shot_of(momentum, h, spacing=spacing, inverse=True)
    other = shoot(EPDiff(KERNEL, spacing), momentum, inverse=True)
    for name in ("ddf", "inverse_ddf", "momentum", "velocity", "energy"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-7)
    assert one.num_steps == other.num_steps
    torch.testing.assert_close(one.state[1], h)


def test_pre_weights_are_carried_along():
    """h(1) = h(0) o phi to second order in the voxel."""
    errors = []
    for n in (17, 33, 65):
        momentum, h = scene((n, n), (1 / (n - 1),) * 2)
        shot = shot_of(momentum, h, spacing=1 / (n - 1))
        warped = fields.warp(h, shot.ddf, padding="border")
        errors.append(float((shot.state[1] - warped).abs().mean()))
    assert errors[-1] < 1e-3
    assert all(2.5 < coarse / fine < 6 for coarse, fine in itertools.pairwise(errors)), errors


@grids
def test_the_inverse_map_is_the_inverse(size, spacing):
    momentum, h = scene(size, spacing)
    shot = shot_of(momentum, h, spacing=spacing, inverse=True)
    assert shot.ddf.abs().max() > 1
    for one, two in ((shot.ddf, shot.inverse_ddf), (shot.inverse_ddf, shot.ddf)):
        assert fields.compose(one, two).norm(dim=1).mean() < 0.03
    assert fields.jacobian_determinant(shot.ddf).min() > 0.2


def test_the_way_back_starts_with_the_negative_momentum():
    size, spacing = GRIDS[0]
    momentum, h = scene(size, spacing)
    there = shot_of(momentum, h, spacing=spacing, num_steps=30, inverse=True)
    back = shot_of(-there.momentum, there.state[1], spacing=spacing, num_steps=30)
    torch.testing.assert_close(back.momentum, -momentum, rtol=0, atol=1e-4)
    torch.testing.assert_close(back.state[1], h, rtol=0, atol=1e-4)
    assert (back.ddf - there.inverse_ddf).norm(dim=1).mean() < 0.05


def ends(shot):
    return shot.ddf, *shot.state


def test_runge_kutta_is_of_fourth_order():
    size, spacing = (16, 17), (1 / 15, 1 / 16)
    momentum, h = scene(size, spacing)
    truth = shot_of(momentum, h, spacing=spacing, num_steps=64)
    errors = []
    for num_steps in (4, 8, 16):
        shot = shot_of(momentum, h, spacing=spacing, num_steps=num_steps)
        assert shot.num_steps == num_steps
        errors.append([float((a - b).abs().max()) for a, b in zip(ends(shot), ends(truth), strict=True)])
    for coarse, fine in itertools.pairwise(errors):
        orders = [math.log2(c / f) for c, f in zip(coarse, fine, strict=True)]
        assert all(3.5 < order < 4.7 for order in orders), errors


def test_softer_regions_deform_more():
    """The same load on either side: the narrow Gaussian answers a narrow load with a larger velocity."""
    size, spacing = (41, 40), (1 / 40, 1 / 39)
    load = bump(size, spacing, (0.25, 0.5), 0.05) + bump(size, spacing, (0.75, 0.5), 0.05)
    momentum = torch.stack([torch.zeros_like(load), 0.2 * load])[None]
    soft = torch.zeros(1, 3, *size, dtype=torch.float64)
    soft[:, 0, :20], soft[:, 2, 20:] = 1, 1
    shot = shot_of(momentum, soft, spacing=spacing)
    assert shot.ddf[0, 1, 10, 20].abs() > 2 * shot.ddf[0, 1, 30, 20].abs()


@tiny
def test_a_batch_is_its_samples(size):
    momentum, h = random_case(size, 3)
    momentum = momentum * torch.tensor([1.0, 0.3, -0.8]).view(-1, *[1] * (len(size) + 1))
    batch = shot_of(momentum, h, VOXELS, weight_sigma=1.0, spacing=ANISOTROPIC[: len(size)], inverse=True)
    for i in range(3):
        single = shot_of(
            momentum[i : i + 1],
            h[i : i + 1],
            VOXELS,
            weight_sigma=1.0,
            spacing=ANISOTROPIC[: len(size)],
            inverse=True,
            num_steps=batch.num_steps,
        )
        assert single.num_steps == batch.num_steps
        for a, b in zip(tensors(single), tensors(batch), strict=True):
            torch.testing.assert_close(a, b[i : i + 1])


def test_transposing_the_grid_transposes_the_map():
    size, order = (8, 6, 7), (2, 0, 1)
    momentum, h = random_case(size)
    shot = shot_of(momentum, h, VOXELS, weight_sigma=0.8, spacing=ANISOTROPIC, inverse=True)
    axes = [0, 1, *[a + 2 for a in order]]
    turned = shot_of(
        momentum[:, order].permute(axes),
        h.permute(axes),
        VOXELS,
        weight_sigma=0.8,
        spacing=[ANISOTROPIC[a] for a in order],
        inverse=True,
    )
    for name in ("ddf", "inverse_ddf", "momentum", "velocity"):
        torch.testing.assert_close(getattr(shot, name)[:, order].permute(axes), getattr(turned, name))
    torch.testing.assert_close(shot.state[1].permute(axes), turned.state[1])


def test_the_unit_of_length_does_not_matter():
    momentum, h = random_case((9, 8))
    one = shot_of(momentum, h, VOXELS, weight_sigma=0.8, spacing=(1.0, 0.7), inverse=True)
    wide = replace(VOXELS, sigmas=[10 * s for s in VOXELS.sigmas])
    other = shot_of(10 * momentum, h, wide, weight_sigma=8.0, spacing=(10.0, 7.0), inverse=True)
    for a, b, factor in zip(tensors(one), tensors(other), (1, 1, 10, 1, 10, 100), strict=True):
        torch.testing.assert_close(factor * a, b)


def test_a_large_momentum_raises_the_number_of_steps():
    size, spacing = (24, 24), (1 / 23, 1 / 23)
    momentum, h = scene(size, spacing, 1.0)
    shot = shot_of(momentum, h, spacing=spacing, num_steps=2)
    assert shot.num_steps > 2
    again = shot_of(momentum, h, spacing=spacing, num_steps=shot.num_steps)
    assert torch.equal(shot.ddf, again.ddf)
    with pytest.raises(RuntimeError, match="too large for this grid"):
        shot_of(50 * momentum, h, spacing=spacing, max_steps=8)


@tiny
@pytest.mark.parametrize("checkpoint", [False, True])
def test_shooting_is_differentiable(size, checkpoint):
    momentum, h = random_case(size)
    mask = border_mask(size, 1, 0.5, like=momentum)

    def parts(m, h):
        shot = shot_of(
            m,
            h,
            VOXELS,
            weight_sigma=0.6,
            spacing=ANISOTROPIC[: len(size)],
            num_steps=2,
            mask=mask,
            inverse=True,
            checkpoint=checkpoint,
        )
        return tensors(shot)

    assert gradcheck(parts, (momentum.requires_grad_(), h.requires_grad_()), fast_mode=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@kinds
@images
def test_gpu_agrees_with_cpu(size, spacing, kind):
    deformation = kind(WIDE, spacing, metric=MetricSettings(1.5))
    parameters = parameters_for(deformation, size, dtype=torch.float32)
    on_cpu, on_gpu = deformation(parameters, size, inverse=True), deformation(parameters.cuda(), size, inverse=True)
    for name, value in on_cpu.items():
        torch.testing.assert_close(on_gpu[name].cpu(), value, rtol=1e-4, atol=1e-4)
