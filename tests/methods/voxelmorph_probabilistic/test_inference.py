"""Samples of a registration, and the draws of its training."""

import pytest
import torch
from methods.voxelmorph_probabilistic.cases import both, gaussian_parameters, seeded

from custom_components.deformations.velocity import Displacement, StationaryVelocity
from custom_components.inference.registration import RegistrationInferer
from custom_components.methods.voxelmorph_probabilistic.deformation import GaussianVelocity
from custom_components.methods.voxelmorph_probabilistic.inference import SamplesInferer


def registered(parameters, deformation, size, *, samples=0, seed=0, **options):
    """What the inferer makes of a network that gives these parameters."""
    inferer = SamplesInferer(RegistrationInferer(deformation, **options), deformation, samples=samples, seed=seed)
    return inferer(torch.zeros(len(parameters), 2, *size), lambda _: parameters)


@both
def test_inferer_adds_samples_and_their_spread(size):
    parameters, deformation = gaussian_parameters(size), GaussianVelocity()
    state = torch.get_rng_state()
    pred = registered(parameters, deformation, size, samples=3, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(pred) == {"svf", "ddf", "posterior", "warped", "seconds", "ddf_samples", "velocity_sd"}
    assert torch.equal(pred["ddf"], deformation(parameters, size)["ddf"])
    assert torch.equal(pred["velocity_sd"], deformation.velocity_sd(parameters))
    assert pred["ddf_samples"].shape == (2, 3, len(size), *size)
    generator = seeded(5)
    for ddf in pred["ddf_samples"].unbind(1):
        assert torch.equal(ddf, deformation.draw(parameters, size, generator=generator)["ddf"])
    assert torch.equal(pred["ddf_samples"], registered(parameters, deformation, size, samples=3, seed=5)["ddf_samples"])
    assert not torch.equal(pred["ddf_samples"], registered(parameters, deformation, size, samples=3)["ddf_samples"])
    assert "ddf_samples" not in registered(parameters, deformation, size)


def test_inferer_in_training_draws_from_the_global_generator():
    size = (16, 14)
    parameters = gaussian_parameters(size)
    fields = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        fields.append(registered(parameters, GaussianVelocity(), size, inverse=True, draw=True)["ddf"])
    assert torch.equal(fields[0], fields[1])
    assert not torch.equal(fields[0], fields[2])


@pytest.mark.parametrize("deformation", [StationaryVelocity(), Displacement()])
def test_samples_of_a_deformation_without_uncertainty_are_refused(deformation):
    with pytest.raises(ValueError, match="expected samples of a deformation that has uncertainty"):
        SamplesInferer(RegistrationInferer(deformation), deformation, samples=2)
    with pytest.raises(ValueError, match="random deformation"):
        RegistrationInferer(deformation, draw=True)


def test_a_negative_number_of_samples_is_refused():
    deformation = GaussianVelocity()
    with pytest.raises(ValueError, match="-1 samples"):
        SamplesInferer(RegistrationInferer(deformation), deformation, samples=-1)


def test_samples_need_a_log_variance():
    velocity = torch.zeros(1, 2, 8, 7)
    with pytest.raises(ValueError, match="log variance; this one gives a velocity alone"):
        registered(velocity, GaussianVelocity(), (16, 14), samples=2)
