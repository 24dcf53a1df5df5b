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
    parameters_for,
    random_case,
    scene,
)
from torch.autograd import gradcheck

from custom_components import fields
from custom_components.deformations.kernels import gaussian_kernel, smooth_weighted
from custom_components.deformations.shooting import coadjoint, integrate, shoot
from custom_components.methods.rdmm.metric import RegionSpecificMomentum, _RegionFlow, shoot_regions
from custom_components.methods.rdmm.weights import (
    border_mask,
    smooth_weights,
)

tiny = pytest.mark.parametrize("size", [(5, 6), (4, 5, 3)], ids=["2-D", "3-D"])


def energy_of(momentum, pre_weights, spacing, kernel=KERNEL, sigma=SIGMA):
    weights = smooth_weights(pre_weights, sigma, spacing)
    velocity = smooth_weighted(momentum, weights, kernel, spacing, form="square")
    return (momentum * velocity).sum(1).flatten(1).mean(1)


@grids
def test_the_energy_is_constant(size, spacing):
    momentum, h = scene(size, spacing, 0.8 if len(size) == 2 else 0.6)
    momentum = torch.cat([momentum, -0.5 * momentum])
    shot = shoot_regions(momentum, h, KERNEL, weight_sigma=SIGMA, spacing=spacing, num_steps=20)
    torch.testing.assert_close(shot.energy, energy_of(momentum, h, spacing))
    after = energy_of(shot.momentum, shot.pre_weights, spacing)
    torch.testing.assert_close(after, shot.energy, rtol=1e-4, atol=0)
    assert shot.velocity.norm(dim=1).max() > (0.35 if len(size) == 2 else 0.1)
    assert (shot.momentum - momentum).abs().max() > 0.2 * momentum.abs().max()
    assert (shot.pre_weights - h).abs().max() > 0.1


def force(momentum, weights, slopes, spacing):
    """By the kernels' Fourier transforms, Gaussian by Gaussian."""
    smoother, total = gaussian_kernel(SIGMA, padding="reflect"), 0.0
    for i, gaussian in enumerate(KERNEL.components()):
        product = (momentum * gaussian(weights[:, i : i + 1] * momentum, spacing)).sum(1, keepdim=True)
        total = total + smoother(product, spacing) * slopes[:, i]
    return total / torch.tensor(spacing, dtype=torch.float64).view(1, -1, *[1] * len(spacing))


@grids
def test_the_right_hand_side_is_its_formula(size, spacing):
    momentum, h = scene(size, spacing)
    rates, voxels = _RegionFlow(KERNEL, SIGMA, spacing, None, True)((momentum, h, 0 * momentum, 0 * momentum))
    weights = gaussian_kernel(SIGMA, padding="reflect")(h, spacing)
    velocity = smooth_weighted(momentum, weights, KERNEL, spacing, form="square")
    torch.testing.assert_close(voxels * torch.tensor(spacing).view(1, -1, *[1] * len(size)), velocity)
    slopes = fields.spatial_gradient(h)
    expected = coadjoint(momentum, velocity, voxels, spacing) + force(momentum, weights, slopes, spacing)
    torch.testing.assert_close(rates[0], expected)
    torch.testing.assert_close(rates[1], -(slopes * voxels.unsqueeze(1)).sum(2))
    torch.testing.assert_close(rates[2], -voxels)
    torch.testing.assert_close(rates[3], voxels)


@grids
def test_the_force_is_the_derivative_of_the_energy(size, spacing):
    momentum, h = scene(size, spacing)
    flow = _RegionFlow(KERNEL, SIGMA, spacing, None, False)
    h.requires_grad_()
    velocity, derivative = flow.respond(momentum, smooth_weights(h, SIGMA, spacing))
    (gradient,) = torch.autograd.grad(0.5 * (momentum * velocity).sum(), h)
    torch.testing.assert_close(smooth_weights(derivative, SIGMA, spacing), gradient)


class WrongFlow(_RegionFlow):
    """The force with another gradient of the pre-weights: that at time 0, or none."""

    def __init__(self, slopes, spacing):
        super().__init__(KERNEL, SIGMA, spacing, None, False)
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
    state = momentum, h, torch.zeros_like(momentum)
    state, _ = integrate(WrongFlow(slopes, spacing), state, 20, checkpoint=False, max_steps=100)
    before, after = energy_of(momentum, h, spacing), energy_of(state[0], state[1], spacing)
    assert abs(float(after / before) - 1) > 0.03


