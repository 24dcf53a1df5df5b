"""The networks of AVSM: affine, keypoints, several affine steps, momentum; and the algebra of affine matrices."""

import math

import pytest
import torch
from torch import nn

from custom_components.affine import affine_to_ddf, centred_to_voxel, compose_affine, invert_affine, voxel_to_centred
from custom_components.fields import compose, identity_grid, warp
from custom_components.methods.avsm.networks import AffineNetwork
from custom_components.networks import affine_keypoints
from custom_components.networks.affine_keypoints import AffineKeypointNetwork, MultiStepAffine, fit_affine
from custom_components.networks.momentum_net import MomentumNetwork

dimensions = pytest.mark.parametrize("d", [2, 3], ids=["2-D", "3-D"])
sizes = pytest.mark.parametrize("size", [(33, 18), (1, 12), (17, 30, 19), (5, 1, 21)], ids=str)
affine_networks = pytest.mark.parametrize("network", [AffineNetwork, AffineKeypointNetwork])


def count(network):
    return sum(p.numel() for p in network.parameters())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_pair(size, batch=2, seed=0):
    return torch.rand(batch, 2, *size, generator=generator(seed))


def random_affine(d, batch=3, seed=0, scale=0.2, dtype=torch.float64):
    difference = scale * (2 * torch.rand(batch, d, d + 1, generator=generator(seed), dtype=dtype) - 1)
    return difference + torch.eye(d, d + 1, dtype=dtype)


def identity(matrix):
    return torch.eye(*matrix.shape[1:], dtype=matrix.dtype).expand_as(matrix)


# Matrices


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


# Least squares


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


# Affine networks


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


# Keypoints


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


# Steps


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


# Learning


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


@pytest.mark.parametrize(
    ("make", "rate", "left"),
    [
        (lambda: AffineNetwork(2), 1e-3, 0.9),
        (lambda: AffineKeypointNetwork(2, (8, 16), depth=2), 3e-3, 0.25),
    ],
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


# Momentum


@pytest.mark.parametrize("size", [(33, 18), (16, 16), (1, 5), (17, 30, 19), (5, 16, 21)], ids=str)
@pytest.mark.parametrize("widths", [(4, 4, 6, 6, 8), (4, 6, 8)], ids=str)
def test_momenta_have_half_the_resolution_whatever_the_size(size, widths):
    torch.manual_seed(0)
    network, image = MomentumNetwork(len(size), widths, head_std=0.1), random_pair(size)
    momentum = network(image)
    assert momentum.shape == (2, len(size), *[(n + 1) // 2 for n in size])
    torch.testing.assert_close(torch.jit.script(network)(image), momentum)


@dimensions
def test_an_untrained_network_has_nearly_no_momentum(d):
    torch.manual_seed(0)
    momentum = MomentumNetwork(d)(random_pair([32] * d, 1))
    assert 0 < momentum.abs().max() < 0.01


@torch.no_grad()
def test_padding_is_background():
    torch.manual_seed(0)
    network = MomentumNetwork(2, (4, 6, 8), head_std=0.1)
    image = torch.zeros(1, 2, 32, 32)
    image[:, :, 8:20, 8:20] = random_pair((12, 12), 1)
    torch.testing.assert_close(network(image)[..., :15, :15], network(image[..., :30, :30]))


def test_the_momentum_network_learns():
    torch.manual_seed(0)
    network, image = MomentumNetwork(2, (8, 16, 16, 16)), random_pair((24, 20), 4)
    moving, fixed = torch.nn.functional.avg_pool2d(image, 2).chunk(2, 1)
    target = torch.cat([fixed - moving, moving * fixed - 0.25], 1)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = (network(image) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# Errors


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
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
