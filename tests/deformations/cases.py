"""What several test files of this folder share."""

import pytest
import torch

from custom_components.deformations.kernels import gaussian_kernel
from custom_components.deformations.shooting import EPDiff, StationaryFlow, shoot

SIZES = [(33, 28), (20, 17, 18)]
both = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])
tiny = pytest.mark.parametrize("size", [(5, 6), (4, 5, 3)], ids=["2-D", "3-D"])
MODELS = ["geodesic", "stationary"]
models = pytest.mark.parametrize("model", MODELS)


def bump(size, centre, width):
    """A Gaussian of height 1 on the grid that spans [0, 1] along each axis."""
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) / (n - 1) for n in size], indexing="ij")
    return torch.exp(-sum((x - c) ** 2 for x, c in zip(axes, centre, strict=False)) / (2 * width**2))


def bumps(size, amplitude=0.3):
    """A smooth momentum, the same function of the unit square or cube on every grid."""
    centres = [(0.4, 0.5, 0.55), (0.6, 0.55, 0.45), (0.5, 0.4, 0.5)][: len(size)]
    heights = [0.9 * amplitude, -0.6 * amplitude, 0.7 * amplitude]
    return torch.stack([a * bump(size, c, 0.08) for a, c in zip(heights, centres, strict=False)])[None]


def shot_of(momentum, kernel, model="geodesic", *, spacing=1.0, **options):
    flow = {"geodesic": EPDiff, "stationary": StationaryFlow}[model](kernel, spacing)
    return shoot(flow, momentum, **options)


def tensors(shot):
    """The tensors of a shot that has an inverse."""
    return shot.ddf, shot.inverse_ddf, shot.momentum, shot.velocity, shot.energy


def random_case(size, batch=1, dtype=torch.float64):
    """Momentum and kernel in voxels, for a displacement of about half a voxel."""
    generator = torch.Generator().manual_seed(7)
    momentum = 2 * torch.randn(batch, len(size), *size, dtype=torch.float64, generator=generator)
    return momentum.to(dtype), gaussian_kernel(1.3, padding="zeros")
