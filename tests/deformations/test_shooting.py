"""Geodesic shooting: reference numbers, conservation, symmetries, orders of convergence, gradients, limits."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from deformations.cases import bump, bumps, models, random_case, shot_of, tensors, tiny
from torch.autograd import gradcheck

from custom_components import fields
from custom_components.deformations.kernels import HelmholtzKernel, MultiGaussianKernel, gaussian_kernel
from custom_components.deformations.operators import advect, stretch, transport

KERNEL = gaussian_kernel(0.1, padding="zeros")
both = pytest.mark.parametrize("size", [(17, 17), (13, 13, 13)], ids=["2-D", "3-D"])
checkpoints = pytest.mark.parametrize("checkpoint", [False, True])


def smooth_image(size):
    return (bump(size, (0.5, 0.45, 0.5), 0.12) + 0.5 * bump(size, (0.4, 0.6, 0.45), 0.1))[None, None]


def unit_spacing(size):
    return tuple(1 / (n - 1) for n in size)


def energy_of(momentum, kernel, spacing):
    return (momentum * kernel(momentum, spacing)).sum(1).flatten(1).mean(1)


@pytest.fixture(scope="module")
def golden():
    """The case whose numbers were computed with the `mermaid` package and, without its limits, independently."""
    size = (64, 64)
    momentum = torch.stack([0.9 * bump(size, (0.4, 0.5), 0.08), -0.6 * bump(size, (0.6, 0.55), 0.06)])[None].float()
    return momentum, MultiGaussianKernel(nearest=True), 1 / 63


def test_reference_numbers_of_velocity_and_energy(golden):
    momentum, kernel, spacing = golden
    velocity = kernel(momentum, spacing)[0]
    torch.testing.assert_close(velocity.abs().amax((1, 2)), torch.tensor([0.193753, 0.086610]), rtol=0, atol=1e-5)
    torch.testing.assert_close(velocity[:, 32, 32], torch.tensor([0.145449, -0.061348]), rtol=0, atol=1e-5)
    hamiltonian = 0.5 * float((momentum[0] * velocity).sum()) * spacing**2
    assert hamiltonian == pytest.approx(0.00317075, abs=1e-8)


def test_reference_numbers_of_the_map(golden):
    momentum, kernel, spacing = golden
    shot = shot_of(momentum, kernel, spacing=spacing, num_steps=20)
    phi = (fields.identity_grid((64, 64)) + shot.ddf[0]) / 63
    torch.testing.assert_close(phi[:, 32, 32], torch.tensor([0.348188, 0.528140]), rtol=0, atol=1e-5)
    torch.testing.assert_close(phi[:, 25, 30], torch.tensor([0.284330, 0.489616]), rtol=0, atol=1e-5)
    drift = energy_of(shot.momentum, kernel, spacing) / shot.energy - 1
    assert drift.item() == pytest.approx(-1.5e-6, abs=3e-6)
    assert shot.num_steps == 20
    assert shot.ddf.dtype == torch.float32


def test_reference_numbers_of_the_stationary_map(golden):
    momentum, kernel, spacing = golden
    shot = shot_of(momentum, kernel, spacing=spacing, num_steps=20, model="stationary")
    phi = (fields.identity_grid((64, 64)) + shot.ddf[0]) / 63
    torch.testing.assert_close(phi[:, 25, 30], torch.tensor([0.241917, 0.491997]), rtol=0, atol=1e-5)
    assert torch.equal(shot.momentum, momentum)


def test_reference_number_of_the_largest_momentum(golden):
    """Over all stages of all steps, which the kernel sees one after the other, and one more at the start."""
    momentum, kernel, spacing = golden
    largest = []

    def watched(m, h):
        largest.append(float(m.abs().max()))
        return kernel(m, h)

    shot_of(momentum, watched, spacing=spacing, num_steps=20)
    assert len(largest) == 1 + 4 * 20
    assert max(largest) == pytest.approx(1.449, abs=5e-4)
    assert largest.index(max(largest)) > 70


def test_a_momentum_scaled_by_t_gets_as_far_as_the_momentum_at_time_t():
    """m(1) from t m(0) is t m(t): the equation is quadratic."""
    momentum, spacing, t = bumps((17, 17)), 1 / 16, 0.4
    part = shot_of(t * momentum, KERNEL, spacing=spacing)
    rest = shot_of((1 - t) / t * part.momentum, KERNEL, spacing=spacing)
    whole = shot_of(momentum, KERNEL, spacing=spacing)
    torch.testing.assert_close(rest.momentum / (1 - t), whole.momentum, rtol=0, atol=1e-5)
    assert (fields.compose(part.ddf, rest.ddf) - whole.ddf).abs().max() < 0.05 * whole.ddf.abs().max()


@both
def test_the_energy_is_constant(size):
    momentum, spacing = bumps(size), unit_spacing(size)
    shot = shot_of(momentum, KERNEL, spacing=spacing)
    torch.testing.assert_close(shot.velocity, KERNEL(momentum, spacing), rtol=0, atol=0)
    torch.testing.assert_close(shot.energy, energy_of(momentum, KERNEL, spacing))
    torch.testing.assert_close(energy_of(shot.momentum, KERNEL, spacing), shot.energy, rtol=1e-5, atol=0)
    assert (shot.momentum - momentum).abs().max() > 0.1 * momentum.abs().max()


@both
@pytest.mark.parametrize("kernel", [HelmholtzKernel(0.01, 1.0), HelmholtzKernel(0.01, 1.0, 0.01, power=2)], ids=str)
def test_the_energy_of_helmholtz_kernels_is_constant(size, kernel):
    spacing = unit_spacing(size)
    shot = shot_of(bumps(size), kernel, spacing=spacing)
    torch.testing.assert_close(energy_of(shot.momentum, kernel, spacing), shot.energy, rtol=1e-4, atol=0)


@both
def test_the_way_back_starts_with_the_negative_momentum(size):
    spacing = unit_spacing(size)
    there = shot_of(bumps(size), KERNEL, spacing=spacing, inverse=True)
    back = shot_of(-there.momentum, KERNEL, spacing=spacing, inverse=True)
    torch.testing.assert_close(back.momentum, -bumps(size), rtol=0, atol=1e-5)
    assert (back.ddf - there.inverse_ddf).abs().max() < 0.12 * there.ddf.abs().max()
    assert (back.inverse_ddf - there.ddf).abs().max() < 0.12 * there.ddf.abs().max()


@models
def test_the_inverse_map_is_the_inverse_to_second_order(model):
    errors = []
    for n in (17, 33, 65):
        size, spacing = (n, n), 1 / (n - 1)
        momentum = bumps(size)
        shot = shot_of(momentum, KERNEL, model, spacing=spacing, inverse=True)
        both_ways = [fields.compose(shot.ddf, shot.inverse_ddf), fields.compose(shot.inverse_ddf, shot.ddf)]
        errors.append([float(error.norm(dim=1).mean()) * spacing for error in both_ways])
    assert max(errors[0]) < 1e-3
    for coarse, fine in itertools.pairwise(errors):
        assert all(2.5 < c / f < 6 for c, f in zip(coarse, fine, strict=True)), errors


def test_the_inverse_map_is_the_inverse_in_3d():
    size = (17, 17, 17)
    shot = shot_of(bumps(size, 0.6), KERNEL, spacing=1 / 16, inverse=True)
    assert shot.ddf.abs().max() > 1.5
    assert fields.compose(shot.ddf, shot.inverse_ddf).norm(dim=1).mean() < 0.005
    assert fields.jacobian_determinant(shot.ddf).min() > 0


@both
def test_the_stationary_map_is_the_exponential_of_minus_the_velocity(size):
    shot = shot_of(bumps(size), KERNEL, spacing=unit_spacing(size), model="stationary", inverse=True)
    velocity = shot.velocity * (size[0] - 1)
    largest = velocity.abs().max()
    assert (shot.ddf - fields.integrate_velocity(-velocity, 10)).abs().max() < 0.15 * largest
    assert (shot.inverse_ddf - fields.integrate_velocity(velocity, 10)).abs().max() < 0.05 * largest
    assert torch.equal(shot.momentum, bumps(size))


def test_the_stationary_map_converges_to_the_exponential():
    errors = []
    for n in (17, 33, 65):
        shot = shot_of(bumps((n, n)), KERNEL, spacing=1 / (n - 1), model="stationary")
        expected = fields.integrate_velocity(-shot.velocity * (n - 1), 10)
        errors.append(float((shot.ddf - expected).norm(dim=1).mean()) / (n - 1))
    assert all(2.5 < coarse / fine < 6 for coarse, fine in itertools.pairwise(errors)), errors


@models
def test_runge_kutta_is_of_fourth_order(model):
    size, spacing = (16, 16), 1 / 15
    momentum = bumps(size)
    truth = shot_of(momentum, KERNEL, model, spacing=spacing, num_steps=64)
    errors = []
    for num_steps in (4, 8, 16):
        shot = shot_of(momentum, KERNEL, model, spacing=spacing, num_steps=num_steps)
        assert shot.num_steps == num_steps
        errors.append([float((a - b).abs().max()) for a, b in ((shot.ddf, truth.ddf), (shot.momentum, truth.momentum))])
    for coarse, fine in itertools.pairwise(errors):
        orders = [math.log2(c / f) for c, f in zip(coarse, fine, strict=True) if c > 0]
        assert all(3.6 < order < 4.6 for order in orders), errors


@pytest.mark.parametrize("size", [(9, 8), (6, 7, 5)], ids=["2-D", "3-D"])
@models
def test_a_constant_momentum_is_a_translation(size, model):
    shift = torch.tensor([1.5, -0.7, 0.4], dtype=torch.float64)[: len(size)].view(1, -1, *[1] * len(size))
    momentum = shift.expand(1, -1, *size)
    shot = shot_of(momentum, gaussian_kernel(1.5), model, inverse=True)
    torch.testing.assert_close(shot.ddf, -momentum)
    torch.testing.assert_close(shot.inverse_ddf, momentum)
    torch.testing.assert_close(shot.momentum, momentum)


def test_the_middle_of_a_wide_velocity_is_translated():
    size = (41, 41)
    axes = fields.identity_grid(size, dtype=torch.float64) - 20
    plateau = torch.sigmoid((14 - axes.abs()) * 2).prod(0)
    momentum = torch.stack([1.5 * plateau, -0.5 * plateau])[None]
    shot = shot_of(momentum, gaussian_kernel(1.0, padding="zeros"), model="stationary", inverse=True)
    expected = torch.tensor([1.5, -0.5], dtype=torch.float64)
    torch.testing.assert_close(shot.inverse_ddf[0, :, 20, 20], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(shot.ddf[0, :, 20, 20], -expected, rtol=0, atol=1e-4)
    assert shot.ddf[..., 0, 0].abs().max() < 1e-4


@models
@tiny
def test_no_momentum_is_the_identity(model, size):
    momentum, kernel = random_case(size, 2)
    shot = shot_of(torch.zeros_like(momentum), kernel, model, inverse=True)
    assert not any(part.any() for part in tensors(shot))


def test_transposing_the_grid_transposes_the_map():
    size, order = (8, 6, 7), (2, 0, 1)
    momentum, kernel = random_case(size, 2)
    spacing = (1.0, 0.8, 1.3)
    shot = shot_of(momentum, kernel, spacing=spacing, inverse=True)
    axes = [0, 1, *[a + 2 for a in order]]
    turned = shot_of(momentum[:, order].permute(axes), kernel, spacing=[spacing[a] for a in order], inverse=True)
    for a, b in zip(tensors(shot)[:4], tensors(turned)[:4], strict=True):
        torch.testing.assert_close(a[:, order].permute(axes), b)


def test_a_volume_of_equal_slices_is_a_plane():
    momentum, kernel = random_case((9, 8))
    kernel = replace(kernel, padding="none")
    volume = torch.cat([momentum, torch.zeros_like(momentum[:, :1])], 1)[..., None].expand(-1, -1, -1, -1, 4)
    flat, deep = shot_of(momentum, kernel, inverse=True), shot_of(volume, kernel, inverse=True)
    for a, b in zip(tensors(flat)[:4], tensors(deep)[:4], strict=True):
        torch.testing.assert_close(b[:, :2], a[..., None].expand_as(b[:, :2]))
        assert b[:, 2].abs().max() < 1e-12


@models
@tiny
def test_a_batch_is_its_samples(model, size):
    momentum, kernel = random_case(size, 3)
    momentum = momentum * torch.tensor([1.0, 0.3, -0.8]).view(-1, *[1] * (len(size) + 1))
    batch = shot_of(momentum, kernel, model, inverse=True)
    for i in range(3):
        single = shot_of(momentum[i : i + 1], kernel, model, inverse=True)
        assert single.num_steps == batch.num_steps
        for a, b in zip(tensors(single), tensors(batch), strict=True):
            torch.testing.assert_close(a, b[i : i + 1])


def test_the_unit_of_length_does_not_matter():
    momentum, kernel = random_case((9, 8))
    one = shot_of(momentum, kernel, spacing=(1.0, 0.7), inverse=True)
    wide = replace(kernel, sigmas=[10 * sigma for sigma in kernel.sigmas])
    other = shot_of(10 * momentum, wide, spacing=(10.0, 7.0), inverse=True)
    for a, b, factor in zip(tensors(one), tensors(other), (1, 1, 10, 10, 100), strict=True):
        torch.testing.assert_close(factor * a, b)


@models
def test_anisotropic_grids_give_the_isotropic_result(model):
    shots = []
    for size in ((49, 49), (25, 49)):
        momentum = bumps(size)
        spacing = unit_spacing(size)
        shot = shot_of(momentum, KERNEL, model, spacing=spacing, inverse=True)
        unit = torch.tensor(spacing).view(1, 2, 1, 1)
        shots.append((shot.ddf * unit, shot.inverse_ddf * unit, shot.velocity))
    for fine, coarse in zip(*shots, strict=True):
        assert (fine[:, :, ::2] - coarse).abs().max() < 0.05 * fine.abs().max()


@pytest.mark.slow
@checkpoints
@models
@tiny
def test_shooting_is_differentiable(model, size, checkpoint):
    momentum, kernel = random_case(size)
    spacing = (1.0, 0.8, 1.3)[: len(size)]

    def parts(m):
        shot = shot_of(m, kernel, model, spacing=spacing, num_steps=2, inverse=True, checkpoint=checkpoint, max_steps=2)
        return shot.ddf, shot.inverse_ddf, shot.momentum, shot.velocity, shot.energy

    assert gradcheck(parts, (momentum.requires_grad_(),), fast_mode=len(size) == 3 or checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [HelmholtzKernel(1.0, 1.0, 0.5), MultiGaussianKernel((1.0, 2.0))], ids=str)
def test_shooting_is_differentiable_with_every_kernel(kernel):
    momentum, _ = random_case((5, 6))
    assert gradcheck(lambda m: shot_of(m, kernel, num_steps=3, checkpoint=False).ddf, (momentum.requires_grad_(),))


@models
@tiny
def test_checkpoints_do_not_change_the_gradient(model, size):
    momentum, kernel = random_case(size, 2)
    results = []
    for checkpoint in (False, True):
        m = momentum.clone().requires_grad_()
        shot = shot_of(m, kernel, model, num_steps=4, inverse=True, checkpoint=checkpoint)
        loss = (shot.ddf - 1).square().mean() + shot.inverse_ddf.square().mean() + shot.momentum.pow(3).mean()
        (loss + shot.energy.sum()).backward()
        results.append((*tensors(shot), m.grad))
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_descent_on_the_momentum_brings_an_image_to_another():
    size, spacing = (17, 17), 1 / 16
    moving, fixed = smooth_image(size), fields.warp(smooth_image(size), torch.full((1, 2, *size), 1.0))
    momentum = torch.zeros(1, 2, *size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([momentum], 0.05)
    losses = []
    for _ in range(15):
        warped = fields.warp(moving, shot_of(momentum, KERNEL, spacing=spacing, num_steps=5).ddf)
        losses.append((warped - fixed).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.1 * losses[0]


SHAPES = [(4, 5), (1, 4), (2, 3), (1, 2), (1, 1), (3, 1, 2), (2, 4, 3)]
shapes = pytest.mark.parametrize("size", SHAPES, ids=str)


def random_pair(size, channels):
    generator = torch.Generator().manual_seed(3)
    f, w = (torch.randn(2, c, *size, dtype=torch.float64, generator=generator) for c in (channels, len(size)))
    return f.requires_grad_(), w.requires_grad_()


@shapes
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operator", [transport, advect])
def test_transport_and_advection_are_differentiable(operator, channels, size):
    assert gradcheck(operator, random_pair(size, channels))


@shapes
def test_stretching_is_differentiable(size):
    assert gradcheck(lambda m, v: stretch(m, v, (1.0, 0.7, 1.4)[: len(size)]), random_pair(size, len(size)))


def neumann(f, axis, spacing=1.0):
    """Central differences, 0 at both ends."""
    n, result = f.shape[axis], torch.zeros_like(f)
    if n > 2:
        middle = (f.narrow(axis, 2, n - 2) - f.narrow(axis, 0, n - 2)) / (2 * spacing)
        result.narrow(axis, 1, n - 2).copy_(middle)
    return result


@shapes
@torch.no_grad()
def test_the_operators_are_their_formulas(size):
    d, spacing = len(size), (1.0, 0.7, 1.4)
    m, v = random_pair(size, d)
    image = random_pair(size, 1)[0]
    expected = -sum(neumann(m * v[:, j : j + 1], j + 2) for j in range(d))
    torch.testing.assert_close(transport(m, v), expected)
    expected = torch.stack([-(neumann(v, k + 2, spacing[k]) * m).sum(1) for k in range(d)], 1)
    torch.testing.assert_close(stretch(m, v, spacing[:d]), expected)
    expected = -(fields.spatial_gradient(image)[:, 0] * v).sum(1, keepdim=True)
    torch.testing.assert_close(advect(image, v), expected)


def test_a_large_momentum_raises_the_number_of_steps():
    size = (24, 24)
    shot = shot_of(bumps(size, 1.0), KERNEL, spacing=1 / 23, num_steps=4)
    assert shot.num_steps > 4
    assert shot.ddf.abs().max() > 5
    assert torch.isfinite(shot.ddf).all()
    assert fields.jacobian_determinant(shot.ddf).min() > 0
    again = shot_of(bumps(size, 1.0), KERNEL, spacing=1 / 23, num_steps=shot.num_steps)
    assert again.num_steps == shot.num_steps
    assert torch.equal(again.ddf, shot.ddf)


@checkpoints
def test_gradients_survive_a_raised_number_of_steps(checkpoint):
    num_steps, gradients = 2, []
    for _ in range(2):
        momentum = bumps((16, 16), 1.0).requires_grad_()
        shot = shot_of(momentum, KERNEL, spacing=1 / 15, num_steps=num_steps, checkpoint=checkpoint)
        shot.ddf.square().mean().backward()
        gradients.append(momentum.grad)
        num_steps = shot.num_steps
    assert num_steps > 2
    assert torch.equal(*gradients)


def test_one_fast_sample_slows_the_whole_batch():
    size = (24, 24)
    batch = torch.cat([bumps(size, 0.1), bumps(size, 1.0)])
    alone = [shot_of(m[None], KERNEL, spacing=1 / 23, num_steps=3).num_steps for m in batch]
    assert alone[0] == 3 < alone[1] == shot_of(batch, KERNEL, spacing=1 / 23, num_steps=3).num_steps


@models
def test_too_many_steps_are_refused(model):
    size = (16, 16)
    momentum = 50 * bumps(size)
    with pytest.raises(RuntimeError, match=r"too large for this grid: \d+ integration steps needed, 8 allowed"):
        shot_of(momentum, KERNEL, model, spacing=1 / 15, max_steps=8)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@models
def test_a_momentum_that_is_not_finite_is_refused(model, bad):
    momentum, kernel = random_case((5, 6), 2)
    momentum[1, 0, 2, 2] = bad
    with pytest.raises(RuntimeError, match="not finite"):
        shot_of(momentum, kernel, model)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: shot_of(torch.zeros(1, 3, 8, 8), k), r"got \(1, 3, 8, 8\)"),
        (lambda k: shot_of(torch.zeros(1, 2, 8, 8, 8), k), r"got \(1, 2, 8, 8, 8\)"),
        (lambda k: shot_of(torch.zeros(1, 1, 8), k), r"got \(1, 1, 8\)"),
        (lambda k: shot_of(torch.zeros(2, 8, 8), k), r"got \(2, 8, 8\)"),
        (lambda k: shot_of(torch.zeros(1, 2, 8, 8), k, num_steps=0), "num_steps of at least 1"),
        (lambda k: shot_of(torch.zeros(1, 2, 8, 8), k, spacing=(1.0, 1.0, 1.0)), "expected a positive spacing"),
        (lambda k: shot_of(torch.zeros(1, 2, 8, 8), k, spacing=0.0), "expected a positive spacing"),
    ],
)
def test_shooting_refuses_settings_and_momenta_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call(gaussian_kernel(1.5))


@checkpoints
@models
def test_autocast_changes_nothing(model, checkpoint):
    momentum, kernel = random_case((8, 9), 2, torch.float32)
    results = []
    for enabled in (False, True):
        m = momentum.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            shot = shot_of(m, kernel, model, num_steps=3, inverse=True, checkpoint=checkpoint)
        shot.ddf.square().sum().backward()
        results.append((*tensors(shot), m.grad))
    for plain, mixed in zip(*results, strict=True):
        assert mixed.dtype == torch.float32
        assert torch.equal(plain, mixed)


@models
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_raised_to_float32(model, dtype):
    momentum, kernel = random_case((8, 9), 1, dtype)
    low = shot_of(momentum, kernel, model, inverse=True)
    high = shot_of(momentum.float(), kernel, model, inverse=True)
    for a, b in zip(tensors(low), tensors(high), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@models
def test_float32_agrees_with_float64(model):
    momentum, kernel = random_case((8, 9))
    single = shot_of(momentum.float(), kernel, model, inverse=True)
    double = shot_of(momentum, kernel, model, inverse=True)
    for a, b in zip(tensors(single), tensors(double), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_the_inverse_is_only_there_if_asked_for():
    momentum, kernel = random_case((5, 6))
    without, with_inverse = shot_of(momentum, kernel), shot_of(momentum, kernel, inverse=True)
    assert without.inverse_ddf is None
    torch.testing.assert_close(without.ddf, with_inverse.ddf)


def test_unchecked_steps_give_the_same_map(golden):
    momentum, kernel, spacing = golden
    one, other = (shot_of(momentum, kernel, spacing=spacing, checked=checked) for checked in (True, False))
    assert torch.equal(one.ddf, other.ddf)
    assert not shot_of(momentum * torch.nan, kernel, spacing=spacing, checked=False).ddf.isfinite().all()
