"""The probabilistic objective reaches every weight."""

import pytest
import torch

from custom_components.fields import warp
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.similarity import MSE
from custom_components.methods.voxelmorph_probabilistic.deformation import GaussianVelocity
from custom_components.methods.voxelmorph_probabilistic.objective import GaussianKL
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet

SIZES = [(13, 16), (11, 12, 10)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])


@both
@pytest.mark.parametrize("exact", [False, True])
def test_the_bidirectional_probabilistic_objective_reaches_every_weight(size, exact):
    torch.manual_seed(0)
    d = len(size)
    network = VoxelMorphUNet(
        d, encoder_channels=(4, 4), decoder_channels=(4, 4, 4), half_resolution=True, log_variance=-10.0
    )
    batch = {"moving": torch.rand(2, 1, *size), "fixed": torch.rand(2, 1, *size)}
    kl = GaussianKL(10.0, exact=exact)
    loss = RegistrationLoss(MSE(0.05), kl, 1.0, regularized="posterior", bidirectional=True)
    inferer = RegistrationInferer(GaussianVelocity(prior_precision=10.0), inverse=True, draw=True)
    pred = inferer(torch.cat([batch["moving"], batch["fixed"]], 1), network)
    loss(pred, batch).backward()
    torch.testing.assert_close(pred["terms"]["regularization"], kl(pred["posterior"].detach()))
    there = MSE(0.05)(pred["warped"], batch["fixed"])
    back = MSE(0.05)(warp(batch["fixed"], pred["inverse_ddf"]), batch["moving"])
    torch.testing.assert_close(pred["terms"]["similarity"], ((there + back) / 2).detach())
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
