"""Random warps and affine maps."""

import math

import pytest
import torch
from synthesis.cases import AFFINE, QUIET, STILL, both, contrast_of, labels_of, seeded

from custom_components.fields import identity_grid, jacobian_determinant, warp
from custom_components.synthesis.warp import RandomWarp, random_affine


@both
def test_label_map_and_image_move_together(size):
    """With a background of 0, as what comes from outside is, an image of the moved map is the moved image."""
    labels, mover = labels_of(size), RandomWarp(1.0, (8, 16), **AFFINE)
    contrast = contrast_of(5, **{**QUIET, "zero_background": 1.0})
    motion, colours = mover.draw(2, size, seeded()), contrast.draw(2, size, seeded())
    moved = mover(labels, motion)
    assert not torch.equal(moved, labels)
    expected = warp(contrast(labels, colours), mover.field(motion, size), mode="nearest")
    assert torch.equal(contrast(moved, colours), expected)


@both
@pytest.mark.parametrize(
    ("settings", "folded"),
    [({}, 0), (AFFINE, 0), ({"std": 1.0, "scales": (16, 32)}, 0), ({"std": 3.0, "scales": (8, 16, 32)}, 2e-3)],
    ids=["brains", "affine", "slices", "shapes"],
)
def test_warps_hardly_fold(size, settings, folded):
    mover = RandomWarp(**settings)
    field = mover.field(mover.draw(6, size, seeded()), size)
    assert field.shape == (6, len(size), *size)
    assert field.abs().max() > 0.3
    assert (jacobian_determinant(field) <= 0).float().mean() <= folded


@both
def test_warp_without_ranges_is_identity(size):
    draw = STILL.draw(2, size, seeded())
    assert draw["velocity"].shape == (2, len(size), *[math.ceil(n / 2) for n in size])
    assert not STILL.field(draw, size).any()
    assert torch.equal(STILL(labels_of(size), draw), labels_of(size))


@both
def test_deviation_of_the_velocity_lies_between_0_and_std(size):
    """A standard deviation from U(0, std) has a mean square of std^2 / 3, for each scale."""
    velocity = RandomWarp(3.0, (8, 16)).draw(300, size, seeded())["velocity"]
    corners = velocity.flatten(2)[:, :, 0]
    assert float(corners.square().mean()) == pytest.approx(2 * 3.0, rel=0.2)


def test_scales_of_the_velocity_are_voxels_of_the_full_grid():
    """65 voxels and a scale of 16: four linear pieces, on the grid of 33 voxels bent at 8, 16 and 24."""
    velocity = RandomWarp(1.0, (16,)).draw(1, (65, 65), seeded())["velocity"]
    bends = velocity.diff(n=2, dim=2).abs().amax((0, 1, 3)) > 1e-4
    assert (bends.nonzero().flatten() + 1).tolist() == [8, 16, 24]


@both
def test_map_is_the_affine_one_after_the_warp(size):
    """x -> A(x + u), with u a constant velocity's displacement on the full grid."""
    d, half = len(size), [math.ceil(n / 2) for n in size]
    matrix = random_affine(2, size, seeded(), **AFFINE)
    velocity = torch.tensor([0.5, -1.0, 0.25][:d]).view(1, d, *[1] * d).expand(2, d, *half)
    scale = torch.tensor([(n - 1) / (h - 1) for n, h in zip(size, half, strict=True)])
    x = identity_grid(size).flatten(1)
    moved = x + (velocity[0].flatten(1)[:, 0] * scale).unsqueeze(1)
    expected = matrix[:, :d, :d] @ moved + matrix[:, :d, d:]
    field = RandomWarp().field({"velocity": velocity, "matrix": matrix}, size)
    torch.testing.assert_close(field.flatten(2) + x, expected, rtol=0, atol=1e-4)


@both
def test_outside_of_the_map_comes_as_0(size):
    labels = labels_of(size) + 1
    draw = STILL.draw(2, size, seeded())
    draw["matrix"][:, 0, -1] = 2
    moved = STILL(labels, draw)
    assert torch.equal(moved[:, :, :-2], labels[:, :, 2:])
    assert not moved[:, :, -2:].any()


@both
def test_affine_of_zero_ranges_is_identity(size):
    assert torch.equal(random_affine(2, size, seeded()), torch.eye(len(size) + 1).repeat(2, 1, 1))


@both
def test_rotation_keeps_lengths_and_the_centre(size):
    d = len(size)
    matrix = random_affine(50, size, seeded(), rotation_degrees=20)
    linear = matrix[:, :d, :d]
    torch.testing.assert_close(linear @ linear.mT, torch.eye(d).repeat(50, 1, 1))
    torch.testing.assert_close(torch.linalg.det(linear), torch.ones(50))
    centre = torch.tensor([*[(n - 1) / 2 for n in size], 1.0])
    torch.testing.assert_close(matrix @ centre, centre.expand(50, -1))
    if d == 2:
        degrees = torch.rad2deg(torch.atan2(linear[:, 1, 0], linear[:, 0, 0]))
        assert -20 <= degrees.min() < -15
        assert 15 < degrees.max() <= 20


@both
def test_scaling_shear_and_shift_stay_in_their_ranges(size):
    d = len(size)
    scaled = random_affine(50, size, seeded(), scaling=0.2)[:, :d, :d]
    factors = scaled.diagonal(dim1=1, dim2=2)
    assert 0.8 <= factors.min() < 0.85
    assert 1.15 < factors.max() <= 1.2
    assert torch.equal(scaled, torch.diag_embed(factors))
    sheared = random_affine(50, size, seeded(), shear=0.1)[:, :d, :d]
    torch.testing.assert_close(torch.linalg.det(sheared), torch.ones(50))
    assert 0.05 < (sheared - torch.eye(d)).abs().max() <= 0.1
    shifted = random_affine(50, size, seeded(), shift=3)
    assert torch.equal(shifted[:, :d, :d], torch.eye(d).repeat(50, 1, 1))
    assert 2.5 < shifted[:, :d, d].abs().max() <= 3
    determinants = torch.linalg.det(random_affine(50, size, seeded(), rotation_degrees=9, scaling=0.2, shear=0.1))
    assert 0.8**d <= determinants.min() < determinants.max() <= 1.2**d
