"""Metrics that differ from place to place: conservation, the ordinary metric as a special case, weights, penalties."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck

from custom_components import fields
from custom_components.data.phantoms import phantom_pair
from custom_components.deformations.kernels import MultiGaussianKernel, gaussian_kernel, smooth_weighted
from custom_components.deformations.momentum import VectorMomentum
from custom_components.deformations.shooting import coadjoint, integrate, shoot
from custom_components.inference.refinement import PairwiseOptimizer
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import MeanEnergy
from custom_components.losses.similarity import MSE
from custom_components.methods.rdmm.metric import RegionSpecificMomentum, _RegionFlow, shoot_regions
from custom_components.methods.rdmm.objective import (
    InputRangePenalty,
    OMTPenalty,
    RangePenalty,
    WeightTotalVariation,
    omt_weight,
    range_weight,
)
from custom_components.methods.rdmm.weights import (
    border_mask,
    label_weights,
    smooth_weights,
    softmax_weights,
    weighted_linear_softmax,
)

BASE = (0.2, 0.3, 0.5)
KERNEL = MultiGaussianKernel((0.08, 0.12, 0.2), BASE, padding="zeros")
VOXELS = MultiGaussianKernel((0.8, 1.5, 3.0), BASE, padding="zeros")
SIGMA = 0.06
GRIDS = [((40, 33), (1 / 39, 0.9 / 32)), ((15, 16, 13), (1 / 14, 0.9 / 15, 1 / 12))]
grids = pytest.mark.parametrize(("size", "spacing"), GRIDS, ids=["2-D", "3-D"])
tiny = pytest.mark.parametrize("size", [(5, 6), (4, 5, 3)], ids=["2-D", "3-D"])
ANISOTROPIC = (1.0, 0.7, 1.4)


def bump(size, spacing, centre, width):
    axes = torch.meshgrid(
        *[h * torch.arange(n, dtype=torch.float64) for n, h in zip(size, spacing, strict=True)], indexing="ij"
    )
    return torch.exp(-sum((x - c) ** 2 for x, c in zip(axes, centre, strict=False)) / (2 * width**2))


def scene(size, spacing, amplitude=0.5):
    """A smooth momentum, and pre-weights of a disk or ball of one metric inside another."""
    centres = [(0.4, 0.45, 0.5), (0.6, 0.5, 0.45), (0.5, 0.4, 0.5)][: len(size)]
    heights = [amplitude, -0.7 * amplitude, 0.6 * amplitude]
    parts = [a * bump(size, spacing, c, 0.1) for a, c in zip(heights, centres, strict=False)]
    share = bump(size, spacing, (0.5, 0.4, 0.5), 0.15)
    inside, outside = (torch.tensor(w, dtype=torch.float64).sqrt() for w in ((0.7, 0.25, 0.05), (0.05, 0.15, 0.8)))
    shape = (1, 3, *[1] * len(size))
    h = share * inside.view(shape) + (1 - share) * outside.view(shape)
    return torch.stack(parts)[None], h / h.square().sum(1, keepdim=True).sqrt()


def random_case(size, batch=1, n=3, dtype=torch.float64):
    """Momentum and pre-weights in voxels, for a displacement of about half a voxel."""
    generator = torch.Generator().manual_seed(7)
    momentum = 2 * torch.randn(batch, len(size), *size, dtype=torch.float64, generator=generator)
    h = 0.2 + torch.rand(batch, n, *size, dtype=torch.float64, generator=generator)
    return momentum.to(dtype), (h / h.square().sum(1, keepdim=True).sqrt()).to(dtype)


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


@pytest.mark.parametrize("padding", ["none", "zeros", "reflect"])
@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("size", [(7, 8), (5, 1, 4)], ids=["2-D", "3-D"])
def test_each_gaussian_is_a_kernel_of_its_own(padding, nearest, size):
    kernel, spacing = replace(VOXELS, padding=padding, nearest=nearest), ANISOTROPIC[: len(size)]
    values = torch.randn(2, 3, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together = kernel.each(values, spacing)
    for i, gaussian in enumerate(kernel.components()):
        torch.testing.assert_close(together[:, i], gaussian(values[:, i], spacing))
    single = kernel.each(values.float(), spacing)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), together, rtol=0, atol=1e-5)


def test_matrices_made_in_inference_mode_serve_training():
    kernel = gaussian_kernel(1.2345)
    with torch.inference_mode():
        kernel.each(torch.rand(1, 1, 2, 6, 7))
    values = torch.rand(1, 1, 2, 6, 7, requires_grad=True)
    kernel.each(values).square().sum().backward()
    torch.testing.assert_close(values.grad, 2 * kernel.each(kernel.each(values.detach())))


@pytest.mark.parametrize("size", [(9, 8), (6, 7, 5)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("form", ["square", "sqrt"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_metric_is_symmetric_and_positive(size, form, masked):
    spacing = ANISOTROPIC[: len(size)]
    a, _ = random_case(size)
    b, weights = a.flip(2).roll(1, 1), random_case(size)[1].square()
    mask = border_mask(size, 1, 0.6, spacing, like=a) if masked else None

    def velocity(m):
        if form == "square":
            return _RegionFlow(VOXELS, 0.0, spacing, mask, False).respond(m, weights)[0]
        deformation = RegionSpecificMomentum(
            VOXELS,
            spacing,
            1,
            stride=1,
            weight_sigma=0.5,
            pre_weights=weights,
            stationary=True,
            margin=float(masked),
            margin_sigma=0.6,
        )
        unit = torch.tensor(spacing).view(1, -1, *[1] * len(size))
        return deformation(0.1 * m / unit, size)["velocity"] * unit

    torch.testing.assert_close((a * velocity(b)).sum(), (velocity(a) * b).sum())
    assert (a * velocity(a)).sum() > 0


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
    shot = shoot_regions(momentum, h, KERNEL, weight_sigma=SIGMA, spacing=spacing, mask=mask, num_steps=20)
    free = shoot_regions(momentum, h, KERNEL, weight_sigma=SIGMA, spacing=spacing)
    assert shot.velocity[:, :, 0].abs().max() < 0.4 * free.velocity[:, :, 0].abs().max()
    flow = _RegionFlow(KERNEL, SIGMA, spacing, mask, False)
    after = flow.respond(shot.momentum, smooth_weights(shot.pre_weights, SIGMA, spacing))[0]
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


def logits(size=(4, 5), batch=2, scale=1.0):
    return scale * torch.randn(batch, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


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


WIDE = MultiGaussianKernel((1.5, 2.5, 4.0), BASE, padding="zeros")
IMAGES = [((33, 28), (1.0, 0.8)), ((15, 16, 13), (1.0, 0.8, 1.3))]
images = pytest.mark.parametrize(("size", "spacing"), IMAGES, ids=["2-D", "3-D"])


def parameters_for(deformation, size, batch=1, amplitude=3.0, dtype=torch.float64):
    """A smooth momentum and, where they are wanted, smooth logits."""
    small, d = deformation.parameter_size(size), len(size)
    generator = torch.Generator().manual_seed(4)
    channels = deformation.parameter_channels(d)
    noise = torch.randn(batch, channels, *small, dtype=torch.float64, generator=generator)
    smooth = gaussian_kernel(1.5, padding="zeros")(noise)
    smooth = smooth / smooth.abs().amax()
    return torch.cat([amplitude * smooth[:, :d], 2 * smooth[:, d:]], 1).to(dtype)


@images
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mapping", ["softmax", "linear"])
@pytest.mark.parametrize("stationary", [False, True])
def test_at_zero_the_metric_is_the_ordinary_one(size, spacing, stride, mapping, stationary):
    d = len(size)
    deformation = RegionSpecificMomentum(
        WIDE, spacing, stride=stride, weight_sigma=1.5, mapping=mapping, stationary=stationary
    )
    parameters = parameters_for(deformation, size, 2)
    parameters[:, d:] = 0
    one = deformation(parameters, size, inverse=True)
    other = VectorMomentum(WIDE, spacing, stride=stride, stationary=stationary)(parameters[:, :d], size, inverse=True)
    assert set(other) | {"weights", "pre_weights", "raw_weights", "sigma", "grid_spacing"} == set(one)
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, rtol=1e-5, atol=1e-5)
    small = deformation.parameter_size(size)
    base = torch.tensor(BASE, dtype=torch.float64).view(1, 3, *[1] * d).expand(2, 3, *small)
    torch.testing.assert_close(one["weights"], base if stationary else base.sqrt())
    sigma = (torch.tensor(BASE) * torch.tensor(WIDE.sigmas).square()).sum().sqrt().double()
    torch.testing.assert_close(one["sigma"], sigma.expand(2, 1, *small), check_stride=False)


@images
@pytest.mark.parametrize("stationary", [False, True])
def test_parameters_carry_momentum_and_weights(size, spacing, stationary):
    deformation = RegionSpecificMomentum(WIDE, spacing, weight_sigma=1.5, stationary=stationary)
    d, parameters = len(size), parameters_for(deformation, size, 2, 2.0)
    pred = deformation(parameters, size, inverse=True)
    small, power = deformation.parameter_size(size), 1 if stationary else 2
    assert pred["ddf"].shape == pred["inverse_ddf"].shape == (2, d, *size)
    assert pred["weights"].shape == pred["pre_weights"].shape == pred["raw_weights"].shape == (2, 3, *small)
    assert pred["sigma"].shape == (2, 1, *small)
    torch.testing.assert_close(pred["pre_weights"].pow(power).sum(1), torch.ones(2, *small).double())
    grid = deformation.parameter_spacing(parameters, size)
    smoothed = smooth_weights(pred["pre_weights"], 1.5, grid)
    torch.testing.assert_close(pred["weights"], smoothed)
    assert pred["weights"].std((0, 2)).max() > 0.02
    squares = torch.tensor(WIDE.sigmas).double().square().view(1, 3, *[1] * d)
    torch.testing.assert_close(pred["sigma"], (smoothed.pow(power) * squares).sum(1, keepdim=True).sqrt())
    unit = torch.tensor(grid).view(1, -1, *[1] * d)
    energy = (pred["momentum"] * unit * pred["velocity"] * unit).sum(1).flatten(1).mean(1)
    torch.testing.assert_close(pred["energy"], energy)
    assert pred["ddf"].norm(dim=1).max() > 0.6
    assert fields.compose(pred["ddf"], pred["inverse_ddf"]).norm(dim=1).mean() < 0.06
    assert fields.jacobian_determinant(pred["ddf"]).min() > 0
    assert "inverse_ddf" not in deformation(parameters, size)


@images
@pytest.mark.parametrize("stationary", [False, True])
def test_given_pre_weights_do_what_those_of_the_parameters_do(size, spacing, stationary):
    deformation = RegionSpecificMomentum(WIDE, spacing, weight_sigma=1.5, stationary=stationary)
    parameters = parameters_for(deformation, size, 2)
    pred = deformation(parameters, size)
    given = deformation.given(7 * pred["pre_weights"])
    assert given.parameter_channels(len(size)) == len(size)
    assert deformation.pre_weights is None
    again = given(parameters[:, : len(size)], size)
    for name in ("ddf", "pre_weights", "energy"):
        torch.testing.assert_close(again[name], pred[name])
    assert "raw_weights" not in again
    shared = deformation.given(pred["pre_weights"][:1])(parameters[:, : len(size)], size)
    torch.testing.assert_close(shared["ddf"][:1], pred["ddf"][:1])
    assert shared["ddf"].shape == pred["ddf"].shape


def test_given_pre_weights_of_another_size_are_resized():
    size = (33, 28)
    h = label_weights((fields.identity_grid(size)[:1] > 15).long()[None], {1: (1, 0, 0)}, (0, 0, 1), sigma=2.0)
    deformation = RegionSpecificMomentum(WIDE, weight_sigma=1.0, pre_weights=h)
    pred = deformation(torch.zeros(1, 2, 17, 14), size)
    assert pred["pre_weights"].shape == (1, 3, 17, 14)
    torch.testing.assert_close(pred["pre_weights"].square().sum(1), torch.ones(1, 17, 14))
    torch.testing.assert_close(pred["sigma"][0, 0, [0, -1], 3], torch.tensor([4.0, 1.5]), rtol=0.01, atol=0)
    assert not pred["ddf"].any()


def test_the_mask_of_a_deformation_stops_the_border():
    size = (33, 28)
    free = RegionSpecificMomentum(WIDE, weight_sigma=1.5)
    masked = RegionSpecificMomentum(WIDE, weight_sigma=1.5, margin=4.0, margin_sigma=1.0)
    parameters = parameters_for(free, size)
    borders = [p["velocity"][:, :, 0].abs().max() for p in (masked(parameters, size), free(parameters, size))]
    assert borders[0] < 0.02 * borders[1]


def test_the_mask_of_a_deformation_is_as_wide_on_other_grids():
    size, spacing = (64, 48), (1.0, 1.5)
    free = RegionSpecificMomentum(WIDE, spacing, weight_sigma=1.5, stationary=True)
    masked = RegionSpecificMomentum(WIDE, spacing, weight_sigma=1.5, stationary=True, margin=12.0)
    assert masked.margin_sigma == 6.0
    for factor in (1, 2, 4):
        coarse = tuple(n // factor for n in size)
        pair = [deformation.on_grid(size, coarse) for deformation in (masked, free)]
        parameters = parameters_for(pair[0], coarse)
        parameters[:, :2] = 1
        shares = [float(d(parameters, coarse)["velocity"].abs()[:, :, 0].mean()) for d in pair]
        assert shares[0] < 0.2 * shares[1], factor


def test_another_grid_keeps_the_deformation():
    size, small = (97, 81), (65, 61)
    kernel = MultiGaussianKernel((8.0, 14.0, 20.0), BASE, padding="zeros")
    deformation = RegionSpecificMomentum(kernel, (1.0, 1.2), weight_sigma=6.0)
    momentum, _ = scene(deformation.parameter_size(size), (1 / 48, 1 / 40), 15.0)
    x = torch.stack([bump(momentum.shape[2:], (1 / 48, 1 / 40), (c, 0.5), 0.2) for c in (0.3, 0.5, 0.7)])[None]
    parameters = torch.cat([momentum, x], 1)
    pred = deformation(parameters, size)
    coarse = deformation.on_grid(size, small)
    assert deformation.spacing == (1.0, 1.2)
    resized = deformation.resize(parameters, coarse.parameter_size(small))
    assert resized.shape == (1, 5, *coarse.parameter_size(small))
    torch.testing.assert_close(deformation.resize(momentum, (33, 31)), fields.resize_field(momentum, (33, 31)))
    other = coarse(resized, small)
    assert pred["ddf"].abs().max() > 3
    error = fields.resize_field(other["ddf"], size) - pred["ddf"]
    assert error.abs().max() < 0.05 * pred["ddf"].abs().max()
    torch.testing.assert_close(other["energy"], pred["energy"], rtol=0.03, atol=0)


@images
def test_unknowns_are_parameters_and_back(size, spacing):
    deformation = RegionSpecificMomentum(WIDE, spacing, weight_sigma=1.5, weight_scale=4.0)
    d, parameters = len(size), parameters_for(deformation, size)
    unknown = deformation.to_unknown(parameters, size)
    torch.testing.assert_close(deformation.from_unknown(unknown, size), parameters)
    torch.testing.assert_close(unknown[:, d:], parameters[:, d:] / 4)
    expected = VectorMomentum(WIDE, spacing).to_unknown(parameters[:, :d], size)
    torch.testing.assert_close(unknown[:, :d], expected)
    given = deformation.given(softmax_weights(parameters[:, d:], BASE, squared=True))
    torch.testing.assert_close(given.to_unknown(parameters[:, :d], size), expected)


@images
def test_a_root_is_another_name_of_the_momentum(size, spacing):
    root = RegionSpecificMomentum(WIDE, spacing, weight_sigma=1.5, quantity="root")
    plain = RegionSpecificMomentum(WIDE, spacing, weight_sigma=1.5)
    d, parameters = len(size), parameters_for(plain, size)
    assert root.to_unknown(parameters, size) is root.from_unknown(parameters, size) is parameters
    roots = torch.cat([plain.to_unknown(parameters, size)[:, :d], parameters[:, d:]], 1)
    one, other = root(roots, size), plain(parameters, size)
    for name, value in other.items():
        torch.testing.assert_close(one[name], value)


@pytest.mark.parametrize("size", [(9, 8), (6, 7, 5)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("stationary", [False, True])
def test_deformations_are_differentiable(size, stationary):
    deformation = RegionSpecificMomentum(
        WIDE, ANISOTROPIC[: len(size)], 2, weight_sigma=1.0, stationary=stationary, margin=1, margin_sigma=0.5
    )
    parameters = parameters_for(deformation, size).requires_grad_()
    names = ("ddf", "inverse_ddf", "velocity", "energy", "weights", "sigma")

    def parts(p):
        pred = deformation(p, size, inverse=True)
        return tuple(pred[name] for name in names)

    assert gradcheck(parts, (parameters,), fast_mode=True)


@pytest.mark.parametrize("stationary", [False, True])
def test_autocast_and_low_precision_change_nothing(stationary):
    size = (17, 14)
    deformation = RegionSpecificMomentum(WIDE, weight_sigma=1.0, stationary=stationary)
    parameters = parameters_for(deformation, size, dtype=torch.bfloat16)
    plain = deformation(parameters.float(), size, inverse=True)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = deformation(parameters, size, inverse=True)
    for name, value in plain.items():
        assert mixed[name].dtype == torch.float32, name
        assert torch.equal(mixed[name], value), name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, h: shoot_regions(m[:, :1], h, VOXELS, weight_sigma=1.0), r"got \(1, 1, 8, 9\)"),
        (
            lambda m, h: shoot_regions(m, h[:, :2], VOXELS, weight_sigma=1.0),
            r"expected pre-weights of shape \(1 or 1, 3",
        ),
        (lambda m, h: shoot_regions(m, h[..., 1:], VOXELS, weight_sigma=1.0), r"8, 9\), got \(1, 3, 8, 8\)"),
        (lambda m, h: shoot_regions(m, h, VOXELS, weight_sigma=1.0, num_steps=0), "num_steps of at least 1"),
        (lambda m, h: shoot_regions(m, h, VOXELS, weight_sigma=-1.0), "positive standard deviations"),
        (lambda m, h: shoot_regions(m, h, VOXELS, weight_sigma=1.0, spacing=0.0), "expected a positive spacing"),
        (lambda m, h: VOXELS.each(h[:, :2]), r"expected values of shape \(B, 3, C, \*S\)"),
        (lambda m, h: border_mask((8, 9), 4, 1.0), r"leaves an interior of \(8, 9\) voxels, got 4"),
        (lambda m, h: softmax_weights(h, (0.5, 0.5)), "expected 3 positive base weights"),
        (lambda m, h: softmax_weights(h, (0.5, 0.5, 0.0)), "expected 3 positive base weights"),
        (lambda m, h: weighted_linear_softmax(h, BASE, minimum=0.25), "below the base"),
        (lambda m, h: weighted_linear_softmax(h, BASE, minimum=0.5), "below the base"),
        (lambda m, h: weighted_linear_softmax(h, BASE, minimum=-0.1), "at least 0"),
        (lambda m, h: label_weights(h[:, :1].long(), {2: (1.0,)}, (1.0, 2.0)), "expected 2 weights .* for label 2"),
        (lambda m, h: label_weights(h[:, :1].long(), {}, (0.0, 0.0)), "for the rest, got"),
        (lambda m, h: RegionSpecificMomentum(VOXELS, weight_sigma=1.0, mapping="relu"), "mapping softmax or linear"),
        (lambda m, h: RegionSpecificMomentum(VOXELS, weight_sigma=1.0, quantity="velocity"), "momentum or root"),
        (lambda m, h: RegionSpecificMomentum(VOXELS, weight_sigma=-1.0), "deviations of at least 0"),
        (lambda m, h: RegionSpecificMomentum(VOXELS, weight_sigma=1.0, weight_scale=0.0), "weight scale above 0"),
        (lambda m, h: RegionSpecificMomentum(VOXELS, weight_sigma=1.0)(m, (16, 18)), "one for each Gaussian, 5 in 2-D"),
        (
            lambda m, h: RegionSpecificMomentum(VOXELS, weight_sigma=1.0, pre_weights=h)(
                torch.cat([m, h], 1), (16, 18)
            ),
            "expected parameters of 2 channels of momentum, 2 in 2-D",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    momentum, h = random_case((8, 9))
    with pytest.raises(ValueError, match=message):
        call(momentum, h)


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


def test_momentum_and_weights_are_optimised_together():
    """Level by level, from nothing; given pre-weights leave the momentum alone."""
    pair = phantom_pair((33, 28), seed=2)
    kernel = MultiGaussianKernel((1.5, 3.0, 6.0), BASE)
    deformation = RegionSpecificMomentum(kernel, num_steps=4, weight_sigma=2.0)
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
def test_wrong_arguments_of_penalties_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


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
