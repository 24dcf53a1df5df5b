"""Dense vector fields: identities, closed forms, orders of convergence, and agreement with MONAI."""

import functools
import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import grid_sample

from custom_components import fields
from custom_components.affine import affine_to_ddf

SIZES = [(9, 12), (7, 10, 8)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])


def smooth_field(size, batch=1, amplitude=1.0, dtype=torch.float64, seed=0):
    """A smooth random field that fades out at the border."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, len(size), *[4] * len(size), generator=generator, dtype=dtype)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    field = torch.nn.functional.interpolate(coarse, size=size, mode=mode, align_corners=True)
    for axis, n in enumerate(size):
        fade = torch.sin(math.pi * torch.arange(n, dtype=dtype) / (n - 1))
        field = field * fade.view([n if a == axis else 1 for a in range(len(size))])
    return amplitude * field


@both
def test_identity_grid_counts_voxels(size):
    grid = fields.identity_grid(size)
    assert grid.shape == (len(size), *size)
    assert grid[(1, *[0] * (len(size) - 1), 3)] == (3 if len(size) == 2 else 0)
    assert all(grid[i].max() == n - 1 for i, n in enumerate(size))


@both
def test_zero_field_is_the_identity(size):
    image = torch.rand(2, 3, *size, dtype=torch.float64)
    warped = fields.warp(image, torch.zeros(2, len(size), *size, dtype=torch.float64))
    assert (warped - image).abs().max() < 1e-14


@both
@given(shift=st.integers(-2, 2))
@settings(max_examples=5, deadline=None)
def test_integer_field_is_a_shift(size, shift):
    image = torch.rand(1, 1, *size, dtype=torch.float64)
    for axis in range(len(size)):
        ddf = torch.zeros(1, len(size), *size, dtype=torch.float64)
        ddf[:, axis] = shift
        expected = image.roll(-shift, axis + 2)
        inside = slice(2, -2)
        keep = (slice(None), slice(None), *[inside] * len(size))
        torch.testing.assert_close(fields.warp(image, ddf)[keep], expected[keep])


def test_padding_decides_what_lies_outside():
    image = torch.ones(1, 1, 5, 5)
    ddf = torch.full((1, 2, 5, 5), 10.0)
    assert fields.warp(image, ddf).abs().max() == 0
    assert (fields.warp(image, ddf, padding="border") == 1).all()


@both
def test_label_maps_keep_type_and_values(size):
    label = torch.randint(0, 2**15, (2, 1, *size), dtype=torch.int32) * 3
    warped = fields.warp(label, smooth_field(size, 2), mode="nearest", padding="border")
    assert warped.dtype == torch.int32
    assert set(warped.unique().tolist()) <= set(label.unique().tolist())
    torch.testing.assert_close(fields.warp(label, torch.zeros(2, len(size), *size), mode="nearest"), label)


def test_linear_interpolation_of_a_label_map_is_refused():
    with pytest.raises(ValueError, match="cannot be interpolated linearly"):
        fields.warp(torch.zeros(1, 1, 4, 4, dtype=torch.int16), torch.zeros(1, 2, 4, 4))


@both
def test_agrees_with_monai_warp(size):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.networks.blocks import Warp

        reference = Warp(mode="bilinear", padding_mode="border")
    image, ddf = torch.rand(2, 1, *size), smooth_field(size, 2, 2.0, torch.float32)
    torch.testing.assert_close(fields.warp(image, ddf, padding="border"), reference(image, ddf), atol=2e-5, rtol=0)


def test_slabs_on_several_threads_change_nothing():
    size = (20, 22, 24)
    image, ddf = torch.rand(1, 2, *size), smooth_field(size, 1, 2.0, torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = fields.warp(image, ddf)
        torch.set_num_threads(2)
        assert torch.equal(one, fields.warp(image, ddf))
    finally:
        torch.set_num_threads(threads)


@both
def test_composition_of_translations_adds(size):
    a, b = torch.full((1, len(size), *size), 0.5), torch.full((1, len(size), *size), -1.25)
    torch.testing.assert_close(fields.compose(a, b), a + b)


def test_composition_applies_the_inner_map_first():
    size = (21, 21)
    rotate = torch.tensor([[[0.0, -1.0, 20.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    shift = torch.eye(3, dtype=torch.float64)[None].clone()
    shift[0, 0, 2] = 3
    outer, inner = affine_to_ddf(rotate, size), affine_to_ddf(shift, size)
    expected = affine_to_ddf(rotate @ shift, size)
    inside = (slice(None), slice(None), slice(0, 17))
    torch.testing.assert_close(fields.compose(outer, inner)[inside], expected[inside])


@both
def test_linear_velocity_integrates_to_the_matrix_exponential(size):
    d = len(size)
    generator = 0.05 * torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    matrix = torch.zeros(d + 1, d + 1, dtype=torch.float64)
    matrix[:d, :d] = generator
    centre = torch.tensor([(n - 1) / 2 for n in size], dtype=torch.float64)
    matrix[:d, d] = -generator @ centre
    velocity = affine_to_ddf(torch.eye(d + 1, dtype=torch.float64)[None] + matrix[None], size)
    expected = affine_to_ddf(torch.linalg.matrix_exp(matrix)[None], size)
    middle = (slice(None), slice(None), *[slice(n // 2 - 1, n // 2 + 2) for n in size])
    error = (fields.integrate_velocity(velocity, 14) - expected)[middle].abs().max()
    assert error < 1e-4


def test_integration_converges_with_first_order():
    size = (33, 33)
    velocity = smooth_field(size, amplitude=2.0)
    truth = fields.integrate_velocity(velocity, 14)
    errors = [(fields.integrate_velocity(velocity, k) - truth).abs().mean() for k in (3, 4, 5, 6)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(0.7 < order < 1.4 for order in orders), orders


def test_constant_velocity_does_not_decay_at_the_border():
    ddf = fields.integrate_velocity(torch.full((1, 3, 10, 9, 8), 3.0))
    torch.testing.assert_close(ddf, torch.full_like(ddf, 3.0))


@both
def test_negative_velocity_is_the_inverse(size):
    size = tuple(3 * n for n in size)
    velocity = smooth_field(size, 2, 2.0)
    there, back = fields.integrate_velocity(velocity), fields.integrate_velocity(-velocity)
    assert fields.compose(there, back).abs().mean() < 0.02


@both
def test_inverse_composes_to_the_identity(size):
    size = tuple(3 * n for n in size)
    ddf = smooth_field(size, 2, 1.5)
    inverse, residual = fields.invert(ddf, tolerance=1e-3)
    assert residual.shape == (2,)
    assert residual.max() < 1e-3
    assert fields.compose(ddf, inverse).abs().max() < 1e-3


def test_inverse_of_a_folded_field_has_a_large_residual():
    size = (32, 32)
    ddf = torch.zeros(1, 2, *size)
    ddf[:, 0] = 4 * torch.sin(torch.arange(32.0)).view(-1, 1)
    assert fields.invert(ddf)[1] > 1


def test_resizing_rescales_vectors_along_each_axis():
    size, new = (9, 12, 5), (17, 7, 9)
    field = torch.stack([torch.full(size, value, dtype=torch.float64) for value in (1.0, 2.0, 3.0)])[None]
    resized = fields.resize_field(field, new)
    for i, (n, m) in enumerate(zip(size, new, strict=True)):
        torch.testing.assert_close(resized[:, i], torch.full((1, *new), (i + 1) * (m - 1) / (n - 1)).double())


def test_resizing_commutes_with_integration():
    size = (33, 41)
    velocity = smooth_field((17, 21), amplitude=1.5)
    low_first = fields.resize_field(fields.integrate_velocity(velocity), size)
    high_first = fields.integrate_velocity(fields.resize_field(velocity, size))
    assert (low_first - high_first).abs().mean() < 0.05


@both
def test_gradient_of_a_linear_field_is_exact_up_to_the_border(size):
    d = len(size)
    matrix = torch.randn(d, d, dtype=torch.float64)
    field = torch.einsum("ij,j...->i...", matrix, fields.identity_grid(size, dtype=torch.float64))[None]
    gradient = fields.spatial_gradient(field)
    expected = matrix.view(1, d, d, *[1] * d).expand_as(gradient)
    torch.testing.assert_close(gradient, expected)


@both
@given(rate=st.floats(-0.9, 2.0))
@settings(max_examples=10, deadline=None)
def test_determinant_of_a_uniform_scaling(size, rate):
    ddf = rate * fields.identity_grid(size, dtype=torch.float64)[None]
    determinant = fields.jacobian_determinant(ddf)
    torch.testing.assert_close(determinant, torch.full_like(determinant, (1 + rate) ** len(size)))


@pytest.mark.parametrize("size", [(17, 9), (11, 6, 5)])
def test_a_determinant_slab_by_slab_is_that_of_the_whole(size, monkeypatch):
    ddf = torch.randn(2, len(size), *size)
    whole = fields.jacobian_determinant(ddf)
    for planes in (1, 2, 3, 10):
        monkeypatch.setattr(fields, "_LARGE", planes * math.prod(size[1:]))
        torch.testing.assert_close(fields.jacobian_determinant(ddf), whole, rtol=0, atol=0)
    with_gradient = ddf.clone().requires_grad_()
    fields.jacobian_determinant(with_gradient).sum().backward()
    assert with_gradient.grad is not None


@both
def test_determinant_takes_the_whole_jacobian(size):
    d = len(size)
    matrix = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    affine = torch.cat([torch.eye(d, dtype=torch.float64) + matrix, torch.zeros(d, 1, dtype=torch.float64)], 1)[None]
    determinant = fields.jacobian_determinant(affine_to_ddf(affine, size))
    expected = torch.linalg.det(torch.eye(d, dtype=torch.float64) + matrix)
    torch.testing.assert_close(determinant, torch.full_like(determinant, expected.item()))


def test_points_follow_the_field():
    size = (11, 13, 9)
    matrix = torch.tensor([[[1.1, 0.1, 0.0, 0.5], [0.0, 0.9, 0.2, 1.0], [0.1, 0.0, 1.0, -0.5]]], dtype=torch.float64)
    points = 3 + 4 * torch.rand(1, 6, 3, dtype=torch.float64)
    moved = fields.transform_points(points, affine_to_ddf(matrix, size))
    torch.testing.assert_close(moved, points @ matrix[0, :, :3].T + matrix[0, :, 3])


@pytest.mark.slow
@both
def test_every_operator_is_differentiable(size):
    size = tuple(n // 2 + 1 for n in size)
    # Off the voxel centres, where linear interpolation has its kinks.
    field = (0.3 + smooth_field(size, 2, 0.1)).requires_grad_()
    image = torch.rand(2, 1, *size, dtype=torch.float64, requires_grad=True)
    check = torch.autograd.gradcheck
    assert check(lambda i, f: fields.warp(i, f, padding="border"), (image, field))
    assert check(lambda f: fields.integrate_velocity(f, 3), (field,))
    assert check(lambda f: fields.compose(f, f), (field,))
    assert check(lambda f: fields.resize_field(f, [n + 3 for n in size]), (field,))
    assert check(fields.jacobian_determinant, (field,))


@both
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_a_field_that_is_not_finite_does_not_crash_the_backward_pass(size, mode, padding, bad):
    """torch 2.13 ends the process with a segmentation fault."""
    field, image = smooth_field(size, 2, 1.0, torch.float32), torch.rand(2, 1, *size, requires_grad=True)
    field.view(-1)[::7] = bad
    field.requires_grad_()
    fields.warp(image, field, mode=mode, padding=padding).sum().backward()
    assert image.grad.shape == image.shape


@both
def test_an_integrated_velocity_keeps_what_is_not_a_number(size):
    velocity = smooth_field(size, 1, 1.0, torch.float32)
    velocity[0, 0, 3] = math.nan
    velocity.requires_grad_()
    ddf = fields.integrate_velocity(velocity)
    ddf.sum().backward()
    assert ddf[0, 0, 3].isnan().all()
    assert fields.compose(ddf, ddf)[0, 0, 3].isnan().all()


@both
def test_the_guard_against_nan_changes_no_number(size):
    images = torch.rand(2, 3, *size)
    grids = 3 * torch.rand(2, *size, len(size)) - 1.5
    answers = []
    for look_up in (fields._grid_sample, functools.partial(grid_sample, align_corners=True)):
        image, grid = images.clone().requires_grad_(), grids.clone().requires_grad_()
        result = look_up(image, grid, "bilinear", "border")
        result.square().sum().backward()
        answers.append((result, image.grad, grid.grad))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*answers, strict=True))


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_raised_to_float32(size, dtype):
    field, image = smooth_field(size, 1, 1.0, torch.float32), torch.rand(1, 1, *size)
    expected = fields.warp(image, fields.integrate_velocity(field))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fields.warp(image, fields.integrate_velocity(field)), expected)
    assert fields.integrate_velocity(field.to(dtype)).dtype == torch.float32


def test_an_axis_of_one_voxel_is_constant():
    image = torch.rand(1, 1, 6, 1, 5)
    ddf = torch.zeros(1, 3, 6, 1, 5)
    torch.testing.assert_close(fields.warp(image, ddf), image)
    assert torch.isfinite(fields.integrate_velocity(torch.rand(1, 3, 6, 1, 5))).all()
    assert torch.isfinite(fields.jacobian_determinant(torch.rand(1, 3, 6, 1, 5))).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fields.integrate_velocity(torch.zeros(1, 2, 8, 8, 8)), r"got \(1, 2, 8, 8, 8\)"),
        (lambda: fields.integrate_velocity(torch.zeros(1, 2, 8, 8), -1), "num_steps >= 0"),
        (lambda: fields.warp(torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8, 8)), "expected an image for a field"),
        (lambda: fields.sample(torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8)), "expected locations"),
        (lambda: fields.warp(torch.zeros(1, 1, 8, 8), torch.zeros(1, 2, 8, 8), mode="cubic"), "linear|nearest"),
        (lambda: fields.resize_field(torch.zeros(1, 2, 8, 8), (4, 4, 4)), "a size of 2 axes"),
        (lambda: affine_to_ddf(torch.eye(4)[None], (8, 8)), r"\(B, 3, 3\)"),
        (lambda: fields.transform_points(torch.zeros(1, 5, 3), torch.zeros(1, 2, 8, 8)), r"\(B, N, 2\)"),
    ],
)
def test_fields_refuse_shapes_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@both
def test_gpu_agrees_with_cpu(size):
    field, image = smooth_field(size, 2, 1.0, torch.float32), torch.rand(2, 1, *size)
    on_cpu = fields.warp(image, fields.integrate_velocity(field))
    on_gpu = fields.warp(image.cuda(), fields.integrate_velocity(field.cuda())).cpu()
    torch.testing.assert_close(on_gpu, on_cpu, atol=1e-4, rtol=1e-4)
