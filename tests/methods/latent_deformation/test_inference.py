"""Registration, samples, paths and transport, and the window in which the network sees a pair."""

import pytest
import torch

from custom_components.deformations.velocity import StationaryVelocity
from custom_components.inference.registration import RegistrationInferer
from custom_components.methods.latent_deformation.inference import LatentInferer, LatentPredictor, Source
from custom_components.methods.latent_deformation.network import LatentNetwork
from custom_components.methods.latent_deformation.window import Window
from custom_components.networks.zero import ZeroField

DEFORMATION = StationaryVelocity(6)


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = LatentNetwork(2, 4, coarse=(3, 4), features=8).eval()
    torch.nn.init.normal_(network.statistics.weight, std=0.5)
    return network


def scene(size=(40, 44), at=(20, 22), seed=0):
    """A pair of textured discs about a centre."""
    noise = torch.rand(2, *size, generator=torch.Generator().manual_seed(seed))
    grid = torch.stack(torch.meshgrid(*[torch.arange(n) for n in size], indexing="ij"))
    inside = (grid - torch.tensor(at).view(2, 1, 1)).square().sum(0) < 81
    return (noise * inside)[None]


class GivenPair:
    """A source whose pair is in memory."""

    def __init__(self, image):
        self.image = image

    def __call__(self, device):
        return self.image


def inferer(window=(24, 32), transported=None, **options):
    predict = LatentPredictor(window=None if window is None else list(window), transported=transported)
    return LatentInferer(RegistrationInferer(DEFORMATION, predict), **options)


def test_the_window_lies_about_the_fixed_images_centre_of_mass_and_gives_fields_back():
    image = torch.cat([scene(at=(14, 12)), scene(at=(26, 30))])
    window = Window(image, (24, 32))
    assert window.image.shape == (2, 2, 24, 32)
    for one in window.image[:, 1]:
        centre = [(one.sum(1 - k) * torch.arange(one.shape[k])).sum() / one.sum() for k in (0, 1)]
        assert all(abs(float(c) - m) <= 0.51 for c, m in zip(centre, (11.5, 15.5), strict=True))
        assert float(one.sum()) > 0
    for full, one in zip(image, window.image, strict=True):
        torch.testing.assert_close(one.sum(), full.sum())  # the whole disc is within
    back = window.field(window.image)
    assert back.shape == image.shape
    inside = image > 0
    assert torch.equal(back[inside], image[inside])


def test_a_field_goes_on_beyond_the_window_as_it_is_at_its_border():
    window = Window(scene(), (24, 32))
    constant = torch.full((1, 2, 24, 32), 1.5)
    assert torch.equal(window.field(constant), torch.full((1, 2, 40, 44), 1.5))


def test_an_image_smaller_than_the_window_is_padded_and_an_empty_one_is_centred():
    small = torch.zeros(1, 2, 10, 11)
    window = Window(small, (24, 32))
    assert window.image.shape == (1, 2, 24, 32)
    assert window.field(torch.zeros(1, 2, 24, 32)).shape == (1, 2, 10, 11)
    with pytest.raises(ValueError, match="window of 2 axes"):
        Window(small, (24, 32, 8))


@torch.no_grad()
def test_the_answer_moves_with_the_pair(network):
    """Where the pair lies in its image does not matter to a network that sees a window of it."""
    image, part = scene((60, 64), (20, 22)), (..., slice(10, 30), slice(10, 30))
    first, moved = (inferer()(one, network) for one in (image, torch.roll(image, (10, 14), (2, 3))))
    assert first["latent"].shape == (1, 4)
    torch.testing.assert_close(moved["latent"], first["latent"])
    torch.testing.assert_close(torch.roll(moved["svf"], (-10, -14), (2, 3))[part], first["svf"][part])
    whole = [inferer(None)(one, network)["latent"] for one in (image, torch.roll(image, (10, 14), (2, 3)))]
    assert not torch.allclose(*whole)


@torch.no_grad()
def test_a_transported_deformation_is_the_sources_z_decoded_with_the_image_at_hand(network):
    source, image = scene(seed=1), scene((48, 52), (24, 30), seed=2)
    found = inferer(transported=GivenPair(source))(image, network)
    own = inferer()(source, network)
    torch.testing.assert_close(found["latent"], own["latent"])
    window = Window(image, (24, 32))
    torch.testing.assert_close(found["svf"], window.field(network(window.image, own["latent"])))
    assert found["warped"].shape == (1, 1, 48, 52)
    torch.testing.assert_close(inferer(transported=GivenPair(source))(source, network)["ddf"], own["ddf"])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["posterior", "prior", "path"])
def test_samples_stand_beside_the_registration(network, kind):
    image = torch.cat([scene(seed=1), scene(seed=2)])
    plain = inferer()(image, network)
    found = inferer(samples=5, of=kind, seed=1)(image, network)
    torch.testing.assert_close(found["ddf"], plain["ddf"])
    assert found["ddf_samples"].shape == (2, 5, 2, 40, 44)
    assert found["velocity_sd"].shape == (2, 2, 40, 44)
    assert float(found["velocity_sd"].amax()) > 0
    again = inferer(samples=5, of=kind, seed=1)(image, network)
    assert torch.equal(again["ddf_samples"], found["ddf_samples"])
    other = inferer(samples=5, of=kind, seed=2)(image, network)
    assert torch.equal(other["ddf_samples"], found["ddf_samples"]) == (kind == "path")


@torch.no_grad()
def test_a_path_begins_at_the_registration_and_ends_at_the_prior_or_at_the_source(network):
    image, source = scene(seed=1), scene(seed=2)
    own = inferer()(image, network)["ddf"]
    for other, end in ((None, torch.zeros(1, 4)), (GivenPair(source), inferer()(source, network)["latent"])):
        path = inferer(samples=3, of="path", other=other)(image, network)["ddf_samples"]
        torch.testing.assert_close(path[:, 0], own)
        window = Window(image, (24, 32))
        velocity = window.field(network(window.image, end))
        torch.testing.assert_close(path[:, 2], DEFORMATION(velocity, (40, 44))["ddf"])


@torch.no_grad()
def test_without_a_latent_space_there_is_a_field_and_no_sample():
    assert float(inferer()(scene(), ZeroField(2))["ddf"].abs().max()) == 0
    with pytest.raises(ValueError, match="network with a latent space"):
        inferer(samples=2)(scene(), ZeroField(2))


def test_other_kinds_of_samples_are_refused():
    with pytest.raises(ValueError, match="samples to be a whole number of at least 0, got -1"):
        LatentInferer(RegistrationInferer(StationaryVelocity()), samples=-1)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.nii: there is no such file; give --source_moving and"):
        Source("nowhere.nii", "nowhere.nii", lambda item: {})(torch.device("cpu"))
    with pytest.raises(ValueError, match="samples of posterior, prior, path"):
        inferer(samples=2, of="mean")
