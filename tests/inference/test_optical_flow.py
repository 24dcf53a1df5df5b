"""Optical flow of the Horn-Schunck type: closed forms, the aperture, direction."""

import pytest
import torch
from inference.cases import both
from inference.test_demons import blob

from custom_components.data.phantoms import phantom_pair
from custom_components.deformations.velocity import Displacement
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import warp
from custom_components.inference.classical import by_intensities
from custom_components.inference.optical_flow import HornSchunck, neighbours


def ramp(size, slope):
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in size], indexing="ij")
    return sum(s * x for s, x in zip(slope, axes, strict=True))[None, None]


def zero(size):
    return torch.zeros(1, len(size), *size, dtype=torch.float64)


@both
def test_the_first_iteration_is_the_closed_form(size):
    slope = [0.04, 0.03, 0.02][: len(size)]
    image, alpha, difference = ramp(size, slope), 0.1, 0.01
    found = HornSchunck(alpha, iterations=1).increment(image + difference, image, zero(size))
    for i, g in enumerate(slope):
        expected = -g * difference / (alpha**2 + sum(s**2 for s in slope))
        torch.testing.assert_close(found[:, i], torch.full_like(found[:, i], expected))


@both
@pytest.mark.parametrize("alpha", [0.05, 0.3])
def test_a_constant_slope_converges_to_the_normal_flow_whatever_alpha(size, alpha):
    """Along the edge nothing is seen, so that nothing moves: the aperture."""
    slope = torch.tensor([0.04, 0.03, 0.02][: len(size)], dtype=torch.float64)
    image, difference = ramp(size, slope.tolist()), 0.01
    found = HornSchunck(alpha, iterations=3000).increment(image + difference, image, zero(size))
    expected = -slope * difference / slope.square().sum()
    torch.testing.assert_close(found[0].flatten(1).mean(1), expected, rtol=1e-6, atol=1e-9)


def test_several_channels_see_what_one_cannot():
    x, y = ramp((24, 20), (0.05, 0)), ramp((24, 20), (0, 0.03))
    fixed = torch.cat([x, y], 1)
    moving = fixed + torch.tensor([0.05, -0.06], dtype=torch.float64).view(1, 2, 1, 1)
    found = HornSchunck(0.1, iterations=2000).increment(moving, fixed, zero((24, 20)))
    expected = torch.tensor([-1.0, 2.0], dtype=torch.float64).view(1, 2, 1, 1).expand_as(found)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_neighbours_weights_are_those_of_the_source_in_the_plane():
    one = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    one[0, 0, 2, 2] = 1
    expected = torch.tensor([[1, 2, 1], [2, 0, 2], [1, 2, 1]], dtype=torch.float64) / 12
    torch.testing.assert_close(neighbours(one, [0.25, 0.25])[0, 0, 1:4, 1:4], expected)


@both
def test_the_mean_of_a_constant_is_the_constant(size):
    field = torch.full((1, len(size), *size), 3.0)
    torch.testing.assert_close(neighbours(field, [0.25] * (len(size) - 1) + [0.05]), field)


@both
def test_a_blob_three_voxels_on_in_the_moving_image_is_found_there(size):
    middle = [n // 2 for n in size]
    fixed, moving = blob(size, middle), blob(size, [middle[0] + 3, *middle[1:]])
    ddf = by_intensities(Displacement(), "flow", strength=0.05, levels=[2, 1], iterations=15)(moving, fixed)
    here = ddf[(0, slice(None), *middle)]
    assert float(here[0]) == pytest.approx(3, abs=0.3)
    assert here[1:].abs().max() < 0.2


@both
def test_a_phantom_is_aligned(size):
    pair = phantom_pair([2 * n for n in size], seed=1)
    ddf = by_intensities(Displacement(), "flow", strength=0.1, iterations=10)(pair["moving"], pair["fixed"])
    before = float(mean_dice(pair["label_moving"], pair["label_fixed"]).mean())
    after = float(mean_dice(warp(pair["label_moving"], ddf, mode="nearest"), pair["label_fixed"]).mean())
    assert after > before + 0.3 * (1 - before)


def test_smoothness_makes_smoother_fields():
    pair = phantom_pair((64, 56), seed=3)
    rough = [
        by_intensities(Displacement(), "flow", smoothness=s, iterations=8)(pair["moving"], pair["fixed"])
        .diff(dim=2)
        .std()
        for s in (0.25, 1.0, 4.0)
    ]
    assert rough[0] > rough[1] > rough[2]


def test_lengths_count_in_the_shortest_edge_of_a_voxel():
    fine = {key: blob((61, 61), centre, 9.0) for key, centre in (("fixed", (30, 30)), ("moving", (36, 30)))}
    coarse = {key: value[:, :, ::3] for key, value in fine.items()}
    ddfs = [
        by_intensities(Displacement(), "flow", strength=0.03, levels=[1], iterations=30, spacing=spacing)(
            pair["moving"], pair["fixed"]
        )
        for pair, spacing in ((fine, 1.0), (coarse, (3.0, 1.0)))
    ]
    assert float(ddfs[1][0, 0, 10, 30]) == pytest.approx(float(ddfs[0][0, 0, 30, 30]) / 3, rel=0.2)
