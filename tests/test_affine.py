"""Affine matrices: composition, coordinates, fits to points."""

import pytest
import torch

from custom_components.affine import (
    affine_to_ddf,
    centred_to_voxel,
    compose_affine,
    invert_affine,
    rotation_matrix,
    voxel_to_centred,
)
from custom_components.fields import compose
from custom_components.networks.affine_keypoints import fit_affine

dimensions = pytest.mark.parametrize("d", [2, 3], ids=["2-D", "3-D"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_affine(d, batch=3, seed=0, scale=0.2, dtype=torch.float64):
    difference = scale * (2 * torch.rand(batch, d, d + 1, generator=generator(seed), dtype=dtype) - 1)
    return difference + torch.eye(d, d + 1, dtype=dtype)


def identity(matrix):
    return torch.eye(*matrix.shape[1:], dtype=matrix.dtype).expand_as(matrix)


@dimensions
def test_matrices_compose_and_invert_as_maps(d):
    a, b, c = (random_affine(d, seed=seed) for seed in range(3))
    x = torch.randn(d, 5, generator=generator(), dtype=torch.float64)

    def apply(matrix, points):
        return matrix[:, :, :d] @ points + matrix[:, :, d:]

    torch.testing.assert_close(apply(compose_affine(a, b), x), apply(a, apply(b, x)))
    left, right = compose_affine(compose_affine(a, b), c), compose_affine(a, compose_affine(b, c))
    torch.testing.assert_close(left, right)
    torch.testing.assert_close(compose_affine(a, identity(a)), a)
    for first, second in ((a, invert_affine(a)), (invert_affine(a), a)):
        torch.testing.assert_close(compose_affine(first, second), identity(a))


@pytest.mark.parametrize("size", [(21, 26), (14, 17, 12)], ids=str)
def test_matrices_compose_as_their_displacement_fields(size):
    outer, inner = (centred_to_voxel(random_affine(len(size), 2, s, 0.04), size) for s in range(2))
    found = compose(affine_to_ddf(outer, size), affine_to_ddf(inner, size))
    expected = affine_to_ddf(compose_affine(outer, inner), size)
    inside = (slice(None), slice(None), *[slice(4, -4)] * len(size))
    torch.testing.assert_close(found[inside], expected[inside])


def test_centred_coordinates_by_hand():
    """A grid of 5 x 9 voxels has its centre at (2, 4) and a unit of 4 voxels along both axes."""
    shift = torch.tensor([[[1.0, 0, 0.5], [0, 1, -1]]])
    assert centred_to_voxel(shift, (5, 9)).tolist() == [[[1, 0, 2], [0, 1, -4]]]
    quarter_turn = torch.tensor([[[0.0, -1, 0], [1, 0, 0]]])
    voxel = centred_to_voxel(quarter_turn, (5, 9))
    assert voxel.tolist() == [[[0, -1, 6], [1, 0, 2]]]
    ddf = affine_to_ddf(voxel, (5, 9))
    assert ddf[0, :, 2, 4].tolist() == [0, 0]
    assert ddf[0, :, 2, 6].tolist() == [-2, -2]  # (2, 6), 2 to the right of the centre, goes to (0, 4)
    assert centred_to_voxel(torch.tensor([[[2.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]]]), (4, 3, 6)).tolist() == [
        [[2, 0, 0, -1.5], [0, 1, 0, 0], [0, 0, 1, 2.5]]
    ]


@pytest.mark.parametrize("size", [(5, 9), (8, 3), (7, 4, 10), (1, 6, 3), (1, 1)], ids=str)
def test_coordinates_convert_back_and_keep_compositions(size):
    a, b = (random_affine(len(size), seed=seed) for seed in range(2))
    voxel = centred_to_voxel(a, size)
    torch.testing.assert_close(voxel_to_centred(voxel, size), a)
    torch.testing.assert_close(voxel[:, :, :-1], a[:, :, :-1])
    together = centred_to_voxel(compose_affine(a, b), size)
    torch.testing.assert_close(together, compose_affine(voxel, centred_to_voxel(b, size)))
    torch.testing.assert_close(centred_to_voxel(identity(a), size), identity(a))


@dimensions
def test_matrices_stay_precise_under_autocast(d):
    a, b = (random_affine(d, seed=seed, dtype=torch.float32) for seed in range(2))
    functions = (
        lambda: compose_affine(a, b),
        lambda: invert_affine(a),
        lambda: voxel_to_centred(a, (50, 60, 70)[:d]),
        lambda: centred_to_voxel(a, (50, 60, 70)[:d]),
        lambda: fit_affine(a.transpose(1, 2), b.transpose(1, 2), a[:, 0].square()),
    )
    for function in functions:
        with torch.autocast("cpu", torch.bfloat16):
            low = function()
        assert torch.equal(low, function())


def points(d, batch=2, count=12, seed=0, dtype=torch.float64):
    """Points and weights."""
    found = torch.randn(batch, count, d, generator=generator(seed), dtype=dtype) * 0.4
    return found, torch.rand(batch, count, generator=generator(seed + 1), dtype=dtype)


@dimensions
def test_an_exact_map_of_points_is_found(d):
    fixed, weights = points(d)
    matrix = random_affine(d, 2, scale=0.3)
    moving = fixed @ matrix[:, :, :d].transpose(1, 2) + matrix[:, :, d].unsqueeze(1)
    moving[:, 0], weights[:, 0] = 5.0, 0.0  # a point without weight
    torch.testing.assert_close(fit_affine(fixed, moving, weights, 1e-12), matrix)
    torch.testing.assert_close(fit_affine(fixed, moving, weights), matrix, rtol=0, atol=1e-4)
    torch.testing.assert_close(fit_affine(fixed, moving, 7 * weights), fit_affine(fixed, moving, weights))


@dimensions
def test_swapped_points_give_the_inverse_whatever_they_are(d):
    fixed, weights = points(d)
    moving, _ = points(d, seed=5)
    there, back = fit_affine(fixed, moving, weights), fit_affine(moving, fixed, weights)
    torch.testing.assert_close(compose_affine(there, back), identity(there))
    assert torch.linalg.det(there[:, :, :d]).min() > 0
    assert (there - identity(there)).abs().max() > 0.3


@dimensions
def test_points_that_say_nothing_leave_the_linear_part_alone(d):
    fixed, weights = points(d)
    torch.testing.assert_close(fit_affine(fixed, fixed, weights), identity(random_affine(d, 2)))
    moving, _ = points(d, seed=5)
    matrix = fit_affine(fixed, moving, torch.zeros_like(weights))
    assert torch.equal(matrix, identity(matrix))
    one, other = fixed[:, :1].expand_as(fixed), moving[:, :1].expand_as(fixed)
    matrix = fit_affine(one, other, weights)
    torch.testing.assert_close(matrix[:, :, :d], identity(matrix)[:, :, :d])
    torch.testing.assert_close(matrix[:, :, d], (other - one)[:, 0])


@pytest.mark.parametrize("moving", [0.0, 1e-3, 100.0, -0.5, -1.0, -10.0])
def test_any_points_have_a_map_that_keeps_orientation(moving):
    fixed, weights = points(3, dtype=torch.float32)
    matrix = fit_affine(fixed, moving * fixed, weights)
    assert torch.isfinite(matrix).all()
    assert torch.linalg.det(matrix[:, :, :3]).min() > 0


@dimensions
def test_the_fit_is_differentiable(d):
    fixed, weights = points(d, 1, 5)
    moving = fixed + 0.2 * points(d, 1, 5, seed=5)[0]
    inputs = [x.clone().requires_grad_() for x in (fixed, moving, weights + 0.1)]
    assert torch.autograd.gradcheck(lambda *x: fit_affine(*x, ridge=1e-2), inputs)
    assert torch.autograd.gradcheck(lambda *x: fit_affine(x[0], -5 * x[1], x[2], ridge=1e-2), inputs)  # at the bound


@pytest.mark.parametrize("d", [2, 3])
def test_a_rotation_matrix_is_the_exponential_of_its_vector(d):
    vector = torch.randn(5, 3 if d == 3 else 1, generator=generator(), dtype=torch.float64)
    rotations = rotation_matrix(vector)
    for rotation, turn in zip(rotations, vector, strict=True):
        if d == 3:
            x, y, z = turn.tolist()
            cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
        else:
            cross = torch.tensor([[0, -turn.item()], [turn.item(), 0]], dtype=torch.float64)
        torch.testing.assert_close(rotation, torch.linalg.matrix_exp(cross))
    quarter = torch.zeros(1, 3 if d == 3 else 1)
    quarter[0, -1] = torch.pi / 2
    torch.testing.assert_close(rotation_matrix(quarter)[0, :2, :2], torch.tensor([[0.0, -1.0], [1.0, 0.0]]))


@pytest.mark.parametrize("d", [2, 3])
def test_a_rotation_by_nothing_is_the_identity_and_has_a_gradient(d):
    zero = torch.zeros(1, 3 if d == 3 else 1, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(rotation_matrix(zero)[0], torch.eye(d, dtype=torch.float64))
    (slope,) = torch.autograd.grad(rotation_matrix(zero)[0, 1, 0], zero)
    assert float(slope[0, -1]) == pytest.approx(1)
