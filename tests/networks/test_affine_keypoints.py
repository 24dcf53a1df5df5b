"""The keypoint network and affine registration in several steps."""

import math

import pytest
import torch
from networks.cases import dimensions, generator, random_pair
from torch import nn

from custom_components.affine import affine_to_ddf, centred_to_voxel, compose_affine, invert_affine
from custom_components.fields import identity_grid, warp
from custom_components.methods.avsm.networks import AffineNetwork
from custom_components.networks import affine_keypoints
from custom_components.networks.affine_keypoints import AffineKeypointNetwork, MultiStepAffine


def random_affine(d, batch=3, seed=0, scale=0.2, dtype=torch.float64):
    difference = scale * (2 * torch.rand(batch, d, d + 1, generator=generator(seed), dtype=dtype) - 1)
    return difference + torch.eye(d, d + 1, dtype=dtype)


def identity(matrix):
    return torch.eye(*matrix.shape[1:], dtype=matrix.dtype).expand_as(matrix)


@pytest.fixture(scope="module", params=[2, 3], ids=["2-D", "3-D"])
def keypoints(request):
    torch.manual_seed(request.param)
    return AffineKeypointNetwork(request.param, (4, 6), depth=1, num_points=8, ridge=1e-9).double()


def placed(d, *starts, side=64, seed=0):
    """Images with random content of 12 voxels a side from each start on, background elsewhere."""
    images = torch.zeros(1, len(starts), *[side] * d, dtype=torch.float64)
    content = torch.rand([12] * d, generator=generator(seed), dtype=torch.float64)
    for channel, start in enumerate(starts):
        images[(0, channel, *[slice(s, s + 12) for s in start])] = content
    return images


@torch.no_grad()
def test_equal_images_give_the_identity(keypoints):
    image = random_pair((17, 20, 13)[: keypoints.spatial_dims]).double()[:, :1]
    matrix = keypoints(torch.cat([image, image], 1))
    torch.testing.assert_close(matrix, identity(matrix), rtol=0, atol=1e-12)


@torch.no_grad()
def test_swapped_images_give_the_inverse(keypoints):
    image = random_pair((17, 20, 13)[: keypoints.spatial_dims]).double()
    matrix = keypoints(image)
    torch.testing.assert_close(keypoints(image.flip(1)), invert_affine(matrix))
    assert (matrix - identity(matrix)).abs().max() > 0.01


@torch.no_grad()
def test_a_shift_by_whole_strides_shifts_the_answer(keypoints):
    d = keypoints.spatial_dims
    for shift in ((4, 0, -8)[:d], (-8, 8, 4)[:d]):
        image = placed(d, [24] * d, [24 + s for s in shift])
        matrix = keypoints(image.flip(1))  # the moving image's content lies `shift` further on
        expected = identity(matrix).clone()
        expected[0, :, d] = torch.tensor(shift) / 31.5
        torch.testing.assert_close(matrix, expected, rtol=0, atol=1e-7)
        warped = warp(image[:, 1:], affine_to_ddf(centred_to_voxel(matrix, [64] * d), [64] * d))
        torch.testing.assert_close(warped, image[:, :1], rtol=0, atol=1e-4)


@torch.no_grad()
def test_neither_contrast_nor_more_background_matters(keypoints):
    d = keypoints.spatial_dims
    image = torch.cat([placed(d, [18] * d), placed(d, [29] * d, seed=1)], 1)
    matrix = keypoints(image)
    dimmed = image * torch.tensor([0.1, 0.7]).view(1, 2, *[1] * d)
    torch.testing.assert_close(keypoints(dimmed), matrix, rtol=0, atol=1e-5)
    wider = torch.nn.functional.pad(image, [0, 5] * d)
    found, expected = centred_to_voxel(keypoints(wider), [69] * d), centred_to_voxel(matrix, [64] * d)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@torch.no_grad()
def test_empty_images_give_the_identity(keypoints):
    image = placed(keypoints.spatial_dims, [3] * keypoints.spatial_dims, [9] * keypoints.spatial_dims, side=24)
    for empty in (slice(None), slice(1), slice(1, 2)):
        dark = image.clone()
        dark[:, empty] = 0
        matrix = keypoints(dark)
        assert torch.equal(matrix, identity(matrix))


