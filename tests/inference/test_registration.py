"""The inferer: warps, batches, precision, prediction and refinement."""

import pytest
import torch
from inference.cases import both

from custom_components.deformations.velocity import StationaryVelocity
from custom_components.fields import warp
from custom_components.inference.prediction import NetworkPredictor, OptimizingPredictor, Prediction
from custom_components.inference.pyramid import shrink
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
    pred = RegistrationInferer(StationaryVelocity(), NetworkPredictor("bfloat16"))(image, network)
    assert all(value.dtype == torch.float32 for value in pred.values())
    exact = RegistrationInferer(StationaryVelocity())(image, network)["ddf"]
    assert (pred["ddf"] - exact).abs().max() < 0.05 * exact.abs().max()


class Recording:
    """A refinement that keeps what it is called with."""

    def __call__(self, moving, fixed, parameters=None, masks=None, *, constants=None, deformation=None, finer=1):
        self.parameters, self.masks, self.constants, self.deformation = parameters, masks, constants, deformation
        self.finer = finer
        return torch.ones(1, 2, 8, 9)


class Foretold:
    """Predicts parameters in a deformation of its own."""

    def __init__(self, deformation):
        self.deformation = deformation

    def __call__(self, image, network, deformation, *, masks=None, **options):
        return Prediction(network(image, **options), self.deformation, {"said": masks})


def test_what_a_prediction_says_reaches_the_refinement_and_the_result():
    """The deformation that belongs to the parameters, masks, options; the extra entries."""
    refinement, coarse = Recording(), StationaryVelocity(num_steps=1)
    inferer = RegistrationInferer(StationaryVelocity(), Foretold(coarse), refinement=refinement)
    masks, hyper = {"mask_fixed": torch.ones(1, 1, 16, 18)}, torch.zeros(1, 1)
    pred = inferer(torch.rand(1, 2, 16, 18), lambda image, hyper: torch.zeros(1, 2, 8, 9), masks=masks, hyper=hyper)
    assert pred["said"] is refinement.masks is masks
    assert refinement.deformation is coarse
    assert refinement.constants == {"hyper": hyper}
    assert not refinement.parameters.any()
    assert torch.equal(pred["ddf"], coarse(torch.ones(1, 2, 8, 9), (16, 18))["ddf"])


def test_an_optimum_needs_no_network():
    refinement = Recording()
    pred = RegistrationInferer(StationaryVelocity(), OptimizingPredictor(refinement))(torch.rand(1, 2, 16, 18), None)
    assert refinement.parameters is None
    assert torch.equal(pred["svf"], torch.ones(1, 2, 8, 9))


def test_a_network_gets_the_options_of_the_predictor_and_of_the_batch():
    def network(image, part, hyper):
        assert (part, hyper) == ("affine", 0.5)
        return torch.zeros(1, 2, 8, 9)

    RegistrationInferer(StationaryVelocity(), NetworkPredictor(part="affine"))(
        torch.rand(1, 2, 16, 18), network, hyper=0.5
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NetworkPredictor("int8"), "precision float32, bfloat16 or float16, got 'int8'"),
        (lambda: RegistrationInferer(StationaryVelocity())(torch.rand(1, 3, 16, 16), None), "equal channels, got 3"),
        (lambda: RegistrationInferer(StationaryVelocity(), draw=True), "random deformation .* got StationaryVelocity"),
    ],
)
def test_wrong_arguments_of_the_inferer_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@both
def test_a_network_may_see_a_coarser_pair_than_the_one_that_is_warped(size):
    network = VoxelMorphUNet(len(size), half_resolution=True, flow_std=0.05)
    image = torch.rand(1, 2, *[2 * n for n in size])
    inferer = RegistrationInferer(StationaryVelocity())
    pred, coarse = inferer(image, network, finer=2), inferer(shrink(image, 2), network)
    assert pred["ddf"].shape[2:] == image.shape[2:]
    torch.testing.assert_close(pred["svf"], coarse["svf"])


def test_a_refinement_hears_how_much_coarser_its_start_is():
    refine = Recording()
    inferer = RegistrationInferer(StationaryVelocity(), refinement=refine)
    inferer(torch.rand(1, 2, 32, 32), VoxelMorphUNet(2, half_resolution=True), finer=2)
    assert refine.finer == 2
    assert refine.parameters.shape[2:] == (8, 8)
