"""The contract that all deformations keep."""

import pytest
import torch

from custom_components import fields
from custom_components.deformations.affine import AffineMap
from custom_components.deformations.base import Deformation
from custom_components.deformations.bspline import BSplineDeformation
from custom_components.deformations.kernels import HelmholtzKernel, MultiGaussianKernel
from custom_components.deformations.momentum import VectorMomentum
from custom_components.deformations.time_velocity import TimeVelocity
from custom_components.deformations.velocity import Displacement, StationaryVelocity
from custom_components.methods.rdmm.metric import MetricSettings, RegionSpecificMomentum, StationaryMetricMomentum
from custom_components.methods.voxelmorph_probabilistic.deformation import GaussianVelocity

KERNEL = MultiGaussianKernel((3.0, 6.0), padding="zeros")
DEFORMATIONS: list[Deformation] = [
    StationaryVelocity(),
    Displacement(stride=2),
    GaussianVelocity(),
    BSplineDeformation(4),
    TimeVelocity(HelmholtzKernel(4.0, 1.0, power=2), num_steps=3),
    VectorMomentum(KERNEL, num_steps=4),
    VectorMomentum(KERNEL, num_steps=4, stationary=True),
    VectorMomentum(KERNEL, (1.0, 1.5, 2.0), num_steps=4, quantity="root"),
    RegionSpecificMomentum(KERNEL, num_steps=4, metric=MetricSettings(2.0)),
    StationaryMetricMomentum(KERNEL, num_steps=4, metric=MetricSettings(2.0)),
]
SIZES = [(33, 28), (15, 14, 13)]


def named(deformation: Deformation) -> str:
    return type(deformation).__name__


def example(deformation: Deformation, size: tuple[int, ...], seed: int = 0) -> tuple[Deformation, torch.Tensor]:
    """A deformation with a spacing of that many axes, and smooth parameters that displace by a voxel or two."""
    d = len(size)
    if isinstance(deformation, VectorMomentum) and not isinstance(deformation.spacing, float):
        spacing = list(deformation.spacing)[:d]
        deformation = VectorMomentum(deformation.kernel, spacing, 4, quantity=deformation.quantity)
    shape = (1, deformation.parameter_channels(d), *deformation.parameter_size(size))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    parameters = MultiGaussianKernel((2.0,), padding="zeros")(noise)
    ddf = deformation(parameters, size)["ddf"]
    return deformation, parameters / ddf.norm(dim=1).max()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("deformation", DEFORMATIONS, ids=named)
def test_parameters_of_the_stated_shape_make_a_displacement_of_the_image_grid(deformation, size):
    deformation, parameters = example(deformation, size)
    assert deformation(parameters, size)["ddf"].shape == (1, len(size), *size)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("deformation", DEFORMATIONS, ids=named)
def test_zero_parameters_are_the_identity(deformation, size):
    deformation, parameters = example(deformation, size)
    made = deformation(torch.zeros_like(parameters), size, inverse=True)
    assert not made["ddf"].any()
    assert not made["inverse_ddf"].any()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("deformation", DEFORMATIONS, ids=named)
def test_the_inverse_composes_to_the_identity(deformation, size):
    deformation, parameters = example(deformation, size)
    made = deformation(parameters, size, inverse=True)
    inside = (slice(None), slice(None), *[slice(2, -2)] * len(size))
    for outer, inner in (("ddf", "inverse_ddf"), ("inverse_ddf", "ddf")):
        residual = fields.compose(made[outer], made[inner])[inside].norm(dim=1).max()
        assert residual < 0.1 * made["ddf"].norm(dim=1).max()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("deformation", DEFORMATIONS, ids=named)
def test_resized_parameters_make_the_same_map_on_a_finer_grid(deformation, size):
    deformation, parameters = example(deformation, size)
    fine = tuple(2 * n - 1 for n in size)
    finer = deformation.on_grid(size, fine)
    on_fine = finer(finer.resize(parameters, finer.parameter_size(fine)), fine)["ddf"]
    expected = deformation(parameters, size)["ddf"]
    difference = fields.resize_field(on_fine, size) - expected
    # A kernel at the border sees another grid; vectors or lengths in the wrong unit would be a factor of two.
    assert difference.norm(dim=1).mean() < 0.2 * expected.norm(dim=1).mean()


@pytest.mark.parametrize("deformation", DEFORMATIONS, ids=named)
def test_resizing_to_the_same_grid_changes_nothing(deformation):
    deformation, parameters = example(deformation, SIZES[0])
    assert torch.equal(deformation.resize(parameters, parameters.shape[2:]), parameters)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("deformation", DEFORMATIONS, ids=named)
def test_the_unknown_stands_for_its_parameters(deformation, size):
    deformation, parameters = example(deformation, size)
    unknown = deformation.to_unknown(parameters, size)
    torch.testing.assert_close(deformation.from_unknown(unknown, size), parameters)


@pytest.mark.parametrize("deformation", [d for d in DEFORMATIONS if not d.is_random], ids=named)
def test_a_deformation_without_uncertainty_refuses_to_draw(deformation):
    deformation, parameters = example(deformation, SIZES[0])
    for call in (lambda: deformation.draw(parameters, SIZES[0]), lambda: deformation.velocity_sd(parameters)):
        with pytest.raises(ValueError, match=f"{type(deformation).__name__} has no uncertainty"):
            call()


def test_a_random_deformation_says_so():
    assert [d for d in DEFORMATIONS if d.is_random] == [DEFORMATIONS[2]]


def test_an_affine_map_has_no_grid_of_parameters():
    matrix = torch.eye(2, 3)[None]
    for call in (lambda: AffineMap().parameter_size((9, 8)), lambda: AffineMap().resize(matrix, (9, 8))):
        with pytest.raises(ValueError, match="a matrix: they have no grid"):
            call()
