"""Affine networks: size, start, precision, and that they learn."""

import pytest
import torch
from torch import nn

from custom_components.affine import affine_to_ddf, centred_to_voxel, compose_affine, invert_affine, voxel_to_centred
from custom_components.fields import identity_grid, warp
from custom_components.methods.avsm.networks import AffineNetwork
from custom_components.networks.affine_keypoints import AffineKeypointNetwork, MultiStepAffine
from custom_components.networks.momentum_net import MomentumNetwork

sizes = pytest.mark.parametrize("size", [(33, 18), (1, 12), (17, 30, 19), (5, 1, 21)], ids=str)
affine_networks = pytest.mark.parametrize("network", [AffineNetwork, AffineKeypointNetwork])


def count(network):
    return sum(p.numel() for p in network.parameters())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_pair(size, batch=2, seed=0):
    return torch.rand(batch, 2, *size, generator=generator(seed))


def identity(matrix):
    return torch.eye(*matrix.shape[1:], dtype=matrix.dtype).expand_as(matrix)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: AffineNetwork(size=(80, 192, 192)), 147_920),
        (lambda: AffineNetwork(), 142_288),
        (lambda: AffineNetwork(2), 46_954),
        (lambda: AffineKeypointNetwork(), 346_032),
        (lambda: AffineKeypointNetwork(2), 115_344),
        (lambda: MomentumNetwork(), 5_938_515),
        (lambda: MomentumNetwork(2), 2_036_514),
        (lambda: MomentumNetwork(widths=(16, 32, 64, 64)), 776_403),
    ],
    ids=["affine, paper", "affine 3-D", "affine 2-D", "keypoints 3-D", "keypoints 2-D", "momentum", "2-D", "small"],
)
def test_parameter_counts(make, expected):
    assert count(make()) == expected


def test_the_published_network_flattens_432_features():
    network = AffineNetwork(size=(80, 192, 192))
    assert network.hidden[0].in_features == 432
    assert network.hidden[0].out_features == 32
    assert network.matrix.out_features == 12


@sizes
@pytest.mark.parametrize("bound", [False, True], ids=["any size", "one size"])
def test_an_affine_network_starts_as_the_identity(size, bound):
    torch.manual_seed(0)
    network = AffineNetwork(len(size), size=size if bound else None)
    matrix = network(random_pair(size))
    assert torch.equal(matrix, identity(matrix))
    assert matrix.shape == (2, len(size), len(size) + 1)
    matrix.square().sum().backward()
    assert network.matrix.weight.grad.abs().max() > 0


@sizes
@affine_networks
def test_scripted_affine_networks_give_the_same_matrix(network, size):
    torch.manual_seed(0)
    network = network(len(size))
    if isinstance(network, AffineNetwork):
        nn.init.normal_(network.matrix.weight, std=0.1)
    image = random_pair(size)
    matrix = network(image)
    assert torch.isfinite(matrix).all()
    assert (matrix - identity(matrix)).abs().max() > 1e-4
    torch.testing.assert_close(torch.jit.script(network)(image), matrix)
    torch.testing.assert_close(network(image[1:]), matrix[1:], rtol=0, atol=1e-5)


def test_the_network_of_one_size_can_be_scripted():
    network, image = AffineNetwork(2, size=(20, 33)), random_pair((20, 33))
    nn.init.normal_(network.matrix.weight, std=0.1)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))


@affine_networks
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_affine_networks_give_float32_under_autocast_and_follow_float64(network, dtype):
    torch.manual_seed(0)
    network, image = network(2), random_pair((32, 40))
    with torch.autocast("cpu", dtype):
        low, empty = network(image), network(0 * image)
    assert torch.equal(empty, identity(empty))
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, network(image), rtol=0, atol=0.02)
    assert network.double()(image.double()).dtype == torch.float64


