"""Symmetric log-domain demons: the bound and direction of the force, the composition, the symmetry."""

import pytest
import torch
from inference.cases import both

from custom_components.data.phantoms import phantom_pair, random_velocity
from custom_components.deformations.velocity import Displacement, StationaryVelocity
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import compose, integrate_velocity, jacobian_determinant, warp
from custom_components.inference.classical import by_intensities
from custom_components.inference.demons import bracket, force
from custom_components.losses.multistep import swapped


def blob(size, centre, width=4.0):
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in size], indexing="ij")
    return torch.exp(-sum((x - c) ** 2 for x, c in zip(axes, centre, strict=True)) / (2 * width**2))[None, None]


def found(pair, **options):
    deformation = StationaryVelocity()
    options = {"levels": [2, 1], "iterations": 15, **options}
    velocity = by_intensities(deformation, "demons", **options)(pair["moving"], pair["fixed"])
    return velocity, deformation(velocity, pair["fixed"].shape[2:], inverse=True)


@both
def test_no_move_is_longer_than_half_the_bound(size):
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(1, 2, *size, generator=generator) for _ in range(2)]
    length = force(*images, 2.0).norm(dim=1)
    assert length.max() <= 1 + 1e-6
    assert length.max() > 0.8


def test_the_force_of_a_ramp_is_its_closed_form():
    x = torch.arange(32, dtype=torch.float64)[:, None].expand(32, 8)[None, None]
    slope, difference, longest = 0.05, 0.02, 2.0
    move = force(slope * x, slope * x + difference, longest)
    expected = difference * slope / (slope**2 + difference**2 / longest**2)
    torch.testing.assert_close(move[0, 0], torch.full((32, 8), expected, dtype=torch.float64))
    assert not move[0, 1].any()


def test_flat_images_do_not_move():
    assert not force(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8), 2.0).any()


@both
def test_a_blob_three_voxels_on_in_the_moving_image_is_found_there(size):
    middle = [n // 2 for n in size]
    fixed, moving = blob(size, middle), blob(size, [middle[0] + 3, *middle[1:]])
    _, fields = found({"moving": moving, "fixed": fixed}, iterations=30)
    here = fields["ddf"][(0, slice(None), *middle)]
    assert float(here[0]) == pytest.approx(3, abs=0.5)
    assert here[1:].abs().max() < 0.3


@both
def test_the_bracket_makes_the_composition_more_exact(size):
    def linear(matrix):
        axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size]
        x = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        return torch.einsum("ij,j...->i...", matrix, x)[None]

    d = len(size)
    generator = torch.Generator().manual_seed(2)
    a, b = (0.15 * torch.randn(d, d, generator=generator, dtype=torch.float64) for _ in range(2))
    exact = torch.matrix_exp(a) @ torch.matrix_exp(b)
    v, w = linear(a), linear(b)
    torch.testing.assert_close(bracket(v, w), linear(a @ b - b @ a), atol=1e-10, rtol=0)
    errors = [(torch.matrix_exp(a + b + sign * (a @ b - b @ a) / 2) - exact).abs().max() for sign in (0.5, 0, -0.5)]
    assert errors[0] < errors[1] < errors[2]


def test_a_step_composes_the_velocity_with_the_move():
    generator = torch.Generator().manual_seed(1)
    v, w = (random_velocity((48, 48), generator=generator) for _ in range(2))
    expected = compose(integrate_velocity(v), integrate_velocity(w))
    inside = (..., slice(8, -8), slice(8, -8))
    errors = [
        (integrate_velocity(v + w + factor * bracket(v, w)) - expected)[inside].norm(dim=1).mean()
        for factor in (0.5, 0.0, -0.5)
    ]
    assert errors[0] < 0.5 * errors[1] < 0.5 * errors[2]


@both
def test_exchanging_the_images_turns_the_velocity_round(size):
    pair = phantom_pair(size, seed=1)
    masks = {key: torch.ones(1, 1, *size) for key in ("mask_moving", "mask_fixed")}
    masks["mask_moving"][:, :, :9], masks["mask_fixed"][..., 12:16] = 0, 0
    optimizer = by_intensities(StationaryVelocity(), "demons", levels=[2, 1], iterations=8)
    there = optimizer(pair["moving"], pair["fixed"], masks=masks)
    back = optimizer(pair["fixed"], pair["moving"], masks=swapped(masks))
    assert there.abs().max() > 0.05
    assert (there + back).abs().max() < 1e-6


@both
def test_a_phantom_is_aligned_without_folds(size):
    pair = phantom_pair([2 * n for n in size], seed=1)
    _, fields = found(pair, levels=[4, 2, 1], iterations=20)
    before = float(mean_dice(pair["label_moving"], pair["label_fixed"]).mean())
    after = float(mean_dice(warp(pair["label_moving"], fields["ddf"], mode="nearest"), pair["label_fixed"]).mean())
    assert after > before + 0.3 * (1 - before)
    assert jacobian_determinant(fields["ddf"]).min() > 0
    inside = (..., *[slice(4, -4)] * len(size))
    assert compose(fields["ddf"], fields["inverse_ddf"])[inside].norm(dim=1).mean() < 0.05


def test_an_image_registered_to_itself_stays():
    image = phantom_pair((48, 40), seed=1)["fixed"]
    velocity, _ = found({"moving": image, "fixed": image})
    assert velocity.abs().max() < 1e-6


def test_lengths_count_in_the_shortest_edge_of_a_voxel():
    """An image of voxels three times as long moves a third of the voxels along that axis."""
    fine = {key: blob((61, 61), centre, 9.0) for key, centre in (("fixed", (30, 30)), ("moving", (36, 30)))}
    coarse = {key: value[:, :, ::3] for key, value in fine.items()}
    ddfs = [
        found(pair, iterations=30, levels=[1], spacing=spacing)[1]["ddf"]
        for pair, spacing in ((fine, 1.0), (coarse, (3.0, 1.0)))
    ]
    assert float(ddfs[1][0, 0, 10, 30]) == pytest.approx(float(ddfs[0][0, 0, 30, 30]) / 3, rel=0.2)


def test_masks_leave_out_what_they_leave_out():
    pair = phantom_pair((48, 40), seed=1)
    nothing = {key: torch.zeros(1, 1, 48, 40) for key in ("mask_moving", "mask_fixed")}
    velocity = by_intensities(StationaryVelocity(), "demons", levels=[1], iterations=3)(
        pair["moving"], pair["fixed"], masks=nothing
    )
    assert not velocity.any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "syn"}, "expected method demons or flow"),
        ({"similarity": "ngf"}, "follows the difference of intensities"),
        ({"smoothness": -1.0}, "smoothness"),
    ],
    ids=["method", "similarity", "smoothness"],
)
def test_other_words_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        by_intensities(StationaryVelocity(), **{"method": "demons", **options})


@pytest.mark.parametrize("method", ["demons", "flow"])
def test_a_place_that_only_one_image_shows_can_be_left_out(method):
    pair = phantom_pair((64, 56), seed=1)
    deformation = StationaryVelocity() if method == "demons" else Displacement()
    optimizer = by_intensities(deformation, method, levels=[2, 1], iterations=6, robust=True)
    found = deformation(optimizer(pair["moving"], pair["fixed"]), (64, 56))["ddf"]
    before, after = (float((warp(pair["moving"], u) - pair["fixed"]).square().mean()) for u in (0 * found, found))
    assert after < 0.8 * before
