"""The claim: trained with labels, it registers images of two looks, of which it then sees nothing but the images."""

from __future__ import annotations

import pytest
import torch

from custom_components.deformations.velocity import Displacement
from custom_components.fields import warp
from custom_components.inference.registration import RegistrationInferer
from custom_components.methods.weakly_supervised.networks import CompositeNetwork, GlobalNetwork, LocalNetwork
from custom_components.methods.weakly_supervised.objective import MultiScaleDice, multi_scale_dice

SIZE = (32, 32)


def pairs(count: int, seed: int) -> dict[str, torch.Tensor]:
    """Discs somewhere: dark on bright noise in the moving image, an outline in the fixed one."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*[torch.arange(float(n)) for n in SIZE], indexing="ij")
    centre = 16 + 5 * (2 * torch.rand(2, 2, count, 1, 1, 1, generator=generator) - 1)
    radius = 5 + 2 * torch.rand(2, count, 1, 1, 1, generator=generator)
    apart = ((y - centre[0]).square() + (x - centre[1]).square()).sqrt() - radius
    noise = 0.2 * torch.rand(2, count, 1, *SIZE, generator=generator)
    label = (apart < 0).float()
    return {
        "moving": 0.8 - 0.6 * label[0] + noise[0],
        "fixed": 0.8 * torch.exp(-apart[1].square() / 2) + noise[1],
        "label_moving": label[0],
        "label_fixed": label[1],
    }


@pytest.fixture(scope="module")
def trained():
    """A network after two hundred small steps, and the loss of each."""
    torch.manual_seed(0)
    network = CompositeNetwork(GlobalNetwork(2, SIZE, start=4), LocalNetwork(2, start=4, extracted=(0, 1, 2, 3)))
    inferer, loss, losses = RegistrationInferer(Displacement()), MultiScaleDice(), []
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for step in range(200):
        batch = pairs(8, step)
        pred = inferer(torch.cat([batch["moving"], batch["fixed"]], 1), network)
        value = loss(pred["ddf"], batch["label_moving"], batch["label_fixed"])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return network.eval(), losses


def test_the_loss_falls(trained):
    _, losses = trained
    assert sum(losses[-20:]) < 0.85 * sum(losses[:20])


@torch.no_grad()
def dice(network, batch, part):
    ddf = network(torch.cat([batch["moving"], batch["fixed"]], 1), part=part)
    return float(multi_scale_dice(warp(batch["label_moving"], ddf), batch["label_fixed"], [0]).mean())


def test_images_alone_bring_unseen_structures_together_and_the_local_part_adds_to_the_affine_one(trained):
    batch = pairs(64, 1000)
    before = float(multi_scale_dice(batch["label_moving"], batch["label_fixed"], [0]).mean())
    affine, whole = (dice(trained[0], batch, part) for part in ("affine", "all"))
    assert before < 0.6
    assert affine > before + 0.1
    assert whole > before + 0.2
