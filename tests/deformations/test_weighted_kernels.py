"""Kernels whose weights differ from place to place."""

from dataclasses import replace

import pytest
import torch

from custom_components.deformations.kernels import MultiGaussianKernel, gaussian_kernel
from custom_components.methods.rdmm.metric import RegionSpecificMomentum, _RegionFlow
from custom_components.methods.rdmm.weights import (
    border_mask,
)

BASE = (0.2, 0.3, 0.5)
VOXELS = MultiGaussianKernel((0.8, 1.5, 3.0), BASE, padding="zeros")
ANISOTROPIC = (1.0, 0.7, 1.4)


def random_case(size, batch=1, n=3, dtype=torch.float64):
    """Momentum and pre-weights in voxels, for a displacement of about half a voxel."""
    generator = torch.Generator().manual_seed(7)
    momentum = 2 * torch.randn(batch, len(size), *size, dtype=torch.float64, generator=generator)
    h = 0.2 + torch.rand(batch, n, *size, dtype=torch.float64, generator=generator)
    return momentum.to(dtype), (h / h.square().sum(1, keepdim=True).sqrt()).to(dtype)


@pytest.mark.parametrize("padding", ["none", "zeros", "reflect"])
@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("size", [(7, 8), (5, 1, 4)], ids=["2-D", "3-D"])
def test_each_gaussian_is_a_kernel_of_its_own(padding, nearest, size):
    kernel, spacing = replace(VOXELS, padding=padding, nearest=nearest), ANISOTROPIC[: len(size)]
    values = torch.randn(2, 3, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together = kernel.each(values, spacing)
    for i, gaussian in enumerate(kernel.components()):
        torch.testing.assert_close(together[:, i], gaussian(values[:, i], spacing))
    single = kernel.each(values.float(), spacing)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), together, rtol=0, atol=1e-5)


def test_matrices_made_in_inference_mode_serve_training():
    kernel = gaussian_kernel(1.2345)
    with torch.inference_mode():
        kernel.each(torch.rand(1, 1, 2, 6, 7))
    values = torch.rand(1, 1, 2, 6, 7, requires_grad=True)
    kernel.each(values).square().sum().backward()
    torch.testing.assert_close(values.grad, 2 * kernel.each(kernel.each(values.detach())))


@pytest.mark.parametrize("size", [(9, 8), (6, 7, 5)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("form", ["square", "sqrt"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_metric_is_symmetric_and_positive(size, form, masked):
    spacing = ANISOTROPIC[: len(size)]
    a, _ = random_case(size)
    b, weights = a.flip(2).roll(1, 1), random_case(size)[1].square()
    mask = border_mask(size, 1, 0.6, spacing, like=a) if masked else None

    def velocity(m):
        if form == "square":
            return _RegionFlow(VOXELS, 0.0, spacing, mask, False).respond(m, weights)[0]
        deformation = RegionSpecificMomentum(
            VOXELS,
            spacing,
            1,
            stride=1,
            weight_sigma=0.5,
            pre_weights=weights,
            stationary=True,
            margin=float(masked),
            margin_sigma=0.6,
        )
        unit = torch.tensor(spacing).view(1, -1, *[1] * len(size))
        return deformation(0.1 * m / unit, size)["velocity"] * unit

    torch.testing.assert_close((a * velocity(b)).sum(), (velocity(a) * b).sum())
    assert (a * velocity(a)).sum() > 0
