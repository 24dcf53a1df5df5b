"""The networks of DLIR: they begin at the identity, fit their grids, and cannot make what has no inverse."""

import math

import pytest
import torch

from custom_components.deformations.bspline import BSplineDeformation, control_size
from custom_components.fields import jacobian_determinant
from custom_components.methods.dlir.networks import AffineConvNet, ControlPointNet, StageNetworks, affine_matrix

SIZES = [(33, 28), (24, 22, 20)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])


def pair(size, seed=0):
    return torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(seed))


def stirred(network):
    """With random last layers."""
    for name, weight in network.named_parameters():
        if name.startswith(("parts", "points")):
            torch.nn.init.normal_(weight, std=0.5)
    return network.eval()


@both
def test_training_begins_at_the_identity(size):
    d = len(size)
    assert torch.equal(AffineConvNet(d)(pair(size))[0], torch.eye(d, d + 1))
    assert not ControlPointNet(d)(pair(size)).any()


@both
@pytest.mark.parametrize("spacing", [2, 4, 8, 16])
def test_there_are_as_many_control_points_as_the_spline_needs(size, spacing):
    for grid in (size, [spacing * n + 1 for n in (4, 3, 2)[: len(size)]], [1 + n for n in size]):
        points = ControlPointNet(len(size), spacing, features=4)(pair(grid))
        assert list(points.shape) == [1, len(size), *control_size(grid, spacing)]


@both
def test_control_points_below_the_bound_of_folds_never_fold(size):
    d = len(size)
    torch.manual_seed(0)
    network = stirred(ControlPointNet(d, 4, features=8, limit=1 / (1.5 * d)))
    points = network(20 * pair(size))
    assert points.abs().max() > 0.5 * network.limit
    assert jacobian_determinant(BSplineDeformation(4)(points, size)["ddf"]).min() > 0


def test_a_control_point_sees_what_lies_about_it():
    """A change of the image far away does not reach it, one beside it does."""
    torch.manual_seed(0)
    network = stirred(ControlPointNet(2, 4, features=8))
    image = pair((64, 64))
    before = network(image)
    image[:, :, 40:42, 20:22] += 1
    moved = (network(image) - before).abs().sum(1)[0]
    row, column = divmod(int(moved.argmax()), moved.shape[1])
    assert (abs((row - 1) * 4 - 40.5), abs((column - 1) * 4 - 20.5)) < (8, 8)
    assert moved[:3].max() == 0


@both
def test_the_affine_network_takes_images_of_unequal_size(size):
    d = len(size)
    torch.manual_seed(0)
    network = stirred(AffineConvNet(d))
    moving, fixed = pair(size)[:, :1], pair([n + 7 for n in size])[:, :1]
    assert network.apart(moving, fixed).shape == (1, d, d + 1)


@pytest.mark.parametrize("d", [2, 3])
def test_numbers_make_a_rotation_a_scaling_a_shear_and_a_shift(d):
    numbers = torch.zeros(1, d * (d + 1), dtype=torch.float64)
    numbers[0, 0] = 0.25
    numbers[0, d] = 0.5
    found = affine_matrix(numbers, d)[0]
    angle = math.pi / 4
    turned = torch.eye(d, dtype=torch.float64)
    a, b = (0, 1) if d == 2 else (1, 2)
    turned[a, a] = turned[b, b] = math.cos(angle)
    turned[a, b], turned[b, a] = -math.sin(angle), math.sin(angle)
    torch.testing.assert_close(found[:, :d], turned)
    assert found[:, d].tolist() == [0.25, *[0] * (d - 1)]
    numbers = torch.zeros(1, d * (d + 1), dtype=torch.float64)
    turns = d * (d - 1) // 2
    numbers[0, d + turns], numbers[0, 2 * d + turns] = 1, 0.3
    linear = affine_matrix(numbers, d)[0, :, :d]
    assert linear[0, 0] == 2
    off = (linear - torch.diag(torch.diag(linear))).abs()
    assert off.sum() == pytest.approx(0.3 * (2 if d == 2 else 1))


@pytest.mark.parametrize("d", [2, 3])
def test_every_answer_has_an_inverse(d):
    numbers = torch.randn(500, d * (d + 1), generator=torch.Generator().manual_seed(0)).mul(5).tanh()
    matrix = affine_matrix(numbers, d)
    determinant = torch.linalg.det(matrix[:, :, :d])
    assert determinant.min() >= 0.99 * 0.5**d
    assert determinant.max() <= 1.01 * 2**d


def test_a_stage_answers_for_itself_and_the_last_one_without_a_number():
    torch.manual_seed(0)
    network = StageNetworks(2, (8, 4), features=4).eval()
    for spline in network.splines:
        stirred(spline)
    image = pair((33, 28))
    assert torch.equal(network(image), network(image, 2))
    assert network(image, 0).shape == (1, 2, 3)
    assert list(network(image, 1).shape[2:]) == control_size((33, 28), 8)
    with pytest.raises(ValueError, match="stage from 0 to 2"):
        network(image, 3)


@pytest.mark.parametrize("spacing", [0, 1, 3, 6, 64])
def test_a_spacing_is_a_power_of_two(spacing):
    with pytest.raises(ValueError, match="2, 4, 8, 16 or 32"):
        ControlPointNet(2, spacing)


def test_only_the_stage_that_learns_has_gradients():
    network = StageNetworks(2, (8, 4), features=4, learns=1)
    learns = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert learns
    assert all(name.startswith("splines.0") for name in learns)
