"""Offsets have the error that was asked for, objectives are least where they should be, and losses are usable."""

import math

import pytest
import torch

from custom_components.affine import ball_displacement, rotation_matrix
from custom_components.methods.learned_similarity.network import AlignmentNetwork, PatchAutoencoder, edges, small
from custom_components.methods.learned_similarity.objective import (
    at_cells,
    correspondence_loss,
    distance_loss,
    distance_of,
    log_distance,
    structure_of,
)
from custom_components.methods.learned_similarity.offsets import draw_tre, offsets_of
from custom_components.methods.learned_similarity.similarity import FORMS, FeatureDistance, LearnedSimilarity


def test_a_turn_of_ten_degrees_moves_a_ball_of_25_mm_by_2_756_mm():
    turn = rotation_matrix(torch.tensor([[0.0, 0.0, math.radians(10)]]))
    offset = torch.cat([turn, torch.zeros(1, 3, 1)], 2)
    assert float(ball_displacement(offset, 25)) == pytest.approx(2.756, abs=1e-3)


@pytest.mark.parametrize("d", [2, 3])
def test_the_closed_form_is_the_mean_over_points(d):
    torch.manual_seed(0)
    points = torch.randn(d, 200_000)
    points = points / points.norm(dim=0) * 40 * torch.rand(200_000) ** (1 / d)
    offset = offsets_of(torch.tensor([7.0, 21.0]), 40, d)
    moved = offset[:, :, :d] @ points + offset[:, :, d:] - points
    measured = moved.square().sum(1).mean(1).sqrt()
    assert torch.allclose(measured, ball_displacement(offset, 40), rtol=0.01)


@pytest.mark.parametrize("d", [2, 3])
def test_offsets_have_the_error_that_was_asked_for(d):
    torch.manual_seed(0)
    tre = draw_tre(500, 30.0)
    offset = offsets_of(tre, 60, d)
    assert torch.allclose(ball_displacement(offset, 60), tre, atol=1e-3)
    linear = offset[:, :, :d]
    assert torch.allclose(linear @ linear.mT, torch.eye(d).expand_as(linear), atol=1e-5)


def test_small_errors_are_as_frequent_as_larger_ones():
    torch.manual_seed(0)
    tre = draw_tre(40_000, 30.0)
    counts = torch.histc(tre[tre < 30], 10, 0, 30) / len(tre)
    assert torch.allclose(counts, torch.full((10,), 0.075), atol=0.005)
    assert float(tre.max()) < 60


def test_an_offset_that_no_rotation_makes_is_refused():
    with pytest.raises(ValueError, match="no rotation of a ball of 5 mm"):
        offsets_of(torch.full((100,), 60.0), 5)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_a_network_gives_a_number_for_each_cell_of_any_size(form, d):
    network = getattr(AlignmentNetwork, form)(d).eval()
    size = (40, 33, 48)[:d]
    cells = network(torch.rand(2, 2, *size))
    image = torch.zeros(2, 1, *size)
    assert cells.shape == at_cells(image, network.stride).shape
    stored = sum(v.numel() * v.element_size() for v in small(network.state_dict()).values())
    assert stored < 500_000


def test_a_cell_lies_where_its_patch_is():
    network = AlignmentNetwork.patches(2).eval()
    image = 0.1 * torch.rand(1, 2, 64, 64)
    shown = image.clone()
    shown[..., 20, 32] = 1
    change = (network(shown) - network(image)).abs()[0, 0]
    changed = change > 0.05 * change.max()
    rows, columns = changed.nonzero().unbind(1)
    assert 4 * rows.float().mean() == pytest.approx(20, abs=2)
    assert 4 * columns.float().mean() == pytest.approx(32, abs=2)
    assert float((4 * rows - 20).abs().max()) <= 11


@pytest.mark.parametrize("d", [2, 3])
def test_edges_are_the_same_in_any_contrast(d):
    torch.manual_seed(0)
    image = torch.nn.functional.avg_pool3d(torch.rand(1, 1, 12, 12, 12), 3)[0] if d == 3 else torch.rand(1, 1, 9, 9)[0]
    pair = torch.stack([image, 1 - 0.5 * image], 1)
    found = edges(pair)
    assert found.shape == (1, 3, *image.shape[1:])
    assert torch.allclose(found[:, 0], found[:, 1], atol=5e-3)
    assert torch.allclose(found[:, 2], found[:, 0] * found[:, 1], atol=5e-3)
    across = torch.stack([pair[:, 0], pair[:, 0].transpose(-1, -2)], 1)
    assert float(edges(across)[:, 2].mean()) < float(found[:, 2].mean())


