"""Gaussian velocities and samples of them."""

import pytest
import torch
from methods.voxelmorph_probabilistic.cases import both, gaussian_parameters, seeded

from custom_components.deformations.velocity import StationaryVelocity
from custom_components.fields import compose
from custom_components.methods.voxelmorph_probabilistic.deformation import GaussianVelocity


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