class Listed(nn.Module):
    """Answers with one matrix after the other and keeps what it saw."""

    def __init__(self, matrices):
        super().__init__()
        self.matrices, self.seen = matrices, []

    def forward(self, image):
        self.seen.append(image)
        return self.matrices[len(self.seen) - 1].to(image.dtype)


def trainable(d, seed=0):
    torch.manual_seed(seed)
    network = AffineNetwork(d, 4, 8, cells=2)
    nn.init.normal_(network.matrix.weight, std=0.05)
    return network


@dimensions
def test_one_step_is_the_network(d):
    network, image = trainable(d), random_pair((20, 17, 18)[:d])
    assert torch.equal(MultiStepAffine(network)(image), network(image))
    assert len(MultiStepAffine(network, 3).steps(image, 2)) == 2
    torch.testing.assert_close(MultiStepAffine(network, 3)(image), MultiStepAffine(network).steps(image, 3)[-1])


@pytest.mark.parametrize("size", [(21, 16), (11, 14, 9)], ids=str)
def test_each_step_sees_the_original_image_warped_once(size, monkeypatch):
    a, b, c = (random_affine(len(size), 2, seed) for seed in range(3))
    network, image, warped = Listed([a, b, c]), random_pair(size).double(), []
    monkeypatch.setattr(affine_keypoints, "warp", lambda *args: warped.append(args[0]) or warp(*args))
    first, second, third = MultiStepAffine(network, 3).eval().steps(image)
    assert torch.equal(first, a)
    torch.testing.assert_close(second, compose_affine(a, b))
    torch.testing.assert_close(third, compose_affine(compose_affine(a, b), c))
    assert len(warped) == 2
    assert all(torch.equal(moving, image[:, :1]) for moving in warped)
    assert torch.equal(network.seen[0], image)
    for seen, matrix in zip(network.seen[1:], (first, second), strict=True):
        assert torch.equal(seen[:, 1:], image[:, 1:])
        expected = warp(image[:, :1], affine_to_ddf(centred_to_voxel(matrix, size), size))
        torch.testing.assert_close(seen[:, :1], expected)


def test_steps_complete_each_other():
    """Halves of a rotation and shift, whatever is left of them, one after the other."""
    size = (33, 27)
    angle = 0.2
    turn = [[math.cos(angle), -math.sin(angle), 0.2], [math.sin(angle), math.cos(angle), -0.1]]
    half = torch.tensor([turn])
    locations = identity_grid(size)[None]
    moving = torch.exp(-(locations - torch.tensor([14.0, 17.0]).view(1, 2, 1, 1)).square().sum(1, keepdim=True) / 40)
    whole = centred_to_voxel(compose_affine(half, half), size)
    fixed = warp(moving, affine_to_ddf(whole, size))
    matrices = MultiStepAffine(Listed([half, half]), 2).eval()(torch.cat([moving, fixed], 1))
    torch.testing.assert_close(centred_to_voxel(matrices, size), whole)


@dimensions
def test_recomputed_steps_have_the_same_gradients(d):
    network, image, gradients, calls = trainable(d), random_pair((20, 17, 18)[:d]), [], []
    network.register_forward_hook(lambda *_: calls.append(1))
    for training, expected in ((True, 5), (False, 3)):
        steps = MultiStepAffine(network, 3).train(training)
        calls.clear()
        matrices = steps.steps(image)
        assert len(calls) == 3
        assert (matrices[2] - matrices[1]).abs().max() > 1e-4
        sum(matrix.square().sum() for matrix in matrices).backward()
        assert len(calls) == expected
        gradients.append([p.grad.clone() for p in network.parameters()])
        network.zero_grad()
    for recomputed, kept in zip(*gradients, strict=True):
        assert kept.abs().max() > 0
        torch.testing.assert_close(recomputed, kept)


def test_steps_warp_in_full_precision_under_autocast():
    matrix = random_affine(2, 2, scale=0.1, dtype=torch.float32)
    network, image = Listed([matrix, matrix, matrix, matrix]), random_pair((64, 50))
    with torch.autocast("cpu", torch.bfloat16):
        MultiStepAffine(network, 2)(image)
    MultiStepAffine(network, 2)(image)
    assert torch.equal(network.seen[1], network.seen[3])
