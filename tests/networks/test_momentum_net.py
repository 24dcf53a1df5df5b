"""The momentum network."""

import pytest
import torch
from networks.cases import dimensions, random_pair

from custom_components.networks.momentum_net import MomentumNetwork


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
