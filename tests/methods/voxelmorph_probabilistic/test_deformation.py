"""Gaussian velocities and samples of them."""

import pytest
import torch

from custom_components.data.phantoms import random_velocity
from custom_components.deformations.velocity import Displacement, StationaryVelocity
from custom_components.fields import compose
from custom_components.inference.registration import RegistrationInferer
from custom_components.methods.voxelmorph_probabilistic.deformation import GaussianVelocity

SIZES = [(33, 28), (25, 22, 20)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])


def gaussian_parameters(size, log_variance=-3.0, batch=2):
    """A smooth mean of half a voxel at half resolution, and a constant log variance."""
    grid = StationaryVelocity().parameter_size(size)
    mean = random_velocity(grid, amplitude=0.5, batch=batch, generator=torch.Generator().manual_seed(0))
    return torch.cat([mean, torch.full_like(mean, log_variance)], 1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@both
def test_a_gaussian_velocity_is_called_as_its_mean(size):
    parameters, deformation = gaussian_parameters(size), GaussianVelocity()
    expected = StationaryVelocity()(parameters[:, : len(size)], size, inverse=True)
    for fields in (deformation(parameters, size, inverse=True) for _ in range(2)):
        assert set(fields) == {"svf", "ddf", "inverse_ddf", "posterior"}
        assert fields["posterior"] is parameters
        assert all(torch.equal(fields[key], value) for key, value in expected.items())
    assert deformation.parameter_size(size) == StationaryVelocity().parameter_size(size)


@both
def test_equal_seeds_draw_equal_velocities_and_others_others(size):
    parameters, deformation = gaussian_parameters(size), GaussianVelocity()
    first, again, other = (deformation.draw(parameters, size, generator=seeded(seed))["svf"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 0.1
    assert (first[0] - first[1] - (parameters[0] - parameters[1])[: len(size)]).abs().mean() > 0.1


@both
def test_inverse_of_a_drawn_field_is_that_of_the_same_sample(size):
    parameters, deformation = gaussian_parameters(size), GaussianVelocity(smoothing=2.0)
    fields = deformation.draw(parameters, size, inverse=True, generator=seeded(0))
    expected = StationaryVelocity()(fields["svf"], size, inverse=True)
    assert torch.equal(fields["inverse_ddf"], expected["inverse_ddf"])
    assert fields["ddf"].abs().max() > 0.5
    assert compose(fields["ddf"], fields["inverse_ddf"]).abs().mean() < 0.05
    assert "inverse_ddf" not in deformation.draw(parameters, size)


@both
@pytest.mark.parametrize("smoothing", [None, 0, 1.5])
def test_a_certain_velocity_is_drawn_as_its_mean(size, smoothing):
    parameters = gaussian_parameters(size, log_variance=-60.0)
    fields = GaussianVelocity(smoothing=smoothing).draw(parameters, size)
    torch.testing.assert_close(fields["svf"], parameters[:, : len(size)], rtol=0, atol=1e-6)
    assert fields["posterior"] is parameters


@both
def test_a_velocity_without_uncertainty_is_integrated_but_not_drawn(size):
    mean, deformation = gaussian_parameters(size)[:, : len(size)], GaussianVelocity()
    assert torch.equal(deformation(mean, size)["ddf"], StationaryVelocity()(mean, size)["ddf"])
    assert "posterior" not in deformation(mean, size)
    for call in (lambda: deformation.draw(mean, size), lambda: deformation.velocity_sd(mean)):
        with pytest.raises(ValueError, match=f"mean and log variance, {2 * len(size)} channels"):
            call()


def test_gradients_reach_mean_and_log_variance_through_a_sample():
    parameters = gaussian_parameters((16, 14)).requires_grad_()
    GaussianVelocity().draw(parameters, (16, 14), generator=seeded(0))["ddf"].square().sum().backward()
    assert parameters.grad.isfinite().all()
    assert all(part.abs().min() > 0 for part in parameters.grad.chunk(2, 1))


def sampled(parameters, deformation, size, **kwargs):
    """What the inferer makes of a network that gives these parameters."""
    return RegistrationInferer(deformation, **kwargs)(torch.zeros(len(parameters), 2, *size), lambda _: parameters)


@both
def test_inferer_adds_samples_and_their_spread(size):
    parameters, deformation = gaussian_parameters(size), GaussianVelocity()
    state = torch.get_rng_state()
    pred = sampled(parameters, deformation, size, samples=3, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(pred) == {"svf", "ddf", "posterior", "warped", "seconds", "ddf_samples", "velocity_sd"}
    assert torch.equal(pred["ddf"], deformation(parameters, size)["ddf"])
    assert torch.equal(pred["velocity_sd"], deformation.velocity_sd(parameters))
    assert pred["ddf_samples"].shape == (2, 3, len(size), *size)
    generator = seeded(5)
    for ddf in pred["ddf_samples"].unbind(1):
        assert torch.equal(ddf, deformation.draw(parameters, size, generator=generator)["ddf"])
    assert torch.equal(pred["ddf_samples"], sampled(parameters, deformation, size, samples=3, seed=5)["ddf_samples"])
    assert not torch.equal(pred["ddf_samples"], sampled(parameters, deformation, size, samples=3)["ddf_samples"])
    assert "ddf_samples" not in sampled(parameters, deformation, size)


def test_inferer_in_training_draws_from_the_global_generator():
    size = (16, 14)
    parameters, draw = gaussian_parameters(size), GaussianVelocity().draw
    fields = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        fields.append(sampled(parameters, draw, size, inverse=True)["ddf"])
    assert torch.equal(fields[0], fields[1])
    assert not torch.equal(fields[0], fields[2])


@pytest.mark.parametrize("deformation", [StationaryVelocity(), Displacement(), GaussianVelocity().draw])
def test_samples_of_a_deformation_without_uncertainty_are_refused(deformation):
    with pytest.raises(ValueError, match="expected samples of a deformation that has uncertainty"):
        RegistrationInferer(deformation, samples=2)
    with pytest.raises(ValueError, match="-1 samples"):
        RegistrationInferer(GaussianVelocity(), samples=-1)
