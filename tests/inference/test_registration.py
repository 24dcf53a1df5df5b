"""The inferer: warps, batches, precision, samples."""

import torch
from inference.cases import both

from custom_components.deformations.velocity import StationaryVelocity
from custom_components.fields import warp
from custom_components.inference.registration import RegistrationInferer
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet


@both
def test_inferer_warps_the_first_channel_onto_the_second(size):
    network = VoxelMorphUNet(len(size), half_resolution=True, flow_std=0.05)
    image = torch.rand(2, 2, *size)
    pred = RegistrationInferer(StationaryVelocity(), inverse=True)(image, network)
    assert set(pred) == {"svf", "ddf", "inverse_ddf", "warped", "seconds"}
    torch.testing.assert_close(pred["warped"], warp(image[:, :1], pred["ddf"]))
    assert pred["ddf"].shape == (2, len(size), *size)


def test_batch_equals_single_runs():
    network = VoxelMorphUNet(2, half_resolution=True, flow_std=0.05)
    inferer = RegistrationInferer(StationaryVelocity())
    image = torch.rand(3, 2, 32, 30)
    together = inferer(image, network)["ddf"]
    torch.testing.assert_close(together[1:2], inferer(image[1:2], network)["ddf"], atol=1e-5, rtol=1e-4)


def test_fields_stay_float32_when_the_network_does_not():
    network = VoxelMorphUNet(2, half_resolution=True, flow_std=0.05)
    image = torch.rand(1, 2, 32, 32)
    pred = RegistrationInferer(StationaryVelocity(), precision="bfloat16")(image, network)
    assert all(value.dtype == torch.float32 for value in pred.values())
    exact = RegistrationInferer(StationaryVelocity())(image, network)["ddf"]
    assert (pred["ddf"] - exact).abs().max() < 0.05 * exact.abs().max()
