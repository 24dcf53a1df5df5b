"""The objective: the divergence's closed forms, half-way images, and that a network learns by it."""

import pytest
import torch

from custom_components.data.phantoms import phantom_pair
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.similarity import LNCC, MSE
from custom_components.methods.latent_deformation.inference import LatentPredictor
from custom_components.methods.latent_deformation.network import LatentNetwork
from custom_components.methods.latent_deformation.objective import LatentLoss, latent_divergence


@pytest.mark.parametrize(
    ("mean", "log_variance", "expected"), [(0, 0, 0), (1, 0, 0.5), (0, -2, 0.5676676), (1, -2, 1.0676676)]
)
def test_the_divergence_has_its_closed_form(mean, log_variance, expected):
    posterior = torch.cat([torch.full((3, 32), float(mean)), torch.full((3, 32), float(log_variance))], 1)
    torch.testing.assert_close(latent_divergence(posterior), torch.full((3, 32), float(expected)))
    torch.testing.assert_close(latent_divergence(posterior).sum(1), torch.full((3,), 32.0 * expected))


def test_the_gradient_of_the_divergence_is_right():
    posterior = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(latent_divergence, posterior)


def test_a_dimension_below_the_free_bits_is_not_pressed_on():
    posterior = torch.zeros(2, 6)
    posterior[:, 0], posterior[:, 1] = 1.0, 0.1
    posterior.requires_grad_()
    pred = {"posterior": posterior, "svf": torch.zeros(2, 2, 8, 8)}
    images = torch.rand(2, 1, 8, 8)
    LatentLoss(MSE(), weight=1.0, free_bits=0.05)(pred, {"moving": images, "fixed": images}).backward()
    assert float(pred["terms"]["regularization"]) == pytest.approx(0.5 + 0.05 + 0.05)
    assert bool((posterior.grad[:, 0] > 0).all())
    assert torch.equal(posterior.grad[:, 1:], torch.zeros(2, 5))


def test_images_meet_in_the_middle():
    """Of a shift of 4 voxels, each image takes 2; what the masks leave out does not count."""
    generator = torch.Generator().manual_seed(0)
    scene = torch.rand(1, 1, 40, 24, generator=generator)
    batch = {"moving": scene[:, :, 4:36], "fixed": scene[:, :, :32]}  # fixed(x + 4) = moving(x)
    batch |= {f"mask_{role}": torch.zeros(1, 1, 32, 24) for role in batch}
    for role in ("moving", "fixed"):
        batch[f"mask_{role}"][:, :, 6:26, 4:20] = 1
    velocity = torch.zeros(1, 2, 32, 24)
    velocity[:, 0] = -4
    loss = LatentLoss(MSE())
    posterior = torch.zeros(1, 4)
    right = loss.half_way({"svf": velocity, "posterior": posterior}, batch)
    assert float(right) < 1e-10
    for wrong in (0.0, 0.5, 1.5, -1.0):
        assert float(loss.half_way({"svf": wrong * velocity, "posterior": posterior}, batch)) > 0.01


def test_images_that_have_nothing_in_common_gain_little_by_being_interpolated():
    """A shift by half a voxel blurs both images, and blurred images are more alike."""
    images = torch.rand(2, 1, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    batch = {"moving": images[0], "fixed": images[1]}
    shift = {"svf": torch.ones(1, 2, 40, 40), "posterior": torch.zeros(1, 4)}  # half a voxel each
    still = {**shift, "svf": torch.zeros(1, 2, 40, 40)}
    gains = []
    for blur in (0.0, 1.0):
        loss = LatentLoss(MSE(), blur=blur)
        gains.append(1 - float(loss.half_way(shift, batch) / loss.half_way(still, batch)))
    assert gains[0] > 0.6
    assert gains[1] < 0.5 * gains[0]


def test_exchanged_images_with_the_negative_velocity_cost_the_same():
    pair = phantom_pair((40, 36), seed=1)
    velocity = torch.nn.functional.interpolate(torch.randn(1, 2, 5, 5), (40, 36), mode="bilinear", align_corners=True)
    loss, posterior = LatentLoss(LNCC(9)), torch.zeros(1, 4)
    there = loss.half_way({"svf": velocity, "posterior": posterior}, pair)
    back = loss.half_way({"svf": -velocity, "posterior": posterior}, {"moving": pair["fixed"], "fixed": pair["moving"]})
    torch.testing.assert_close(there, back)


def test_a_network_learns_a_pair_and_z_tells_it_from_its_reverse():
    torch.manual_seed(0)
    pair = phantom_pair((48, 40), seed=1)
    image = torch.cat([pair["moving"], pair["fixed"]], 1)
    both = torch.cat([image, image.flip(1)])
    batch = {"moving": both[:, :1], "fixed": both[:, 1:]}
    network = LatentNetwork(2, 8, coarse=(6, 5), features=16)
    deformation = StationaryVelocity(6)
    inferer = RegistrationInferer(deformation, LatentPredictor(draw=True))
    loss = LatentLoss(LNCC(9), weight=1e-5)
    optimizer = torch.optim.Adam(network.parameters(), 0.003)
    values = []
    for _ in range(100):
        optimizer.zero_grad()
        pred = inferer(both, network)
        total = loss(pred, batch)
        total.backward()
        optimizer.step()
        values.append(float(pred["terms"]["similarity"]))
    assert sum(values[-5:]) < 0.6 * sum(values[:5])
    with torch.no_grad():
        pred = RegistrationInferer(deformation, LatentPredictor())(both, network)
        means = pred["posterior"].chunk(2, 1)[0]
        crossed = network(both, means.flip(0))  # the z of the other way
        wrong = loss.half_way({"svf": crossed}, batch)
        assert float(loss.half_way(pred, batch)) < float(wrong) - 0.1
