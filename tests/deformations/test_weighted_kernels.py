"""Kernels whose weights differ from place to place."""

from dataclasses import replace

import pytest
import torch

from custom_components.deformations.kernels import MultiGaussianKernel, gaussian_kernel

BASE = (0.2, 0.3, 0.5)
VOXELS = MultiGaussianKernel((0.8, 1.5, 3.0), BASE, padding="zeros")
ANISOTROPIC = (1.0, 0.7, 1.4)


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
