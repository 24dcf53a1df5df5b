"""Rigid search: a known pose is found again by either search, poses are what they say, and passes are independent."""

import math

import numpy as np
import pytest
import torch

from custom_components.fields import sample
from custom_components.inference.rigid_search import Poses, RigidSearch
from custom_components.losses.similarity import MSE
from custom_components.space.affine_levels import Scan
from custom_components.space.grids import fixed_size_grid


def blobs(points, d):
    """A smooth image that no rotation maps to itself, at world points (D, ...)."""
    centers = torch.tensor([[12.0, 0, 5], [-10, 9, -4], [0, -14, 2], [4, 6, 12]])[:, :d]
    widths = (6.0, 4.0, 5.0, 3.0)
    shape = (d, *[1] * (points.ndim - 1))
    return sum(
        torch.exp(-(points - c.view(shape)).square().sum(0) / (2 * w * w)) for c, w in zip(centers, widths, strict=True)
    )


def scan(d, matrix=None, size=28, spacing=2.0):
    """The image whose content lies at `matrix` of where it was."""
    grid = fixed_size_grid(spacing, (size,) * d)
    voxels = torch.stack(torch.meshgrid(*[torch.arange(size).float()] * d, indexing="ij"))
    world = torch.from_numpy(grid.affine).float()
    back = torch.eye(d + 1) if matrix is None else torch.from_numpy(np.linalg.inv(matrix)).float()
    whole = back @ world
    points = torch.einsum("ij,j...->i...", whole[:d, :d], voxels) + whole[:d, d].view(-1, *[1] * d)
    image = blobs(points, d)[None]
    return Scan(image, torch.ones_like(image), grid)


def pose(d, degrees=12.0, shift=(4.0, -3.0, 2.0)):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = np.eye(d + 1)
    matrix[:2, :2] = [[c, -s], [s, c]]
    matrix[:d, d] = shift[:d]
    return matrix


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("search", ["gradient", "evolution"])
def test_a_known_pose_is_found_again(search, d):
    truth = pose(d)
    find = RigidSearch(MSE(), search=search, generations=6, starts=4, reach_mm=10, passes=2)
    found = find(scan(d), scan(d, truth))
    np.testing.assert_allclose(found, truth, atol=0.15)
    np.testing.assert_allclose(found[:d, :d], truth[:d, :d], atol=0.01)


def test_a_start_is_what_is_searched_about():
    truth = pose(3, 60.0, (6.0, -5.0, 3.0))
    start = pose(3, 56.0, (4.0, -4.0, 4.0))
    find = RigidSearch(MSE(), starts=1, passes=1, levels=(1,))
    found = find(scan(3), scan(3, truth), start)
    assert np.abs(find(scan(3), scan(3, truth)) - truth).max() > 3
    np.testing.assert_allclose(found, truth, atol=0.3)


@pytest.mark.parametrize("d", [2, 3])
def test_a_pose_is_a_turn_about_the_object_and_a_shift(d):
    fixed = scan(d)
    poses = Poses(MSE(), fixed, fixed, np.eye(d + 1), passes=1)
    numbers = torch.zeros(1, poses.turns + d)
    numbers[0, poses.turns - 1] = poses.radius * math.radians(10)
    numbers[0, poses.turns :] = torch.tensor([1.0, 2.0, 3.0][:d])
    matrix = poses.matrices(numbers)[0]
    expected = pose(d, 10.0, (0.0, 0.0, 0.0))
    np.testing.assert_allclose(matrix[:d, :d], expected[:d, :d], atol=1e-6)
    middle = torch.cat([poses.center, torch.ones(1).double()])
    np.testing.assert_allclose((matrix @ middle)[:d] - poses.center, [1.0, 2.0, 3.0][:d], atol=1e-6)


def test_the_warped_image_is_the_moving_one_under_the_map():
    truth = pose(3)
    poses = Poses(MSE(), scan(3), scan(3, truth), truth, passes=3)
    for number, fixed in enumerate(poses.fixed):
        warped = poses.warped(torch.zeros(2, 6), number)
        assert warped.shape == (2, 1, 28, 28, 28)
        assert float((warped - fixed).abs().mean()) < 2e-3
    assert torch.allclose(sample(scan(3).image[None], poses.voxels[1][None], padding="border"), poses.fixed[1])


def test_the_average_of_independent_passes_is_less_noisy():
    """By the root of their number: noise that a pass adds is averaged."""

    class Noisy(torch.nn.Module):
        def forward(self, warped, fixed, mask=None):
            return torch.randn(())

    torch.manual_seed(0)
    deviations = []
    for passes in (1, 9):
        poses = Poses(Noisy(), scan(2), scan(2), np.eye(3), passes=passes)
        deviations.append(float(poses.values(torch.zeros(400, 3)).std()))
    assert deviations[0] / deviations[1] == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search": "grid"}, "expected a search of gradient, evolution, got 'grid'"),
        ({"starts": 0}, "starts"),
        ({"reach_mm": -1.0}, "reach_mm"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RigidSearch(MSE(), **settings)
