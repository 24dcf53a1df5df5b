"""Samples by dropout and their spread."""

import itertools

import pytest
import torch
from methods.quicksilver.cases import KERNEL, make, momentum_inferer, smooth_pair, vector_momentum, wholes
from torch import nn

from benchmarks.experiments import bundle_config
from custom_components.deformations.momentum import VectorMomentum
from custom_components.weights import load_weights


class Recording(VectorMomentum):
    """Keeps the parameters it is called with."""

    def __call__(self, parameters, size, **kwargs):
        self.calls = [*getattr(self, "calls", []), parameters]
        return super().__call__(parameters, size, **kwargs)


@torch.no_grad()
def sampled(image, network, samples=3, **options):
    return momentum_inferer(samples=samples, **options)(image, network)


@pytest.fixture(scope="module")
def network_with_dropout():
    return make(features=4, stride=2, dropout=0.2)


@wholes
def test_samples_differ_and_their_spread_is_that_of_the_velocities(size):
    network, image = make(len(size), stride=2, dropout=0.2), smooth_pair(size, 2)
    deformation = Recording(KERNEL, 1.0, 2, 2)
    inferer = momentum_inferer(deformation=deformation, samples=3)
    with torch.no_grad():
        pred = inferer(image, network)
    assert pred["ddf_samples"].shape == (2, 3, len(size), *size)
    momenta = deformation.calls[-3:]
    mean = torch.stack(momenta).mean(0)
    torch.testing.assert_close(pred["momentum"], mean)
    torch.testing.assert_close(pred["ddf"], vector_momentum()(mean, size)["ddf"])
    fields = [vector_momentum()(momentum, size) for momentum in momenta]
    torch.testing.assert_close(pred["ddf_samples"], torch.stack([field["ddf"] for field in fields], 1))
    torch.testing.assert_close(pred["velocity_sd"], torch.stack([field["velocity"] for field in fields]).std(0))
    for i, k in itertools.combinations(range(3), 2):
        assert (pred["ddf_samples"][:, i] != pred["ddf_samples"][:, k]).any()
    assert (pred["velocity_sd"].flatten(1).mean(1) > 0).all()


def test_samples_follow_the_seed(network_with_dropout):
    image = smooth_pair((20, 26))
    first, again, other = (sampled(image, network_with_dropout, seed=s)["ddf_samples"] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_one_sample_has_no_deviation(network_with_dropout):
    pred = sampled(smooth_pair((20, 26)), network_with_dropout, samples=1)
    assert "velocity_sd" not in pred
    torch.testing.assert_close(pred["ddf_samples"][:, 0], pred["ddf"])


def test_without_samples_dropout_is_off(network_with_dropout):
    image = smooth_pair((20, 26))
    with torch.no_grad():
        first, again = (momentum_inferer()(image, network_with_dropout) for _ in range(2))
    assert torch.equal(first["ddf"], again["ddf"])
    assert "ddf_samples" not in first


@pytest.mark.parametrize("mode", ["eval", "train", "eval but an encoder", "train but an encoder"])
def test_sampling_leaves_modes_and_random_numbers_alone(mode):
    network = make(stride=2, dropout=0.2).train(mode.startswith("train"))
    if mode.endswith("encoder"):
        network.fixed.train(not network.training)
    before = [module.training for module in network.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    sampled(smooth_pair((20, 26)), network, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == before


@pytest.mark.parametrize("network", [make(stride=2), nn.Conv2d(2, 2, 1)], ids=["probability 0", "none"])
def test_a_network_without_dropout_has_no_samples(network):
    with pytest.raises(ValueError, match="samples need a network that was trained with dropout"):
        sampled(smooth_pair((20, 26)), network)


def test_the_shipped_weights_can_be_sampled():
    config = bundle_config("quicksilver", ["inference"], samples=3)
    network = config.get_parsed_content("network").eval()
    load_weights(network, config.get_parsed_content("weights"), "quicksilver")
    image = smooth_pair((32, 32, 32))
    pred = config.get_parsed_content("inferer")(image, network)
    assert pred["ddf_samples"].shape == (1, 3, 3, 32, 32, 32)
    assert pred["velocity_sd"].mean() > 0.01
    alone = bundle_config("quicksilver", ["inference"])
    assert alone.get_parsed_content("weights").endswith("/model.pt")
    assert alone.get_parsed_content("predict").correction is not None


def test_a_negative_number_of_samples_is_refused():
    with pytest.raises(ValueError, match="at least 0, got -1"):
        momentum_inferer(samples=-1)
