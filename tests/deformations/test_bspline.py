"""Free-form deformations: closed forms of the cubic B-spline, exact refinement, no folds below the bound."""

import pytest
import torch

from custom_components.deformations.bspline import (
    BSplineDeformation,
    _along,
    _basis,
    bending_energy,
    bspline_field,
    control_size,
)
from custom_components.fields import identity_grid, jacobian_determinant

SIZES = [(33, 28), (17, 14, 11)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])
SPACINGS = [4, 5, 2.5]
spacings = pytest.mark.parametrize("spacing", SPACINGS)


def points(size, spacing, seed=0):
    shape = (2, len(size), *control_size(size, spacing))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def places(size, spacing):
    """Coordinates of the control points, voxels, (1, D, *C)."""
    number = control_size(size, spacing)
    step = torch.tensor(spacing if isinstance(spacing, tuple) else [spacing] * len(size), dtype=torch.float64)
    grid = identity_grid(number, dtype=torch.float64) - 1
    return (grid * step.view(-1, *[1] * len(size)))[None]


def test_an_axis_takes_three_control_points_more_than_intervals():
    assert control_size((33, 34), 4) == [11, 12]
    assert control_size((33, 1, 5), (4, 8, 2.5)) == [11, 3, 5]


@both
@spacings
def test_equal_control_points_make_a_constant_field(size, spacing):
    ones = torch.ones(1, 1, *control_size(size, spacing))
    field = bspline_field(ones, size, spacing)
    assert field.shape == (1, 1, *size)
    assert field.dtype == torch.float32
    assert (field - 1).abs().max() < 1e-6


