"""Inference of the affine network while it is trained."""

import torch
from methods.avsm.cases import both

from custom_components.data.phantoms import phantom_pair
from custom_components.deformations.affine import AffineMap
from custom_components.fields import warp
from custom_components.inference.both_ways import BothWaysInferer
from custom_components.inference.registration import RegistrationInferer
from custom_components.methods.avsm.inference import KeypointPredictor
from custom_components.networks.affine_keypoints import AffineKeypointNetwork, MultiStepAffine


@both
def test_affine_networks_give_both_ways_and_keypoints(size):
    torch.manual_seed(0)
    d = len(size)
    network = MultiStepAffine(AffineKeypointNetwork(d, (4, 8), 1, 3**d), num_steps=2)
    image = images(size)
    moving, fixed = image.chunk(2, 1)
    pred = BothWaysInferer(RegistrationInferer(AffineMap(), KeypointPredictor()))(image, network)
    torch.testing.assert_close(pred["matrix"], network(image), atol=1e-5, rtol=0)
    torch.testing.assert_close(pred["back"]["matrix"], network(torch.cat([fixed, moving], 1)), atol=1e-5, rtol=0)
    torch.testing.assert_close(pred["warped"], warp(moving, pred["ddf"]))
    torch.testing.assert_close(pred["back"]["warped"], warp(fixed, pred["back"]["ddf"]))
    for found, expected in zip(pred["keypoints"], network.network.keypoints(image)[:2], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    plain = RegistrationInferer(AffineMap(), KeypointPredictor(keypoints=False))(image, network)
    torch.testing.assert_close(plain["ddf"], pred["ddf"], atol=1e-4, rtol=0)
    assert "keypoints" not in plain


def images(size):
    pair = phantom_pair(size, batch=2, seed=3)
    return torch.cat([pair["moving"], pair["fixed"]], 1)