@grids
def test_constant_pre_weights_give_the_ordinary_geodesic(size, spacing):
    momentum, _ = scene(size, spacing)
    h = torch.tensor(BASE, dtype=torch.float64).sqrt().view(1, 3, *[1] * len(size)).expand(1, 3, *size)
    one = shoot_regions(momentum, h, KERNEL, weight_sigma=SIGMA, spacing=spacing, inverse=True)
    other = shoot(momentum, KERNEL, spacing=spacing, inverse=True)
    for a, b in zip(one[:6], other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)
    torch.testing.assert_close(one.pre_weights, h)


def test_pre_weights_are_carried_along():
    """h(1) = h(0) o phi to second order in the voxel."""
    errors = []
    for n in (17, 33, 65):
        momentum, h = scene((n, n), (1 / (n - 1),) * 2)
        shot = shoot_regions(momentum, h, KERNEL, weight_sigma=SIGMA, spacing=1 / (n - 1))
        warped = fields.warp(h, shot.ddf, padding="border")
        errors.append(float((shot.pre_weights - warped).abs().mean()))
    assert errors[-1] < 1e-3
    assert all(2.5 < coarse / fine < 6 for coarse, fine in itertools.pairwise(errors)), errors


@grids
def test_the_inverse_map_is_the_inverse(size, spacing):
    momentum, h = scene(size, spacing)
    shot = shoot_regions(momentum, h, KERNEL, weight_sigma=SIGMA, spacing=spacing, inverse=True)
    assert shot.ddf.abs().max() > 1
    for one, two in ((shot.ddf, shot.inverse_ddf), (shot.inverse_ddf, shot.ddf)):
        assert fields.compose(one, two).norm(dim=1).mean() < 0.03
    assert fields.jacobian_determinant(shot.ddf).min() > 0.2


def test_the_way_back_starts_with_the_negative_momentum():
    size, spacing = GRIDS[0]
    momentum, h = scene(size, spacing)
    there = shoot_regions(momentum, h, KERNEL, weight_sigma=SIGMA, spacing=spacing, num_steps=30, inverse=True)
    back = shoot_regions(-there.momentum, there.pre_weights, KERNEL, weight_sigma=SIGMA, spacing=spacing, num_steps=30)
    torch.testing.assert_close(back.momentum, -momentum, rtol=0, atol=1e-4)
    torch.testing.assert_close(back.pre_weights, h, rtol=0, atol=1e-4)
    assert (back.ddf - there.inverse_ddf).norm(dim=1).mean() < 0.05


def test_runge_kutta_is_of_fourth_order():
    size, spacing = (16, 17), (1 / 15, 1 / 16)
    momentum, h = scene(size, spacing)
    truth = shoot_regions(momentum, h, KERNEL, weight_sigma=SIGMA, spacing=spacing, num_steps=64)
    errors = []
    for num_steps in (4, 8, 16):
        shot = shoot_regions(momentum, h, KERNEL, weight_sigma=SIGMA, spacing=spacing, num_steps=num_steps)
        assert shot.num_steps == num_steps
        errors.append([float((a - b).abs().max()) for a, b in zip(shot, truth, strict=True) if torch.is_tensor(a)])
    for coarse, fine in itertools.pairwise(errors):
        orders = [math.log2(c / f) for c, f in zip(coarse, fine, strict=True) if c > 0]
        assert len(orders) == 3
        assert all(3.5 < order < 4.7 for order in orders), errors


def test_softer_regions_deform_more():
    """The same load on either side: the narrow Gaussian answers a narrow load with a larger velocity."""
    size, spacing = (41, 40), (1 / 40, 1 / 39)
    load = bump(size, spacing, (0.25, 0.5), 0.05) + bump(size, spacing, (0.75, 0.5), 0.05)
    momentum = torch.stack([torch.zeros_like(load), 0.2 * load])[None]
    soft = torch.zeros(1, 3, *size, dtype=torch.float64)
    soft[:, 0, :20], soft[:, 2, 20:] = 1, 1
    shot = shoot_regions(momentum, soft, KERNEL, weight_sigma=SIGMA, spacing=spacing)
    assert shot.ddf[0, 1, 10, 20].abs() > 2 * shot.ddf[0, 1, 30, 20].abs()