@both
@spacings
def test_an_affine_field_is_reproduced(size, spacing):
    d = len(size)
    matrix = torch.randn(d, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    affine = torch.einsum("ij,bj...->bi...", matrix, places(size, spacing)) + 3
    expected = torch.einsum("ij,j...->i...", matrix, identity_grid(size, dtype=torch.float64)) + 3
    assert (bspline_field(affine, size, spacing)[0] - expected).abs().max() < 1e-12


def test_squared_places_make_the_square_and_a_third():
    x = torch.arange(33, dtype=torch.float64)
    field = bspline_field(places((33, 5), 4)[:, :1] ** 2, (33, 5), 4)[0, 0, :, 2]
    torch.testing.assert_close(field, x**2 + 16 / 3, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("fraction", "weights"),
    [
        (0.0, (1 / 6, 4 / 6, 1 / 6, 0.0)),
        (0.25, (0.0703125, 0.6119792, 0.3151042, 0.0026042)),
        (0.5, (1 / 48, 23 / 48, 23 / 48, 1 / 48)),
    ],
)
def test_weights_within_an_interval_are_those_of_the_cubic_spline(fraction, weights):
    for k, expected in enumerate(weights):
        one = torch.zeros(1, 1, *control_size((17, 1), 4), dtype=torch.float64)
        one[:, :, 1 + k] = 1  # the interval between voxels 4 and 8 has the control points 1 to 4
        value = bspline_field(one, (17, 1), 4)[0, 0, 4 + int(4 * fraction), 0]
        assert float(value) == pytest.approx(expected, abs=1e-7)


@both
def test_one_control_point_has_its_peak_and_its_sum(size):
    spacing, number = 2, control_size(size, 2)
    one = torch.zeros(1, 1, *number, dtype=torch.float64)
    middle = tuple(n // 2 for n in number)
    one[(0, 0, *middle)] = 1
    field = bspline_field(one, size, spacing)[0, 0]
    assert float(field.max()) == pytest.approx((2 / 3) ** len(size), abs=1e-12)
    assert float(field.sum()) == pytest.approx(spacing ** len(size), abs=1e-12)


@pytest.mark.parametrize(("d", "expected"), [(2, 0.2768), (3, 0.1916)])
def test_uniform_control_points_make_a_field_of_the_stated_deviation(d, expected):
    size = (257, 257) if d == 2 else (65, 65, 65)
    number = control_size(size, 4)
    uniform = 2 * torch.rand(4, d, *number, generator=torch.Generator().manual_seed(3)) - 1
    cells = bspline_field(uniform, size, 4)[(..., *[slice(0, -1)] * d)]
    assert float(cells.std()) == pytest.approx(expected, rel=0.03)


@both
def test_the_gradient_is_the_transpose(size):
    c = points(size, 4).requires_grad_()
    u = bspline_field(c, size, 4)
    v = torch.randn(u.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (u * v).sum().backward()
    assert float((c.detach() * c.grad).sum()) == pytest.approx(float((u * v).detach().sum()), rel=1e-12)
    one = [4] * len(size)
    assert torch.autograd.gradcheck(
        lambda c: bspline_field(c, one, 2.5), points(one, 2.5)[:1, :1].detach().requires_grad_()
    )


@both
@pytest.mark.parametrize("spacing", [4, 3.5])
def test_control_points_below_the_bound_never_fold(size, spacing):
    bound = spacing / (1.5 * len(size))
    # The worst signs: neighbours pull in opposite directions along every axis.
    signs = (-1) ** identity_grid(control_size(size, spacing), dtype=torch.float64)
    random = points(size, spacing).sign()
    for pattern in (signs[None], signs.prod(0, keepdim=True).expand_as(signs)[None], random):
        ddf = bspline_field(0.999 * bound * pattern, size, spacing)
        assert jacobian_determinant(ddf).min() > 0


def test_large_control_points_fold():
    ddf = bspline_field(4 * points((33, 28), 4).sign(), (33, 28), 4)
    assert jacobian_determinant(ddf).min() < 0


@both
@pytest.mark.parametrize("spacing", [8, 6, 2.5])
@pytest.mark.parametrize("times", [2, 4])
def test_halving_the_spacing_is_exact(size, spacing, times):
    coarse, fine = BSplineDeformation(spacing), BSplineDeformation(spacing / times)
    c = points(size, spacing)
    refined = fine.resize(c, fine.parameter_size(size))
    assert list(refined.shape[2:]) == control_size(size, spacing / times)
    torch.testing.assert_close(fine(refined, size)["ddf"], coarse(c, size)["ddf"], rtol=0, atol=1e-10)


def test_refined_control_points_are_those_of_the_subdivision():
    c = points((33, 33), 8)[:, :1, :, 3:4].expand(-1, 2, -1, 7)
    fine = BSplineDeformation(4).resize(c, control_size((33, 33), 4))[:, 0, :, 0] / 2  # in units of the old spacing
    c = c[:, 0, :, 0]
    torch.testing.assert_close(fine[:, 1::2][:, :5], (c[:, :-2] + 6 * c[:, 1:-1] + c[:, 2:])[:, :5] / 8)
    torch.testing.assert_close(fine[:, 0::2][:, :6], (c[:, :-1] + c[:, 1:])[:, :6] / 2)


@pytest.mark.parametrize("full", [(33, 28), (100, 97, 50), (7, 160, 30)], ids=str)
def test_levels_of_a_pyramid_refine_exactly(full):
    deformation = BSplineDeformation(4)
    sizes = [tuple(-(-n // factor) for n in full) for factor in (4, 2, 1)]
    levels = [deformation.on_grid(full, size) for size in sizes]
    assert levels[2].parameter_size(full) == deformation.parameter_size(full)
    c = points(sizes[0], levels[0].spacing)
    expected = bspline_field(16 * c, full, 16)
    for level, size in zip(levels[1:], sizes[1:], strict=True):
        c = level.resize(c, level.parameter_size(size))
    torch.testing.assert_close(levels[2](c, full)["ddf"], expected, rtol=0, atol=1e-9)


def test_coarser_control_points_are_the_best_fit():
    size, coarse = (33, 28), BSplineDeformation(8)
    smooth = points(size, 8)
    fine = BSplineDeformation(4).resize(smooth, control_size(size, 4))
    torch.testing.assert_close(coarse.resize(fine, control_size(size, 8)), smooth)


@both
@spacings
def test_the_fit_of_a_spline_is_the_spline_and_of_others_the_closest(size, spacing):
    deformation, given = BSplineDeformation(spacing), points(size, spacing) / spacing
    field = deformation(given, size)["ddf"]
    torch.testing.assert_close(deformation(deformation.fit(field), size)["ddf"], field, atol=2e-3, rtol=0)
    noise = torch.randn(field.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    best = deformation.fit(field + noise)
    error = (deformation(best, size)["ddf"] - field - noise).square().sum()
    for change in (0.01 * points(size, spacing, 2), 0.01 * points(size, spacing, 3)):
        assert (deformation(best + change, size)["ddf"] - field - noise).square().sum() > error


def test_a_voxel_is_a_voxel_along_axes_of_different_spacing():
    deformation = BSplineDeformation((4, 8))
    ones = torch.ones(1, 2, *deformation.parameter_size((33, 33)))
    ddf = deformation(ones, (33, 33))["ddf"]
    torch.testing.assert_close(ddf[0, :, 5, 6], torch.tensor([4.0, 8.0]))


@pytest.mark.parametrize("spacing", [0, -1, (4, 0), float("nan")])
def test_a_spacing_must_be_above_zero(spacing):
    with pytest.raises(ValueError, match="expected a positive spacing"):
        BSplineDeformation(spacing)


def test_control_points_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"shape \(B, C, 11, 10\)"):
        bspline_field(torch.zeros(1, 2, 9, 9), (33, 28), 4)


def squares(size, spacing, factors):
    """Control points of u_0 = a x_0^2 + b x_0 x_1: those of a square lie a third of the spacing's square lower."""
    x = places(size, spacing)
    u = factors[0] * (x[:, :1] ** 2 - spacing**2 / 3) + factors[1] * x[:, :1] * x[:, 1:2]
    return torch.cat([u, torch.zeros_like(x[:, 1:])], 1)


@both
@spacings
@pytest.mark.parametrize(("factors", "expected"), [((0.3, 0.0), 4 * 0.09), ((0.0, 0.3), 2 * 0.09)])
def test_the_bending_energy_of_squares_and_products_is_exact(size, spacing, factors, expected):
    energy = bending_energy(squares(size, spacing, factors), size, spacing)
    assert float(energy) == pytest.approx(expected, rel=1e-10)


@both
def test_an_affine_displacement_does_not_bend(size):
    d = len(size)
    matrix = torch.randn(d, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    affine = torch.einsum("ij,bj...->bi...", matrix, places(size, 5)) + 3
    assert abs(float(bending_energy(affine, size, 5))) < 1e-10


@both
def test_the_bending_energy_is_that_of_finite_differences(size):
    c, h = points(size, 8)[:1], 8
    step = 1e-3

    def second(i, j):
        """Of all components at the middles of the voxels, by differences of the spline on grids shifted by a step."""
        total = 0
        for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            field = c
            for axis, n in enumerate(size):
                shift = 0.5 + step * (a * (axis == i) + b * (axis == j))
                where = (torch.arange(n - 1, dtype=torch.float64) + shift) / h
                field = _along(field, axis + 2, _basis(where, field.shape[axis + 2]))
            total = total + a * b * field
        return total / (2 * step) ** 2

    d = len(size)
    expected = sum(second(i, j).square().sum(1).mean() for i in range(d) for j in range(d))
    assert float(bending_energy(c, size, h)) == pytest.approx(float(expected), rel=0.02)


def test_the_bending_energy_counts_in_the_voxels_size():
    c, size = points((33, 28), 4), (33, 28)
    voxels = bending_energy(c, size, 4)
    torch.testing.assert_close(bending_energy(c, size, 4, voxel_size=2.0), voxels / 4)
    stretched = squares(size, 4, (0.3, 0.0)) * 2  # u_0 = .6 x^2 voxels of 3 mm: .2 X^2 in mm
    assert float(bending_energy(stretched, size, 4, (3.0, 1.0))) == pytest.approx(4 * 0.04, rel=1e-10)


def test_refinement_keeps_the_bending_energy():
    full, c = (33, 28), points((17, 14), 4)
    levels = [BSplineDeformation(4, 2.0).on_grid(full, size) for size in ((17, 14), full)]
    fine = levels[1].resize(c, levels[1].parameter_size(full))
    torch.testing.assert_close(levels[1](fine, full)["bending"], levels[0](c, (17, 14))["bending"])
