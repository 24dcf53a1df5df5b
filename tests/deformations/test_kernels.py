"""Smoothing kernels: unit gain, symmetry, positivity, closed forms, padding, powers, spatially varying sums."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from custom_components.deformations.kernels import (
    HelmholtzKernel,
    Kernel,
    MultiGaussianKernel,
    gaussian_kernel,
    per_axis,
    smooth_weighted,
)

SIZES = [(8, 9), (9, 7), (6, 5, 8), (7, 4, 5)]
all_sizes = pytest.mark.parametrize("size", SIZES, ids=str)
both = pytest.mark.parametrize("size", [(9, 12), (7, 6, 5)], ids=["2-D", "3-D"])
paddings = pytest.mark.parametrize("padding", ["none", "zeros", "reflect"])
KERNELS = [
    gaussian_kernel(1.5),
    gaussian_kernel(0.3),
    gaussian_kernel(6.0),
    MultiGaussianKernel((0.7, 2.0, 5.0)),
    MultiGaussianKernel((0.7, 2.0), (3.0, 1.0), nearest=True),
    HelmholtzKernel(1.0, 0.5),
    HelmholtzKernel(1.0, 0.5, power=2),
    HelmholtzKernel(1.0, 0.5, 0.8),
    HelmholtzKernel(1.0, 0.5, 0.8, power=2),
]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)
PADDED = [
    replace(kernel, padding=padding)
    for kernel in KERNELS
    for padding in ("none", "zeros", "reflect")
    if padding != "reflect" or not getattr(kernel, "beta", 0)  # what couples components cannot mirror them
]
padded = pytest.mark.parametrize("kernel", PADDED, ids=str)
helmholtz = pytest.mark.parametrize("kernel", KERNELS[5:], ids=str)
SPACING = (1.0, 0.7, 1.4)


def random_field(size, batch=2, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, len(size), *size, generator=generator, dtype=torch.float64).to(dtype)


def matrix_of(kernel, size, spacing=1.0):
    """K on fields with D channels, dense; its columns are smoothed unit vectors."""
    n = len(size) * math.prod(size)
    return kernel(torch.eye(n, dtype=torch.float64).view(n, len(size), *size), spacing).flatten(1).T


def gaussian_matrix(n, sigma, copies):
    """Circulant matrix of a Gaussian of unit sum, with so many periodic copies to each side."""
    offset = np.arange(n)[:, None] - np.arange(n)[None]
    if copies == 0:
        offset = (offset + n // 2) % n - n // 2
    values = sum(np.exp(-0.5 * ((offset + k * n) / sigma) ** 2) for k in range(-copies, copies + 1))
    return values / values.sum(1, keepdims=True)


def navier(values, spacing, kernel):
    """(gamma - alpha Laplacian - beta grad div) of a periodic field by finite differences."""
    d = values.ndim - 2

    def central(f, axis):
        return (f.roll(-1, axis + 1) - f.roll(1, axis + 1)) / (2 * spacing[axis])

    def second(f, axis):
        return (f.roll(-1, axis + 1) - 2 * f + f.roll(1, axis + 1)) / spacing[axis] ** 2

    channels = []
    for i in range(d):
        f = values[:, i]
        result = kernel.gamma * f - kernel.alpha * sum(second(f, j) for j in range(d))
        for j in range(d):
            mixed = second(f, i) if i == j else central(central(values[:, j], j), i)
            result = result - kernel.beta * mixed
        channels.append(result)
    return torch.stack(channels, 1)


@all_sizes
@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("padding", ["none", "reflect"])
def test_a_constant_stays_as_it_is(size, nearest, padding):
    kernel = MultiGaussianKernel((0.2, 1.0, 4.0), nearest=nearest, padding=padding)
    constant = random_field((1,) * len(size)).expand(-1, -1, *size)
    for spacing in (1.0, SPACING[: len(size)]):
        torch.testing.assert_close(kernel(constant, spacing), constant)


@all_sizes
def test_the_gain_of_a_helmholtz_kernel_is_a_power_of_gamma(size):
    constant = random_field((1,) * len(size)).expand(-1, -1, *size)
    for kernel in KERNELS[5:]:
        expected = constant * kernel.gamma**-kernel.power
        torch.testing.assert_close(kernel(constant, SPACING[: len(size)]), expected)


@padded
@all_sizes
def test_kernels_are_symmetric(kernel, size):
    spacing = SPACING[: len(size)]
    a, b = random_field(size, seed=1), random_field(size, seed=2)
    torch.testing.assert_close((a * kernel(b, spacing)).sum(), (kernel(a, spacing) * b).sum())


@padded
@pytest.mark.parametrize("size", [(5, 4), (3, 4, 3)], ids=["2-D", "3-D"])
def test_kernels_are_symmetric_positive_matrices(kernel, size):
    kernel = replace(kernel, **({"nearest": False} if isinstance(kernel, MultiGaussianKernel) else {}))
    matrix = matrix_of(kernel, size, SPACING[: len(size)])
    torch.testing.assert_close(matrix, matrix.T)
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    assert values.min() > -1e-13 * values.max()


@padded
@all_sizes
def test_the_norm_of_a_momentum_is_positive(kernel, size):
    momentum = random_field(size, 4)
    norms = (momentum * kernel(momentum, SPACING[: len(size)])).flatten(1).sum(1)
    assert (norms > 0).all()


@pytest.mark.parametrize("size", [(16, 16), (15, 12)], ids=str)
def test_only_the_nearest_copies_of_a_wide_gaussian_are_not_positive(size):
    wide = [6.0, 12.0]
    assert all(gaussian_kernel(s, nearest=True).symbol(size, (1.0, 1.0)).min() < -1e-3 for s in wide)
    assert all(gaussian_kernel(s).symbol(size, (1.0, 1.0)).min() > -1e-15 for s in wide)
    narrow = [gaussian_kernel(1.0, nearest=nearest).symbol(size, (1.0, 1.0)) for nearest in (False, True)]
    torch.testing.assert_close(*narrow, rtol=0, atol=1e-6)


@all_sizes
@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("sigma", [0.5, 1.3, 4.0])
def test_gaussians_agree_with_dense_separable_convolution(size, nearest, sigma):
    field, spacing = random_field(size), SPACING[: len(size)]
    expected = field.numpy()
    for axis, (n, h) in enumerate(zip(size, spacing, strict=True)):
        matrix = gaussian_matrix(n, sigma / h, 0 if nearest else 40)
        expected = np.moveaxis(np.tensordot(matrix, expected, (1, axis + 2)), 0, axis + 2)
    smoothed = gaussian_kernel(sigma, nearest=nearest)(field, spacing)
    torch.testing.assert_close(smoothed, torch.from_numpy(expected).contiguous())


def test_a_sum_of_gaussians_is_the_weighted_sum_of_its_components():
    kernel, field = MultiGaussianKernel((0.7, 2.0, 5.0), (1.0, 2.0, 5.0)), random_field((9, 8))
    parts = [w * part(field) for w, part in zip(kernel.weights, kernel.components(), strict=True)]
    torch.testing.assert_close(kernel(field), sum(parts))
    assert kernel.weights == pytest.approx((0.125, 0.25, 0.625))
    assert MultiGaussianKernel((1.0, 3.0)).weights == pytest.approx((0.25, 0.75))


@pytest.mark.parametrize("size", [(11, 14), (9, 10, 11)], ids=["2-D", "3-D"])
@paddings
def test_zeros_are_a_convolution_without_periodic_copies(size, padding):
    """Mirrored grids are convolved without periodic copies, too: of the mirrored field."""
    field, sigma = random_field(size), 1.2
    expected = field.numpy()
    for axis, n in enumerate(size):
        matrix = np.exp(-0.5 * ((np.arange(n)[:, None] - np.arange(-n, 2 * n)[None]) / sigma) ** 2)
        matrix /= sigma * math.sqrt(2 * math.pi)
        before, inside, after = matrix[:, :n], matrix[:, n : 2 * n], matrix[:, 2 * n :]
        beyond = {"none": before + after, "zeros": 0, "reflect": (before + after)[:, ::-1]}[padding]
        expected = np.moveaxis(np.tensordot(inside + beyond, expected, (1, axis + 2)), 0, axis + 2)
    smoothed = gaussian_kernel(sigma, padding=padding)(field)
    torch.testing.assert_close(smoothed, torch.from_numpy(expected).contiguous(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "kernel", [gaussian_kernel(2.0), MultiGaussianKernel((1.0, 2.0), nearest=True), HelmholtzKernel(1.0, 1.0)], ids=str
)
def test_padding_decouples_opposite_borders(kernel):
    impulse = torch.zeros(1, 2, 20, 17, dtype=torch.float64)
    impulse[:, :, 0, 8] = 1
    response = {p: replace(kernel, padding=p)(impulse)[:, :, :, 8].abs() for p in ("none", "zeros", "reflect")}
    assert (response["none"][:, :, -1] > 0.2 * response["none"][:, :, 0]).all()
    for padding in ("zeros", "reflect"):
        assert (response[padding][:, :, -1] < 1e-3 * response[padding][:, :, 0]).all()


@padded
@pytest.mark.parametrize("size", [(7, 5), (5, 3, 7), (1, 6), (4, 1, 3)], ids=str)
def test_odd_sizes_keep_their_shape(kernel, size):
    smoothed = kernel(random_field(size))
    assert smoothed.shape == (2, len(size), *size)
    assert torch.isfinite(smoothed).all()


@pytest.mark.parametrize("kernel", [gaussian_kernel(0.3), MultiGaussianKernel((0.25, 0.6))], ids=str)
def test_lengths_are_physical(kernel):
    def wave(n, m):
        x = torch.arange(n, dtype=torch.float64).view(-1, 1) / n
        y = torch.arange(m, dtype=torch.float64).view(1, -1) / m
        return torch.stack([(2 * math.pi * (2 * x - y)).cos(), (2 * math.pi * x).sin() + 0 * y])[None]

    coarse = kernel(wave(12, 18), (2 / 12, 3 / 18))
    fine = kernel(wave(24, 36), (2 / 24, 3 / 36))
    torch.testing.assert_close(fine[..., ::2, ::2], coarse, rtol=0, atol=1e-5)
    wide = replace(kernel, sigmas=[10 * sigma for sigma in kernel.sigmas])
    torch.testing.assert_close(wide(wave(12, 18), (20 / 12, 30 / 18)), coarse)


@helmholtz
def test_helmholtz_kernels_converge_to_the_continuum(kernel):
    """A plane wave a cos(k x) becomes (gamma + alpha k^2 + beta k k^T)^-power a cos(k x)."""
    k = 2 * math.pi * torch.tensor([2 / 12.0, -1 / 9.0], dtype=torch.float64)
    a = torch.tensor([1.0, 0.4], dtype=torch.float64)
    operator = (kernel.gamma + kernel.alpha * k.square().sum()) * torch.eye(2) + kernel.beta * torch.outer(k, k)
    answer = torch.linalg.matrix_power(torch.linalg.inv(operator), kernel.power) @ a
    errors = []
    for n in (12, 24, 48):
        spacing = (12 / n, 9 / n)
        x, y = (torch.arange(n, dtype=torch.float64) * h for h in spacing)
        wave = (k[0] * x.view(-1, 1) + k[1] * y).cos()
        smoothed = kernel((a.view(2, 1, 1) * wave)[None], spacing)[0]
        errors.append((smoothed - answer.view(2, 1, 1) * wave).abs().max() / answer.abs().max())
    assert errors[0] < 0.25
    assert errors[0] / errors[1] > 3.5
    assert errors[1] / errors[2] > 3.5


@helmholtz
def test_lengths_of_helmholtz_kernels_scale(kernel):
    field = random_field((7, 8))
    wide = replace(kernel, alpha=9 * kernel.alpha, beta=9 * kernel.beta)
    torch.testing.assert_close(wide(field, (3.0, 6.0)), kernel(field, (1.0, 2.0)))


@helmholtz
@all_sizes
def test_helmholtz_kernels_invert_their_differential_operator(kernel, size):
    field, spacing = random_field(size), SPACING[: len(size)]
    load = field
    for _ in range(kernel.power):
        load = navier(load, spacing, kernel)
    torch.testing.assert_close(kernel(load, spacing), field)
    torch.testing.assert_close(kernel.powered(field, -1, spacing), load)


@helmholtz
@all_sizes
def test_powers_compose(kernel, size):
    field, spacing = random_field(size), SPACING[: len(size)]
    torch.testing.assert_close(kernel.powered(field, 1, spacing), kernel(field, spacing))
    torch.testing.assert_close(kernel.powered(kernel(field, spacing), -1, spacing), field)
    half = kernel.powered(kernel.powered(field, 0.5, spacing), 0.5, spacing)
    torch.testing.assert_close(half, kernel(field, spacing))


@pytest.mark.parametrize("kernel", KERNELS[:4], ids=str)
@all_sizes
def test_the_root_of_a_gaussian_kernel_is_finite(kernel, size):
    field = random_field(size)
    torch.testing.assert_close(kernel.powered(kernel.powered(field, 0.5), 0.5), kernel(field))


@every_kernel
def test_a_floor_is_added_before_the_power(kernel):
    field = random_field((8, 9))
    gain = kernel(torch.ones_like(field))
    torch.testing.assert_close(kernel.powered(field, 1, floor=0.3), kernel(field) + 0.3 * gain * field)
    there = kernel.powered(field, -0.5, floor=0.3)
    torch.testing.assert_close(kernel.powered(there, 0.5, floor=0.3), field)


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_kernels_with_padding_have_no_powers(padding):
    with pytest.raises(ValueError, match="only a kernel without padding has powers"):
        HelmholtzKernel(padding=padding).powered(torch.zeros(1, 2, 4, 4), -1)


@paddings
@both
@pytest.mark.parametrize("form", ["sqrt", "square"])
def test_spatially_varying_kernels_are_symmetric_and_positive(size, padding, form):
    kernel = MultiGaussianKernel((0.7, 1.5, 4.0), padding=padding)
    weights = 0.1 + torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    spacing = SPACING[: len(size)]
    a, b = random_field(size, seed=1), random_field(size, seed=2)
    forward, backward = (smooth_weighted(m, weights, kernel, spacing, form=form) for m in (b, a))
    torch.testing.assert_close((a * forward).sum(), (backward * b).sum())
    assert ((a * backward).flatten(1).sum(1) > 0).all()


@both
def test_constant_weights_give_the_ordinary_kernel(size):
    sigmas, weights = (0.7, 1.5, 4.0), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    kernel = MultiGaussianKernel(sigmas, weights.tolist(), padding="reflect")
    field, spacing = random_field(size), SPACING[: len(size)]
    maps = weights.view(1, 3, *[1] * len(size)).expand(1, 3, *size)
    expected = kernel(field, spacing)
    torch.testing.assert_close(smooth_weighted(field, maps, kernel, spacing), expected)
    torch.testing.assert_close(smooth_weighted(field, maps.sqrt(), kernel, spacing, form="square"), expected)


@pytest.mark.slow
@padded
def test_kernels_are_differentiable(kernel):
    for size, spacing in (((4, 5), (1.0, 0.7)), ((3, 2, 4), (1.0, 0.7, 1.4))):
        field = random_field(size, 1).requires_grad_()
        assert torch.autograd.gradcheck(lambda f, h=spacing: kernel(f, h), (field,))
    assert torch.autograd.gradgradcheck(kernel, (random_field((3, 4), 1).requires_grad_(),))


@pytest.mark.parametrize("form", ["sqrt", "square"])
def test_powers_and_varying_weights_are_differentiable(form):
    field = random_field((4, 5), 1).requires_grad_()
    weights = (0.1 + torch.rand(1, 2, 4, 5, dtype=torch.float64)).requires_grad_()
    kernel = MultiGaussianKernel((0.7, 1.5))
    assert torch.autograd.gradcheck(lambda m, w: smooth_weighted(m, w, kernel, form=form), (field, weights))
    assert torch.autograd.gradcheck(lambda m: kernel.powered(m, -0.5, floor=0.1), (field,))
    assert torch.autograd.gradcheck(lambda m: KERNELS[7].powered(m, 0.5), (field,))


@padded
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_raised_to_float32(kernel, dtype):
    field = random_field((7, 6), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        smoothed = kernel(field)
    assert smoothed.dtype == torch.float32
    torch.testing.assert_close(smoothed, kernel(field), rtol=0, atol=0)
    torch.testing.assert_close(kernel(field.to(dtype)), kernel(field.to(dtype).float()), rtol=0, atol=0)


def test_gradients_of_low_precision_fields_keep_their_type():
    field = random_field((7, 6), dtype=torch.bfloat16).requires_grad_()
    KERNELS[0](field).sum().backward()
    assert field.grad.dtype == torch.bfloat16


@every_kernel
def test_float32_agrees_with_float64(kernel):
    field = random_field((9, 8))
    torch.testing.assert_close(kernel(field.float()).double(), kernel(field), rtol=1e-5, atol=1e-5)


def test_a_symbol_cached_in_inference_mode_serves_training():
    kernel, field = gaussian_kernel(1.2345), random_field((6, 7))
    with torch.inference_mode():
        kernel(field)
    training = field.clone().requires_grad_()
    kernel(training).square().sum().backward()
    torch.testing.assert_close(training.grad, 2 * kernel(kernel(field)))


def test_the_input_is_left_alone():
    for padding in ("none", "zeros", "reflect"):
        field = random_field((6, 7))
        before = field.clone()
        replace(KERNELS[0], padding=padding)(field)
        assert torch.equal(field, before)


@padded
def test_kernels_are_read_back_from_their_repr(kernel):
    again = eval(repr(kernel))
    assert again == kernel
    assert hash(again) == hash(kernel)
    assert repr(again) == repr(kernel)


@given(st.lists(st.tuples(st.floats(0.01, 50), st.floats(0.01, 50)), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_weights_survive_their_repr(components):
    sigmas, weights = zip(*components, strict=True)
    for kernel in (MultiGaussianKernel(sigmas), MultiGaussianKernel(sigmas, weights)):
        assert sum(kernel.weights) == pytest.approx(1)
        assert eval(repr(kernel)) == kernel
        assert replace(kernel, padding="none") == kernel


def test_kernels_differ_in_every_setting():
    gaussians = [
        gaussian_kernel(1.0),
        gaussian_kernel(2.0),
        gaussian_kernel(1.0, nearest=True),
        gaussian_kernel(1.0, padding="zeros"),
        MultiGaussianKernel((1.0, 2.0)),
        MultiGaussianKernel((1.0, 2.0), (1.0, 1.0)),
        *[HelmholtzKernel(beta=beta, power=power) for beta in (0.0, 0.1) for power in (1, 2)],
    ]
    assert len(set(gaussians)) == len(gaussians)
    assert gaussian_kernel(2) == MultiGaussianKernel([2.0], [7.0])


def test_kernels_reach_as_far_as_their_widest_part():
    assert MultiGaussianKernel((1.0, 3.0)).reach() == pytest.approx(12)
    assert HelmholtzKernel(4.0, 1.0).reach() == pytest.approx(12)
    for kernel in (MultiGaussianKernel((1.0, 2.0)), HelmholtzKernel(1.0, 1.0), HelmholtzKernel(1.0, 1.0, 0.5, power=2)):
        impulse = torch.zeros(1, 2, 31, 31, dtype=torch.float64)
        impulse[:, 0, 15, 15] = 1
        response = kernel(impulse)[0].abs()
        distance = (torch.arange(31.0) - 15).square()
        beyond = (distance.view(-1, 1) + distance).sqrt() >= kernel.reach()
        assert response[:, beyond].max() < 0.01 * response.max()


def test_a_spacing_is_one_number_or_one_for_each_axis():
    assert per_axis(2, 3) == (2.0, 2.0, 2.0)
    assert per_axis([1, 2.5], 2) == (1.0, 2.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MultiGaussianKernel((1.0, 0.0)), "positive standard deviations"),
        (lambda: MultiGaussianKernel((1.0, 2.0), (1.0,)), "as many weights"),
        (lambda: MultiGaussianKernel((1.0, 2.0), (1.0, -1.0)), "positive standard deviations"),
        (lambda: MultiGaussianKernel(()), "positive standard deviations"),
        (lambda: gaussian_kernel(-1.0), "positive standard deviations"),
        (lambda: gaussian_kernel(1.0, padding="wrap"), "expected padding none, zeros or reflect, got 'wrap'"),
        (lambda: HelmholtzKernel(padding="border"), "expected padding none, zeros or reflect"),
        (lambda: HelmholtzKernel(0.0), "alpha, gamma above 0"),
        (lambda: HelmholtzKernel(1.0, -1.0), "alpha, gamma above 0"),
        (lambda: HelmholtzKernel(1.0, 1.0, -0.1), "beta of at least 0"),
        (lambda: HelmholtzKernel(1.0, 1.0, power=3), "power 1 or 2"),
        (lambda: gaussian_kernel(1.0)(torch.zeros(1, 2, 4, 4), (1.0, 1.0, 1.0)), "expected a positive spacing"),
        (lambda: gaussian_kernel(1.0)(torch.zeros(1, 2, 4, 4), 0), "expected a positive spacing"),
        (lambda: gaussian_kernel(1.0)(torch.zeros(1, 2, 4, 4), (1.0, math.nan)), "expected a positive spacing"),
        (
            lambda: smooth_weighted(torch.zeros(1, 2, 4, 4), torch.ones(1, 3, 4, 4), MultiGaussianKernel((1.0, 2.0))),
            "2 channels of weights",
        ),
        (
            lambda: smooth_weighted(torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4), gaussian_kernel(1.0), form="cube"),
            "expected form sqrt or square",
        ),
    ],
)
def test_kernels_refuse_settings_and_fields_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_base_class_is_no_kernel():
    with pytest.raises(TypeError, match="abstract"):
        Kernel()


@pytest.mark.parametrize("power", [1, 2])
def test_coupled_components_cannot_be_mirrored(power):
    with pytest.raises(ValueError, match="couples components"):
        HelmholtzKernel(1.0, 0.5, 0.8, power, padding="reflect")
