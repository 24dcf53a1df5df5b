"""Velocities and displacements as deformations."""

import pytest
import torch

from custom_components.data.phantoms import random_velocity
from custom_components.deformations.velocity import Displacement, StationaryVelocity
from custom_components.fields import compose

SIZES = [(33, 28), (25, 22, 20)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])


@both
@pytest.mark.parametrize(
    "deformation", [StationaryVelocity(), Displacement(stride=2)], ids=["velocity", "displacement"]
)
def test_zero_parameters_are_the_identity(size, deformation):
    parameters = torch.zeros(2, len(size), *deformation.parameter_size(size))
    fields = deformation(parameters, size, inverse=True)
    assert fields["ddf"].shape == (2, len(size), *size)
    assert fields["ddf"].abs().max() == 0
    assert fields["inverse_ddf"].abs().max() == 0


def test_parameters_are_rounded_up_on_odd_sizes():
    assert StationaryVelocity(stride=2).parameter_size((33, 28)) == [17, 14]


@both
@pytest.mark.parametrize(
    "deformation", [StationaryVelocity(), Displacement(stride=2)], ids=["velocity", "displacement"]
)
def test_inverse_field_undoes_the_field(size, deformation):
    parameters = 0.5 * random_velocity(deformation.parameter_size(size), generator=torch.Generator().manual_seed(0))
    fields = deformation(parameters, size, inverse=True)
    assert fields["ddf"].abs().max() > 0.5
    assert compose(fields["ddf"], fields["inverse_ddf"]).abs().mean() < 0.05