@tiny
def test_a_batch_is_its_samples(size):
    momentum, h = random_case(size, 3)
    momentum = momentum * torch.tensor([1.0, 0.3, -0.8]).view(-1, *[1] * (len(size) + 1))
    batch = shoot_regions(momentum, h, VOXELS, weight_sigma=1.0, spacing=ANISOTROPIC[: len(size)], inverse=True)
    for i in range(3):
        single = shoot_regions(
            momentum[i : i + 1],
            h[i : i + 1],
            VOXELS,
            weight_sigma=1.0,
            spacing=ANISOTROPIC[: len(size)],
            inverse=True,
            num_steps=batch.num_steps,
        )
        for a, b in zip(single, batch, strict=True):
            torch.testing.assert_close(a, b[i : i + 1] if torch.is_tensor(b) else b)


def test_transposing_the_grid_transposes_the_map():
    size, order = (8, 6, 7), (2, 0, 1)
    momentum, h = random_case(size)
    shot = shoot_regions(momentum, h, VOXELS, weight_sigma=0.8, spacing=ANISOTROPIC, inverse=True)
    axes = [0, 1, *[a + 2 for a in order]]
    turned = shoot_regions(
        momentum[:, order].permute(axes),
        h.permute(axes),
        VOXELS,
        weight_sigma=0.8,
        spacing=[ANISOTROPIC[a] for a in order],
        inverse=True,
    )
    for a, b in zip(shot[:4], turned[:4], strict=True):
        torch.testing.assert_close(a[:, order].permute(axes), b)
    torch.testing.assert_close(shot.pre_weights.permute(axes), turned.pre_weights)


def test_the_unit_of_length_does_not_matter():
    momentum, h = random_case((9, 8))
    one = shoot_regions(momentum, h, VOXELS, weight_sigma=0.8, spacing=(1.0, 0.7), inverse=True)
    wide = replace(VOXELS, sigmas=[10 * s for s in VOXELS.sigmas])
    other = shoot_regions(10 * momentum, h, wide, weight_sigma=8.0, spacing=(10.0, 7.0), inverse=True)
    factors = (1, 1, 10, 10, 100, 1, 1, 1)
    for a, b, factor in zip(one, other, factors, strict=True):
        torch.testing.assert_close(factor * a, b)


def test_a_large_momentum_raises_the_number_of_steps():
    size, spacing = (24, 24), (1 / 23, 1 / 23)
    momentum, h = scene(size, spacing, 1.0)
    shot = shoot_regions(momentum, h, KERNEL, weight_sigma=SIGMA, spacing=spacing, num_steps=2)
    assert shot.num_steps > 2
    again = shoot_regions(momentum, h, KERNEL, weight_sigma=SIGMA, spacing=spacing, num_steps=shot.num_steps)
    assert torch.equal(shot.ddf, again.ddf)
    with pytest.raises(RuntimeError, match="too large for this grid"):
        shoot_regions(50 * momentum, h, KERNEL, weight_sigma=SIGMA, spacing=spacing, max_steps=8)


@tiny
@pytest.mark.parametrize("checkpoint", [False, True])
def test_shooting_is_differentiable(size, checkpoint):
    momentum, h = random_case(size)
    mask = border_mask(size, 1, 0.5, like=momentum)

    def parts(m, h):
        shot = shoot_regions(
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
        return shot.ddf, shot.inverse_ddf, shot.momentum, shot.velocity, shot.energy, shot.weights, shot.pre_weights

    assert gradcheck(parts, (momentum.requires_grad_(), h.requires_grad_()), fast_mode=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("stationary", [False, True])
@images
def test_gpu_agrees_with_cpu(size, spacing, stationary):
    deformation = RegionSpecificMomentum(WIDE, spacing, weight_sigma=1.5, stationary=stationary)
    parameters = parameters_for(deformation, size, dtype=torch.float32)
    on_cpu, on_gpu = deformation(parameters, size, inverse=True), deformation(parameters.cuda(), size, inverse=True)
    for name, value in on_cpu.items():
        torch.testing.assert_close(on_gpu[name].cpu(), value, rtol=1e-4, atol=1e-4)
