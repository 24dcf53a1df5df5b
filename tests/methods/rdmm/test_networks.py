"""Networks that give the weights of a metric."""

import pytest
import torch
from methods.rdmm.cases import both, metric, trained_looking
from torch import nn

from custom_components.methods.rdmm.networks import MetricNetwork, RegionMomentumNetwork, RegularizerNetwork
from custom_components.networks.momentum_net import MomentumNetwork


def test_networks_of_the_papers_have_their_sizes():
    def count(network):
        return sum(parameter.numel() for parameter in network.parameters())

    assert count(RegularizerNetwork(3, 5)) == 450_815
    assert count(MetricNetwork(2, 4, sees_momentum=False)) == 2_548
    assert count(MetricNetwork(3, 4, sees_momentum=False)) == 12_548


@both
def test_regularizer_gives_small_weights_at_the_start_on_half_the_grid(size):
    network, image = RegularizerNetwork(len(size), 3), torch.rand(2, 2, *size)
    x = network(image)
    assert x.shape == (2, 3, *[-(-n // 2) for n in size])
    assert 0.01 < float(x.std()) < 0.04
    assert not torch.allclose(x, network(image.flip(1)))
    assert torch.equal(torch.jit.script(network)(image), x)


@both
def test_region_network_gives_momentum_and_weights(size):
    d = len(size)
    parts = MomentumNetwork(d, (4, 4, 4)), RegularizerNetwork(d, 3)
    network, image = RegionMomentumNetwork(*parts).eval(), torch.rand(1, 2, *size)
    expected = torch.cat([part(image) for part in parts], 1)
    assert torch.equal(network(image), expected)
    assert torch.equal(torch.jit.script(network)(image), expected)
    assert metric(quantity="root")(expected, size)["sigma"].shape[2:] == expected.shape[2:]


@both
def test_stages_of_the_metric_network(size):
    d = len(size)
    network = trained_looking(MetricNetwork(d, 3)).eval()
    nn.init.constant_(network.offset, 0.02)
    seen = torch.rand(2, 1 + d, *size)
    network.stage = 0
    assert not network(seen).any()
    network.stage = 1
    assert torch.allclose(network(seen), torch.full((2, 3, *size), 0.2))
    network.stage = 2
    assert float(network(seen).std()) > 0.05
    assert torch.equal(torch.jit.script(network)(seen), network(seen))


def test_a_stage_trains_its_own_part_and_every_part_has_a_gradient():
    network = MetricNetwork(2, 3)
    seen = torch.rand(1, 3, 16, 16)
    for stage, trained in ((0, set()), (1, {"offset"}), (2, {"offset", "slope"})):
        network.stage = stage
        network.zero_grad()
        (network(seen) * torch.rand(1, 3, 16, 16)).sum().backward()
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        assert all(grad is not None for grad in gradients.values())
        moved = {name for name in ("offset", "slope") if gradients[name].any()}
        assert moved == trained


def test_a_network_may_be_blind_to_the_momentum():
    seen = torch.rand(1, 3, 12, 13)
    other = torch.cat([seen[:, :1], torch.rand(1, 2, 12, 13)], 1)
    blind, seeing = (trained_looking(MetricNetwork(2, 3, sees_momentum=s)).eval() for s in (False, True))
    assert torch.equal(blind(seen), blind(other))
    assert not torch.allclose(seeing(seen), seeing(other))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RegularizerNetwork(4), "spatial_dims 2 or 3"),
        (lambda: RegularizerNetwork(2)(torch.rand(1, 3, 16, 16)), "a pair of 2-D images"),
        (lambda: MetricNetwork(3, 1), "at least 2 weights"),
        (lambda: MetricNetwork(2)(torch.rand(1, 2, 16, 16)), "an image and a momentum, 3 channels"),
    ],
)
def test_networks_refuse_settings_and_images_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
