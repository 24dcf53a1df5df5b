"""Cycles and identities of VoxelMorph: what they cost, and what they are without weight."""

import pytest
import torch
from torch import nn

from custom_components.data.phantoms import phantom_pair
from custom_components.deformations.velocity import Displacement, StationaryVelocity
from custom_components.fields import identity_grid, warp
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.multistep import swapped
from custom_components.losses.pair import pair_loss
from custom_components.methods.voxelmorph.cycle import CycleInferer, CycleLoss

SIZES = [(40, 36), (24, 22, 20)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])


class Centres(nn.Module):
    """The shift from one image's centre of mass to the other's: what two blobs of one shape need."""

    def forward(self, image):
        grid = identity_grid(image.shape[2:])
        centres = (image.unsqueeze(2) * grid).flatten(3).sum(3) / image.unsqueeze(2).flatten(3).sum(3)
        shift = centres[:, 0] - centres[:, 1]
        return shift.view(*shift.shape, *[1] * (image.ndim - 2)).expand(-1, -1, *image.shape[2:])


def blob(size, centre):
    where = identity_grid(size) - torch.tensor(centre).view(-1, *[1] * len(size))
    return torch.exp(-where.square().sum(0) / 32)[None, None]


def learner(d):
    torch.manual_seed(0)
    layer = nn.Conv2d if d == 2 else nn.Conv3d
    return nn.Sequential(layer(2, 8, 3, padding=1), nn.LeakyReLU(), layer(8, d, 3, padding=1))


def registration():
    return RegistrationInferer(Displacement())


def image_of(pair):
    return torch.cat([pair["moving"], pair["fixed"]], 1)


@both
def test_without_weights_it_is_the_registration_alone(size):
    pair, network = phantom_pair(size, seed=1), learner(len(size))
    loss = pair_loss(0.1, regularized="ddf")
    plain = loss(registration()(image_of(pair), network), pair)
    found = CycleLoss(loss)(CycleInferer(registration())(image_of(pair), network), pair)
    assert float(found.detach()) == pytest.approx(float(plain.detach()), abs=1e-6)


@both
def test_equal_images_that_stay_cost_nothing(size):
    pair = phantom_pair(size, seed=1)
    pair = {"moving": pair["fixed"], "fixed": pair["fixed"]}
    pred = CycleInferer(registration(), cycle=True, identity=True)(image_of(pair), Centres())
    loss = CycleLoss(pair_loss(1.0, regularized="ddf"), 0.1, 0.5)
    total = loss(pred, pair)
    terms = pred["terms"]
    assert float(terms["cycle"]) < 1e-7
    assert float(terms["regularization"]) == 0
    assert float(terms["identity"]) == pytest.approx(0.5 * float(terms["similarity"]))
    assert float(total.detach()) == pytest.approx(1.5 * float(terms["similarity"]))


def test_a_shift_and_its_opposite_bring_the_image_back():
    pair = {"moving": blob((40, 36), (20.0, 17.0)), "fixed": blob((40, 36), (17.0, 19.0))}
    pred = CycleInferer(registration(), cycle=True)(image_of(pair), Centres())
    torch.testing.assert_close(pred["warped"], pair["fixed"], atol=0.01, rtol=0)
    torch.testing.assert_close(pred["returned"], pair["moving"], atol=0.02, rtol=0)
    torch.testing.assert_close(pred["back"]["returned"], pair["fixed"], atol=0.02, rtol=0)
    assert "itself" not in pred


def test_the_cycle_is_what_both_maps_leave_of_an_image():
    pair, network = phantom_pair((40, 36), seed=1), learner(2)
    pred = CycleInferer(registration(), cycle=True, identity=True)(image_of(pair), network)
    a, b = pred["warped"], pred["back"]["warped"]
    torch.testing.assert_close(b, registration()(torch.cat([pair["fixed"], pair["moving"]], 1), network)["warped"])
    torch.testing.assert_close(pred["returned"], warp(a, network(torch.cat([a, b], 1))))
    torch.testing.assert_close(pred["back"]["returned"], warp(b, network(torch.cat([b, a], 1))))
    itself = warp(pair["fixed"], network(torch.cat([pair["fixed"]] * 2, 1)))
    torch.testing.assert_close(pred["itself"]["warped"], itself)


def test_exchanging_the_images_leaves_the_loss():
    pair, network = phantom_pair((40, 36), seed=1), learner(2)
    loss = CycleLoss(pair_loss(0.1, regularized="ddf"), 0.1, 0.5)
    register = CycleInferer(registration(), cycle=True, identity=True)
    values = [float(loss(register(image_of(one), network), one).detach()) for one in (pair, swapped(pair))]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_all_terms_have_gradients_and_lower_the_loss():
    pair, network = phantom_pair((40, 36), seed=1), learner(2)
    loss = CycleLoss(pair_loss(0.1), 0.5, 0.5)
    register = CycleInferer(RegistrationInferer(StationaryVelocity()), cycle=True, identity=True)
    optimizer, losses = torch.optim.Adam(network.parameters(), 0.003), []
    for _ in range(25):
        optimizer.zero_grad()
        pred = register(image_of(pair), network)
        total = loss(pred, pair)
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert set(pred["terms"]) == {"similarity", "regularization", "cycle", "identity"}
    assert losses[-1] < 0.97 * losses[0]


def test_wrong_weights_are_refused():
    with pytest.raises(ValueError, match="cycle_weight"):
        CycleLoss(pair_loss(1.0), -0.1)