def test_a_single_image_is_refused():
    with pytest.raises(ValueError, match="expected a pair of 3-D images"):
        AlignmentNetwork.patches()(torch.rand(1, 1, 16, 16, 16))


def test_the_losses_are_least_for_the_right_answer():
    distance = torch.tensor([0.0, 0.3, 0.7, 1.5, 9.0]).view(1, 1, -1)
    right = torch.tensor([9.0, 9.0, 0.0, -9.0, -9.0]).view(1, 1, -1)
    assert correspondence_loss(right, distance) < 1e-3 < correspondence_loss(-right, distance)
    unsure = right.clone()
    unsure[..., 2] = 50  # between half a voxel and one nothing counts
    assert correspondence_loss(unsure, distance) == correspondence_loss(right, distance)
    weight = torch.tensor([1.0, 1, 1, 1, 0]).view(1, 1, -1)
    wrong = right.clone()
    wrong[..., 4] = 50
    assert torch.allclose(correspondence_loss(wrong, distance, weight), correspondence_loss(right, distance), atol=1e-3)
    assert distance_loss(log_distance(distance), distance) == 0
    assert torch.allclose(distance_of(log_distance(distance)), distance, atol=1e-5)


@pytest.mark.parametrize("d", [2, 3])
def test_where_an_image_is_flat_there_is_nothing_to_compare(d):
    image = torch.zeros(1, 2, *(32,) * d)
    image[:, :, 16:24] = 0.5
    image[:, 1, :4] = 1
    shown = structure_of(image, 4)
    assert shown.shape == (1, 1, *(8,) * d)
    assert float(shown[0, 0, 4].min()) == 0.5
    assert float(shown[0, 0, :2].max()) == 0


@pytest.mark.parametrize(
    "make",
    [*[lambda d, f=f: LearnedSimilarity(f, spatial_dims=d) for f in FORMS], lambda d: FeatureDistance(spatial_dims=d)],
)
@pytest.mark.parametrize("d", [2, 3])
def test_it_is_a_loss_with_a_slope_and_a_mask(make, d):
    torch.manual_seed(0)
    similarity = make(d)
    size = (24, 32, 24)[:d]
    warped, fixed = torch.rand(1, 1, *size).requires_grad_(), torch.rand(1, 1, *size)
    value = similarity(warped, fixed)
    value.backward()
    assert value.shape == ()
    assert float(warped.grad.abs().sum()) > 0
    assert all(not p.requires_grad for p in similarity.parameters())
    assert torch.allclose(similarity(warped, fixed, torch.ones(1, 1, *size)), value, atol=1e-6)
    mask = torch.zeros(1, 1, *size)
    mask[:, :, :16] = 1
    assert similarity(warped, fixed, mask) != value


def test_channels_are_compared_one_by_one():
    torch.manual_seed(0)
    similarity = LearnedSimilarity(spatial_dims=2)
    a, b = torch.rand(2, 1, 2, 32, 32)
    each = [similarity(a[:, k : k + 1], b[:, k : k + 1]) for k in range(2)]
    assert torch.allclose(similarity(a, b), torch.stack(each).mean(), atol=1e-6)


def test_equal_images_have_no_distance_of_features_whatever_their_scale():
    similarity = FeatureDistance(spatial_dims=2)
    image = torch.rand(1, 1, 32, 32)
    assert float(similarity(image, image)) == 0
    assert float(similarity(image, torch.rand(1, 1, 32, 32))) > 0.1


def test_the_autoencoder_restores_an_image_of_its_size():
    for d in (2, 3):
        image = torch.rand(1, 1, *(16, 24, 20)[:d])
        assert PatchAutoencoder(d)(image).shape == image.shape


def test_another_form_is_refused():
    with pytest.raises(ValueError, match="expected a form of patches, volumes, got 'pairs'"):
        LearnedSimilarity("pairs")
