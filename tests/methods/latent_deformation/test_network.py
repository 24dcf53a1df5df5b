"""The conditional autoencoder: what passes through z, what the decoder sees, and what smooths the velocity."""

import pytest
import torch

from custom_components.fields import compose, integrate_velocity, jacobian_determinant
from custom_components.methods.latent_deformation.latent import decode
from custom_components.methods.latent_deformation.network import LatentNetwork, gaussian_kernel, smoothed

CASES = {"2-D": ((32, 48), (4, 6)), "3-D": ((16, 24, 32), (2, 3, 4))}


def network_of(name, **options):
    size, coarse = CASES[name]
    torch.manual_seed(0)
    return LatentNetwork(len(size), 8, coarse=coarse, features=8, **options).eval()


def pair_of(name, seed=0):
    return torch.rand(1, 2, *CASES[name][0], generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", CASES)
def test_the_velocity_is_that_of_the_mean_of_z(name):
    network, pair = network_of(name), pair_of(name)
    mean = network(pair, posterior=True)[:, :8]
    velocity = network(pair)
    assert velocity.shape == (1, len(CASES[name][0]), *CASES[name][0])
    torch.testing.assert_close(velocity, network(pair, mean))


@pytest.mark.parametrize("name", CASES)
def test_all_that_is_known_of_the_fixed_image_passes_through_z(name):
    network, pair, other = network_of(name), pair_of(name), pair_of(name, 1)
    latent = torch.randn(1, 8)
    changed = torch.cat([pair[:, :1], other[:, 1:]], 1)
    assert torch.equal(network(pair, latent), network(changed, latent))
    assert not torch.equal(network(pair), network(changed))
    changed = torch.cat([other[:, :1], pair[:, 1:]], 1)
    assert not torch.allclose(network(pair, latent), network(changed, latent))


@pytest.mark.parametrize("size", [(33, 45), (20, 20), (64, 80)])
def test_images_of_any_size_are_taken(size):
    network = network_of("2-D")
    pair = torch.rand(2, 2, *size)
    assert network(pair).shape == (2, 2, *size)
    assert network(pair, posterior=True).shape == (2, 16)


def test_exponentials_of_half_the_velocity_make_the_whole_and_nothing_folds():
    network = network_of("2-D")
    latent = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    velocity = 20 * decode(network, latent[: len(pair_of("2-D"))], pair_of("2-D")[:, :1])
    assert velocity.abs().max() > 1
    ddf = integrate_velocity(velocity, 7)
    half = integrate_velocity(velocity / 2, 6)
    torch.testing.assert_close(compose(half, half), ddf, atol=1e-4, rtol=0)
    assert jacobian_determinant(ddf).min() > 0


@pytest.mark.parametrize("sd", [0.0, 1.0, 1.5, 3.0])
def test_smoothing_keeps_what_is_constant_at_the_border_too(sd):
    kernel = gaussian_kernel(sd)
    assert float(kernel.sum()) == pytest.approx(1)
    assert len(kernel) == {0.0: 1, 1.0: 5, 1.5: 9, 3.0: 15}[sd]
    field = torch.full((2, 3, 6, 20, 12), 2.5)
    torch.testing.assert_close(smoothed(field, kernel), field)
    point = torch.zeros(1, 2, 31, 31)
    point[:, :, 15, 15] = 1
    torch.testing.assert_close(smoothed(point, kernel)[0, 0].sum(), torch.tensor(1.0))
    spread = smoothed(point, kernel)[0, 0].sum(1)
    variance = float((spread * (torch.arange(31) - 15) ** 2).sum())
    assert variance == pytest.approx(sd**2, rel=0.15, abs=1e-6)


def test_other_grids_and_vectors_are_refused():
    with pytest.raises(ValueError, match="coarse grid of 3 axes"):
        LatentNetwork(3, coarse=(4, 4))
    with pytest.raises(ValueError, match=r"latent vectors of shape \(B, 8\)"):
        network_of("2-D")(pair_of("2-D"), torch.zeros(1, 7))