def anatomies(size, batch, seed):
    """Pairs of an ellipse with three spots under random affine maps, and the true matrix."""
    d, random = len(size), generator(seed)

    def draw(scale):
        return torch.eye(d, d + 1) + scale * (2 * torch.rand(batch, d, d + 1, generator=random) - 1)

    fixed, truth = draw(0.15), draw(0.25)
    images = []
    for matrix in (compose_affine(fixed, invert_affine(truth)), fixed):
        x = identity_grid(size) + affine_to_ddf(centred_to_voxel(matrix, size), size)
        centre = torch.tensor([(n - 1) / 2 for n in size]).view(1, d, *[1] * d)
        x = (x - centre) / ((max(size) - 1) / 2)

        def spot(where, radius, x=x):
            where, radius = (torch.tensor(v[:d]).view(1, d, *[1] * d) for v in (where, radius))
            return torch.exp(-((x - where) / radius).square().sum(1, keepdim=True).square())

        inside = 0.3 * spot((-0.3, 0.2, 0.1), (0.15,) * 3) - 0.3 * spot((0.3, 0.1, -0.2), (0.2,) * 3)
        images.append(spot((0.0,) * 3, (0.65, 0.5, 0.55)) * (0.6 + inside + 0.4 * spot((0.0, -0.3, 0.2), (0.12,) * 3)))
    return torch.cat(images, 1).clamp(0, 1), truth


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "rate", "left"),
    [(lambda: AffineNetwork(2), 1e-3, 0.9), (lambda: AffineKeypointNetwork(2, (8, 16), depth=2), 3e-3, 0.25)],
    ids=["affine", "keypoints"],
)
def test_affine_networks_learn_maps_of_unseen_pairs(make, rate, left):
    torch.manual_seed(0)
    network = make()
    image, truth = anatomies((32, 36), 256, 0)
    unseen, expected = anatomies((32, 36), 32, 1)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    for _ in range(200):
        chosen = torch.randint(len(image), (16,))
        loss = (network(image[chosen]) - truth[chosen]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = network(unseen)
    error = (found - expected).abs().mean()
    moving, fixed = unseen.chunk(2, 1)
    warped = warp(moving, affine_to_ddf(centred_to_voxel(found, (32, 36)), (32, 36)))
    assert (warped - fixed).square().mean() < left * (moving - fixed).square().mean()
    assert error < left * (identity(expected) - expected).abs().mean()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compose_affine(torch.zeros(1, 3, 4), torch.zeros(1, 2, 3)), r"\(B, 3, 4\), got \(1, 2, 3\)"),
        (lambda: invert_affine(torch.zeros(1, 4, 4)), r"got \(1, 4, 4\)"),
        (lambda: invert_affine(torch.zeros(2, 3)), r"got \(2, 3\)"),
        (lambda: centred_to_voxel(torch.zeros(1, 2, 3), (4, 4, 4)), r"\(B, 3, 4\), got \(1, 2, 3\)"),
        (lambda: voxel_to_centred(torch.zeros(1, 3, 4), (4, 4)), r"\(B, 2, 3\), got \(1, 3, 4\)"),
        (lambda: AffineNetwork(4), "spatial_dims 2 or 3"),
        (lambda: AffineNetwork(features=6), "a multiple of 4"),
        (lambda: AffineNetwork(3, size=(8, 8)), r"a size of 3 axes, got \(8, 8\)"),
        (lambda: AffineNetwork(2, size=(8, 9))(torch.zeros(1, 2, 9, 8)), r"size \[8, 9\].*got \[9, 8\]"),
        (lambda: AffineNetwork(3)(torch.zeros(1, 2, 8, 8)), r"3-D images.*\[1, 2, 8, 8\]"),
        (lambda: AffineKeypointNetwork(2)(torch.zeros(1, 3, 8, 8)), r"one channel.*\[1, 3, 8, 8\]"),
        (lambda: AffineKeypointNetwork(1), "spatial_dims 2 or 3"),
        (lambda: AffineKeypointNetwork(3, num_points=3), "more keypoints than that"),
        (lambda: AffineKeypointNetwork(3, ()), "widths of at least 1"),
        (lambda: AffineKeypointNetwork(3, ridge=0.0), "ridge > 0"),
        (lambda: MultiStepAffine(AffineNetwork(2))(torch.zeros(1, 2, 8, 8), 0), "at least one step, got 0"),
        (lambda: MomentumNetwork(1), "spatial_dims 2 or 3"),
        (lambda: MomentumNetwork(2, (8, 8)), "three widths or more"),
        (lambda: MomentumNetwork(2)(torch.zeros(1, 1, 8, 8)), r"one channel.*\[1, 1, 8, 8\]"),
    ],
)
def test_affine_maps_and_networks_refuse_shapes_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
