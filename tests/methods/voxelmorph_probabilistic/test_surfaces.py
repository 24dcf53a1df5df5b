"""Surfaces: signed distance maps in mm, points on their zero level, the distance that a field leaves between them."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from custom_components.data.batches import prepare_pair_batch
from custom_components.data.pairs import ScanPairDataset
from custom_components.fields import identity_grid, sample
from custom_components.losses.registration import RegistrationLoss
from custom_components.methods.voxelmorph_probabilistic.objective import (
    ProbabilisticLoss,
    SurfaceDistance,
    draw_surface_points,
)
from custom_components.methods.voxelmorph_probabilistic.surfaces import SignedDistanced, signed_distance_mm

pytest.importorskip("scipy")

SIZES = [(17, 14), (17, 14, 12)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])
FAINT = 1e-5


def box(size, *ranges):
    """A region that is true within (start, stop) along each of the first axes; it spans axes that are not named."""
    region = torch.zeros(size, dtype=torch.bool)
    region[tuple(slice(*r) for r in ranges[: len(size)])] = True
    return region


def distance(size, *ranges, spacing_mm=None):
    return signed_distance_mm(box(size, *ranges), spacing_mm=spacing_mm or [1.0] * len(size))


def slabs(size, axis, shift, spacing_mm):
    """Maps of a slab across one axis and of the same slab shifted along it by whole voxels: moving and fixed."""
    spans = [[(0, n) for n in size] for _ in range(2)]
    spans[0][axis], spans[1][axis] = (3 + shift, 9 + shift), (3, 9)
    return [distance(size, *span, spacing_mm=spacing_mm)[None, None] for span in spans]


def constant_field(size, axis, value):
    ddf = torch.zeros(1, len(size), *size)
    ddf[:, axis] = value
    return ddf


# The maps


@both
def test_zero_level_lies_halfway_between_the_voxels_and_values_grow_by_the_spacing(size):
    for axis in range(len(size)):
        half_space = [(0, n) for n in size]
        half_space[axis] = (0, 5)
        values = distance(size, *half_space, spacing_mm=[1.5] * len(size)).movedim(axis, 0)
        expected = 1.5 * (torch.arange(size[axis]) - 4.5)
        torch.testing.assert_close(values, expected.view(-1, *[1] * (len(size) - 1)).expand_as(values))


@both
def test_box_is_negative_inside_and_only_there(size):
    region = box(size, (4, 11), (3, 9), (2, 8))
    values = signed_distance_mm(region, spacing_mm=[0.8, 1.1, 3.0][: len(size)])
    assert values.dtype == torch.float32
    assert torch.equal(values < 0, region)


@both
def test_distances_are_millimetres_on_anisotropic_voxels(size):
    """Each voxel further along an axis is its spacing further off, on both sides; the zero level stays halfway."""
    spacing = [1.0, 2.5, 3.0][: len(size)]
    for axis in range(len(size)):
        half_space = [(0, n) for n in size]
        half_space[axis] = (0, 5)
        values = distance(size, *half_space, spacing_mm=spacing).movedim(axis, 0)
        torch.testing.assert_close(values[4], -values[5])
        for side in (values[:5], values[5:]):
            torch.testing.assert_close(side.diff(dim=0), torch.full_like(side[1:], spacing[axis]))


@both
@pytest.mark.parametrize("spacing", [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [1.0, 1.3, 1.6]])
def test_ball_has_its_analytic_distance_to_within_a_voxel(size, spacing):
    size, spacing = [n + 8 for n in size], torch.tensor(spacing[: len(size)])
    shape = (-1, *[1] * len(size))
    centre = torch.tensor([(n - 1) / 2 + 0.3 for n in size])
    radius = 6.4 * float(spacing.min())
    length = ((identity_grid(size) - centre.view(shape)) * spacing.view(shape)).norm(dim=0)
    values = signed_distance_mm(length < radius, spacing_mm=spacing.tolist())
    # In the centre it is a matter of rounding which part of the surface is the nearest.
    error = (values - (length - radius))[length > 2 * spacing.max()]
    assert error.abs().max() < spacing.max()
    assert error.abs().mean() < 0.5 * spacing.max()


@both
def test_empty_and_full_regions_are_far_from_any_surface(size):
    nothing, everything = torch.zeros(size, dtype=torch.bool), torch.ones(size, dtype=torch.bool)
    empty, full = (signed_distance_mm(region, spacing_mm=[1.0] * len(size)) for region in (nothing, everything))
    assert empty.unique().numel() == full.unique().numel() == 1
    assert empty.min() >= math.dist([0] * len(size), [n - 1 for n in size])
    assert torch.equal(full, -empty)


# The points


@both
def test_points_lie_on_the_zero_level_of_their_label(size):
    generator = torch.Generator().manual_seed(0)
    regions = [box(size, (4, 11), (3, 9), (2, 8)), torch.rand(size, generator=generator) < 0.4]
    maps = torch.stack([signed_distance_mm(r, spacing_mm=[1.0, 1.5, 2.5][: len(size)]) for r in regions])
    points, labels = draw_surface_points(maps, 400, generator)
    assert points.shape == (400, len(size))
    assert set(labels.tolist()) == {0, 1}
    locations = points.T.view(1, len(size), -1, *[1] * (len(size) - 1))
    values = sample(maps[None], locations)[0].flatten(1).gather(0, labels[None])
    assert values.abs().max() < FAINT


@both
def test_points_may_lie_on_voxel_centres(size):
    """A map whose zero level runs through voxels, with the zero on either side of the crossing."""
    for sign in (-1, 1):
        maps = sign * (torch.arange(size[0], dtype=torch.float32) - 6).view(1, -1, *[1] * (len(size) - 1))
        points, _ = draw_surface_points(maps.expand(1, *size), 50)
        assert points.shape == (50, len(size))
        assert points.isfinite().all()
        assert (points[:, 0] == 6).all()


def test_labels_are_drawn_in_proportion_to_their_crossings():
    size = (20, 16)
    # 20 crossings, and 2 * (2 + 3).
    maps = torch.stack([distance(size, (0, 20), (5, 16)), distance(size, (2, 4), (3, 6))])
    _, labels = draw_surface_points(maps, 20000, torch.Generator().manual_seed(0))
    assert labels.double().mean() == pytest.approx(10 / 30, abs=0.015)


@both
def test_every_crossing_of_a_box_can_be_drawn(size):
    points, _ = draw_surface_points(distance(size, (4, 7), (3, 5), (2, 4))[None], 5000)
    sides = [3, 2, 2][: len(size)]
    assert len(points.unique(dim=0)) == sum(2 * math.prod(sides) // side for side in sides)


@both
def test_maps_without_a_surface_have_no_points(size):
    for maps in (torch.ones(2, *size), -torch.ones(2, *size), torch.ones(0, *size)):
        points, labels = draw_surface_points(maps, 10)
        assert (points.shape, labels.shape) == ((0, len(size)), (0,))


@both
def test_a_generator_repeats_the_points(size):
    maps = distance(size, (4, 11), (3, 9), (2, 8))[None]
    first, again, other = (draw_surface_points(maps, 30, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# The loss


@both
def test_equal_surfaces_and_no_motion_cost_nothing(size):
    maps = torch.stack([distance(size, (4, 11), (3, 9), (2, 8)), distance(size, (5, 15), (6, 8), (3, 9))])[None]
    assert float(SurfaceDistance(num_points=300)(torch.zeros(1, len(size), *size), maps, maps)) < FAINT


@both
@pytest.mark.parametrize(("shift", "sigma"), [(1, 1.0), (2, 0.5), (-2, 2.0)])
def test_flat_surfaces_cost_half_their_squared_distance_over_the_variance(size, shift, sigma):
    spacing = [1.5] * len(size)
    for axis in range(len(size)):
        moving, fixed = slabs(size, axis, shift, spacing)
        loss = SurfaceDistance(sigma_mm=sigma, num_points=100)(torch.zeros(1, len(size), *size), moving, fixed)
        assert float(loss) == pytest.approx(0.5 * (shift * 1.5 / sigma) ** 2, rel=1e-4)


@both
def test_distance_is_in_millimetres_along_a_fine_axis_of_coarse_voxels(size):
    moving, fixed = slabs(size, 0, 2, [0.7, 2.0, 3.0][: len(size)])
    loss = SurfaceDistance(num_points=100)(torch.zeros(1, len(size), *size), moving, fixed)
    assert float(loss) == pytest.approx(0.5 * (2 * 0.7) ** 2, rel=1e-4)


@both
def test_field_from_fixed_to_moving_brings_the_surfaces_together(size):
    """The moving slab lies at larger indices, where a positive displacement looks."""
    for axis in range(len(size)):
        maps = slabs(size, axis, 2, [1.0, 2.0, 3.0][: len(size)])
        right, wrong = (SurfaceDistance(num_points=100)(constant_field(size, axis, k), *maps) for k in (2.0, -2.0))
        assert float(right) < FAINT < float(wrong)


@both
def test_descending_the_gradient_aligns_the_surfaces(size):
    maps = [distance(size, (6, 13), (2, 8), (3, 9)), distance(size, (4, 11), (3, 9), (2, 8))]
    shift = torch.zeros(1, len(size), *[1] * len(size), requires_grad=True)
    loss_of, losses = SurfaceDistance(num_points=500), []
    for _ in range(30):
        loss = loss_of(shift.expand(1, -1, *size), *(m[None, None] for m in maps))
        (gradient,) = torch.autograd.grad(loss, shift)
        shift = (shift - 0.5 * gradient).detach().requires_grad_()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.05 * losses[0]
    expected = torch.tensor([2.0, -1.0, 1.0][: len(size)])
    torch.testing.assert_close(shift.detach().flatten(), expected, atol=0.3, rtol=0)


@both
@pytest.mark.parametrize("lacking", ["moving", "fixed", "both"])
def test_labels_that_one_image_lacks_do_not_count(size, lacking):
    moving, fixed = slabs(size, 0, 2, [1.0] * len(size))
    nowhere = distance(size, (0, 0))[None, None]
    extra = distance(size, (5, 9))[None, None]
    moving = torch.cat([extra if lacking == "fixed" else nowhere, moving], 1)
    fixed = torch.cat([extra if lacking == "moving" else nowhere, fixed], 1)
    loss = SurfaceDistance(num_points=100)(torch.zeros(1, len(size), *size), moving, fixed)
    assert float(loss) == pytest.approx(2, rel=1e-4)


@both
def test_images_without_a_common_label_cost_nothing_and_pull_nowhere(size):
    here, nowhere = distance(size, (5, 9))[None, None], distance(size, (0, 0))[None, None]
    ddf = torch.zeros(1, len(size), *size, requires_grad=True)
    loss = SurfaceDistance(num_points=100)(ddf, torch.cat([here, nowhere], 1), torch.cat([nowhere, here], 1))
    loss.backward()
    assert float(loss.detach()) == 0
    assert (ddf.grad == 0).all()


@both
def test_batch_is_the_mean_of_its_samples(size):
    """Each under its own field; one of the three has no label in common and counts as 0."""
    pairs = [slabs(size, 0, shift, [1.0] * len(size)) for shift in (1, 2)]
    pairs.append([distance(size, (5, 9))[None, None], distance(size, (0, 0))[None, None]])
    moving, fixed = (torch.cat(maps) for maps in zip(*pairs, strict=True))
    ddf = torch.cat([constant_field(size, 0, value) for value in (0.0, 3.0, 0.0)])
    loss = SurfaceDistance(num_points=100)(ddf, moving, fixed)
    assert float(loss) == pytest.approx(0.5 * (1 + 1) / 3, rel=1e-4)


@both
def test_gradient_of_the_field_is_that_of_finite_differences(size):
    size = tuple(n - 4 for n in size)
    moving = distance(size, (4, 9), (3, 7), (2, 6)).double()[None, None]
    fixed = distance(size, (3, 7), (3, 7), (2, 6)).double()[None, None]
    ddf = 0.2 + 0.1 * torch.rand(1, len(size), *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = SurfaceDistance(num_points=20)

    def repeatable(field):
        torch.manual_seed(0)
        return loss(field, moving, fixed)

    assert torch.autograd.gradcheck(repeatable, ddf.requires_grad_(), fast_mode=True)


@both
def test_maps_that_do_not_fit_the_field_or_each_other_are_refused(size):
    loss, ddf, maps = SurfaceDistance(), torch.zeros(1, len(size), *size), torch.ones(1, 2, *size)
    for moving, fixed in ((maps, maps[:, :1]), (maps[..., 1:], maps[..., 1:])):
        with pytest.raises(ValueError, match="expected distance maps"):
            loss(ddf, moving, fixed)


# From scans to the objective


def scan(size, number, spacing=(1.0, 2.0, 3.0)):
    label = 2 * box(size, (3 + number, 9 + number), (4, 10)).int()
    label[:2] = 7
    image = torch.full((1, *size), float(number))
    affine = torch.from_numpy(np.diag([*spacing[: len(size)], 1.0]))
    return {"image": image, "label": label[None], "grid_affine": affine, "subject": f"p{number}"}


def test_no_labels_leave_the_scan_as_it_is():
    assert SignedDistanced(None)({"image": 1}) == {"image": 1}


@both
def test_scan_gets_a_map_of_each_label_in_the_order_given(size):
    data = scan(size, 1)
    result = SignedDistanced([7, 2, 5])(data)
    assert "distance" not in data
    assert result["distance"].shape == (3, *size)
    assert torch.equal(result["distance"] < 0, torch.stack([data["label"][0] == label for label in (7, 2, 5)]))


@both
def test_spacing_of_the_maps_is_that_of_the_grid(size):
    """Also where its axes are oblique."""
    data, spacing = scan(size, 1), [1.0, 2.0, 3.0][: len(size)]
    data["grid_affine"][:2] = torch.tensor([[0.6, 0.8], [-0.8, 0.6]]).double() @ data["grid_affine"][:2]
    expected = signed_distance_mm(data["label"][0] == 2, spacing_mm=spacing)
    torch.testing.assert_close(SignedDistanced([2])(data)["distance"][0], expected)


def test_scan_without_labels_is_refused_by_the_name_of_the_key():
    with pytest.raises(ValueError, match=r"need 'label'.*'grid_affine', 'image'"):
        SignedDistanced([2])({"image": 0, "grid_affine": np.eye(3)})


@both
def test_maps_arrive_in_the_batch_on_the_side_of_their_scan(size):
    dataset = ScanPairDataset([scan(size, i) for i in range(3)], SignedDistanced([2, 7]))
    image, targets, _, _ = prepare_pair_batch(next(iter(DataLoader(dataset, batch_size=3))))
    for side, channel in (("moving", 0), ("fixed", 1)):
        maps = targets[f"distance_{side}"]
        assert (maps.shape, maps.dtype) == ((3, 2, *size), torch.float32)
        for i, number in enumerate(image[:, channel].flatten(1)[:, 0].int().tolist()):
            expected = SignedDistanced([2, 7])(scan(size, number))["distance"]
            torch.testing.assert_close(maps[i], expected)


class NoPenalty(nn.Module):
    def forward(self, field):
        return 0 * field.sum()


def objective(size, bidirectional=True):
    nothing = RegistrationLoss(None, NoPenalty(), 1.0, regularized="ddf")
    return ProbabilisticLoss(nothing, surface=SurfaceDistance(num_points=100), bidirectional=bidirectional)


@both
def test_surface_term_of_both_directions_is_their_mean(size):
    moving, fixed = slabs(size, 0, 2, [1.0] * len(size))
    batch = {"distance_moving": moving, "distance_fixed": fixed}
    pred = {"ddf": constant_field(size, 0, 2.0), "inverse_ddf": constant_field(size, 0, -1.0)}
    loss = objective(size)(pred, batch)
    assert set(pred["terms"]) == {"regularization", "surface"}
    # Forward the slabs meet, backward one voxel is left of two.
    assert float(loss) == pytest.approx(0.5 * (0 + 0.5), rel=1e-4)
    assert float(objective(size, bidirectional=False)(pred, batch)) < FAINT


@pytest.mark.parametrize("missing", ["distance_moving", "distance_fixed"])
def test_surface_term_names_the_map_it_misses(missing):
    size = (12, 10)
    batch = {"distance_moving": torch.ones(1, 1, *size), "distance_fixed": torch.ones(1, 1, *size)}
    del batch[missing]
    ddf = torch.zeros(1, 2, *size)
    with pytest.raises(ValueError, match=f"needs '{missing}'"):
        objective(size)({"ddf": ddf, "inverse_ddf": ddf}, batch)


def test_shift_along_a_coarse_axis_is_measured_in_millimetres():
    maps = []
    for first in (14, 12):
        region = torch.zeros(6, 7, 40, dtype=torch.bool)
        region[..., first : first + 12] = True
        maps.append(signed_distance_mm(region, spacing_mm=(1.0, 1.0, 3.0))[None, None])
    loss = SurfaceDistance()(torch.zeros(1, 3, 6, 7, 40), *maps)
    assert float(loss) == pytest.approx(0.5 * (2 * 3) ** 2, rel=1e-4)
