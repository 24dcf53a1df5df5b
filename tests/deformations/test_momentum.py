"""Momenta as parameters of a deformation: units, grids, unknowns of an optimiser."""

import pytest
import torch
from deformations.cases import both, bumps, models, random_case, shot_of, tensors, tiny
from torch.autograd import gradcheck

from custom_components import fields
from custom_components.deformations.kernels import HelmholtzKernel, MultiGaussianKernel, gaussian_kernel
from custom_components.deformations.momentum import VectorMomentum
from custom_components.networks.momentum_net import MomentumNetwork


@both
def test_the_root_of_a_momentum_shoots_as_the_momentum(size):
    momentum = 3 * torch.randn(2, len(size), *[-(-n // 2) for n in size])
    plain = shots()
    rooted = VectorMomentum(plain.kernel, num_steps=5, stationary=True, quantity="root")
    root = plain.to_unknown(momentum, size)
    torch.testing.assert_close(rooted(root, size)["ddf"], plain(momentum, size)["ddf"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rooted(root, size)["momentum"], momentum, atol=1e-3, rtol=1e-3)
    assert rooted.to_unknown(root, size) is root
    assert rooted.from_unknown(root, size) is root


def test_a_limited_momentum_is_bounded():
    network, image = MomentumNetwork(2, (4, 4, 4), head_std=10.0, limit=2.0), torch.rand(1, 2, 16, 16)
    free = MomentumNetwork(2, (4, 4, 4), head_std=10.0, scale=3.0)
    free.load_state_dict(network.state_dict())
    assert free(image).abs().max() > 6
    torch.testing.assert_close(network(image), 2 * torch.tanh(free(image) / 6))
    with pytest.raises(ValueError, match="scale and limit above 0"):
        MomentumNetwork(limit=0)


def shots():
    return VectorMomentum(MultiGaussianKernel((1.5, 3.0)), num_steps=5, stationary=True)


def deformed(deformation, size, amplitude=1.0):
    """Smooth parameters for images of a size, and what the deformation makes of them."""
    small = deformation.parameter_size(size)
    parameters = amplitude * bumps(small, 1.0) * 4 / deformation.stride
    return parameters, deformation(parameters, size, inverse=True)


GRIDS = [((33, 28), (1.0, 0.8)), ((15, 16, 13), (1.0, 0.8, 1.3))]
grids = pytest.mark.parametrize(("size", "spacing"), GRIDS, ids=["2-D", "3-D"])
WIDE = gaussian_kernel(2.5, padding="zeros")


@grids
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("stationary", [False, True])
def test_parameters_are_a_momentum_in_voxels_of_their_grid(size, spacing, stride, stationary):
    deformation = VectorMomentum(WIDE, spacing, num_steps=6, stride=stride, stationary=stationary)
    parameters, pred = deformed(deformation, size)
    unit = torch.tensor(deformation.parameter_spacing(parameters, size), dtype=torch.float64)
    unit = unit.view(1, -1, *[1] * len(size))
    shot = shot_of(
        parameters * unit,
        WIDE,
        spacing=unit.flatten().tolist(),
        num_steps=6,
        model="stationary" if stationary else "geodesic",
        inverse=True,
    )
    assert torch.equal(pred["momentum"], parameters)
    torch.testing.assert_close(pred["ddf"], fields.resize_field(shot.ddf, size))
    torch.testing.assert_close(pred["inverse_ddf"], fields.resize_field(shot.inverse_ddf, size))
    torch.testing.assert_close(pred["velocity"] * unit, shot.velocity)
    torch.testing.assert_close(pred["energy"], (parameters * pred["velocity"] * unit**2).sum(1).flatten(1).mean(1))


@grids
@pytest.mark.parametrize("stationary", [False, True])
def test_the_inverse_field_is_the_inverse(size, spacing, stationary):
    deformation = VectorMomentum(WIDE, spacing, stationary=stationary)
    _, pred = deformed(deformation, size, 1.0 if len(size) == 2 else 3.0)
    assert pred["ddf"].abs().max() > 0.5
    assert fields.compose(pred["ddf"], pred["inverse_ddf"]).norm(dim=1).mean() < 0.03
    assert "inverse_ddf" not in deformation(pred["momentum"], size)


def test_stationary_momenta_differ_from_geodesics():
    size = (33, 28)
    ddfs = [deformed(VectorMomentum(WIDE, stationary=s), size)[1]["ddf"] for s in (False, True)]
    assert (ddfs[0] - ddfs[1]).abs().max() > 0.05 * ddfs[0].abs().max()


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_grids_of_odd_sizes_are_rounded_up_and_span_the_image(stride):
    deformation, size = VectorMomentum(WIDE, (1.0, 2.0), stride=stride), (33, 28)
    small = deformation.parameter_size(size)
    assert small == [-(-n // stride) for n in size]
    zero = torch.zeros(2, 2, *small)
    extents = [h * (n - 1) for h, n in zip(deformation.parameter_spacing(zero, size), small, strict=True)]
    assert extents == pytest.approx([32.0, 54.0])
    pred = deformation(zero, size, inverse=True)
    assert pred["ddf"].shape == pred["inverse_ddf"].shape == (2, 2, *size)
    assert not any(part.any() for part in pred.values())


def test_an_axis_of_one_voxel_keeps_its_spacing():
    deformation = VectorMomentum(WIDE, (1.0, 2.0, 3.0))
    assert deformation.parameter_spacing(torch.zeros(1, 3, 4, 1, 4), (8, 1, 7)) == pytest.approx((7 / 3, 2.0, 6.0))
    pred = deformation(torch.rand(1, 3, 4, 1, 4), (8, 1, 7))
    assert pred["ddf"].shape == (1, 3, 8, 1, 7)
    assert torch.isfinite(pred["ddf"]).all()


def test_no_spacing_is_a_spacing_of_one():
    without, with_one = (deformed(VectorMomentum(WIDE, s), (17, 15))[1] for s in (None, 1.0))
    assert torch.equal(without["ddf"], with_one["ddf"])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [gaussian_kernel(10.0, padding="zeros"), HelmholtzKernel(100.0, 1.0)], ids=str)
def test_another_grid_keeps_the_deformation(kernel, stride):
    size, small = (97, 81), (65, 61)
    deformation = VectorMomentum(kernel, (1.0, 1.2), stride=stride)
    parameters, pred = deformed(deformation, size, 6.0)
    coarse = deformation.on_grid(size, small)
    assert deformation.spacing == (1.0, 1.2)
    resized = fields.resize_field(parameters, coarse.parameter_size(small))
    other = coarse(resized, small, inverse=True)
    assert pred["ddf"].abs().max() > 4
    for name in ("ddf", "inverse_ddf"):
        error = fields.resize_field(other[name], size) - pred[name]
        assert error.abs().max() < 0.05 * pred[name].abs().max()
    torch.testing.assert_close(other["energy"], pred["energy"], rtol=0.03, atol=0)


@grids
@pytest.mark.parametrize(
    "kernel",
    [WIDE, MultiGaussianKernel((1.0, 3.0)), HelmholtzKernel(4.0, 1.0), HelmholtzKernel(4.0, 1.0, 2.0, power=2)],
    ids=str,
)
def test_unknowns_are_momenta_and_back(size, spacing, kernel):
    deformation = VectorMomentum(kernel, spacing)
    parameters, _ = deformed(VectorMomentum(WIDE, spacing), size)
    unknown = deformation.to_unknown(parameters, size)
    assert unknown.shape == parameters.shape
    torch.testing.assert_close(deformation.from_unknown(unknown, size), parameters)
    torch.testing.assert_close(deformation.to_unknown(deformation.from_unknown(parameters, size), size), parameters)
    assert not torch.allclose(unknown, parameters, rtol=0.01)


@pytest.mark.parametrize("kernel", [gaussian_kernel(2.0), HelmholtzKernel(4.0, 0.5, 1.0)], ids=str)
def test_the_energy_is_the_square_of_the_unknown(kernel):
    size, floor = (17, 15), 0.05
    deformation = VectorMomentum(kernel, stride=1, floor=floor)
    parameters = 0.1 * bumps(size)
    unknown = deformation.to_unknown(parameters, size)
    gain = kernel(torch.ones_like(parameters))
    square = (unknown.square() - floor * gain * parameters.square()).sum(1).flatten(1).mean(1)
    torch.testing.assert_close(deformation(parameters, size)["energy"], square)


@pytest.mark.parametrize("size", [(9, 8), (6, 7, 5)], ids=["2-D", "3-D"])
def test_deformations_are_differentiable(size):
    deformation = VectorMomentum(WIDE, (1.0, 0.8, 1.3)[: len(size)], num_steps=2)
    generator = torch.Generator().manual_seed(1)
    parameters = torch.randn(
        1, len(size), *deformation.parameter_size(size), dtype=torch.float64, generator=generator
    ).requires_grad_()

    def parts(p):
        pred = deformation(p, size, inverse=True)
        return pred["ddf"], pred["inverse_ddf"], pred["velocity"], pred["energy"]

    assert gradcheck(parts, (parameters,), fast_mode=True)
    unknown = deformation.to_unknown(parameters.detach(), size).requires_grad_()
    assert gradcheck(lambda u: deformation(deformation.from_unknown(u, size), size)["ddf"], (unknown,), fast_mode=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@models
@tiny
def test_gpu_agrees_with_cpu(model, size):
    momentum, kernel = random_case(size, 2, torch.float32)
    on_cpu = shot_of(momentum, kernel, model, inverse=True)
    on_gpu = shot_of(momentum.cuda(), kernel, model, inverse=True)
    for a, b in zip(tensors(on_cpu), tensors(on_gpu), strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-4, atol=1e-4)
