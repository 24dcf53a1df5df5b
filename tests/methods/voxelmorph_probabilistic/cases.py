"""What several test files of this folder share."""

import pytest
import torch

from custom_components.data.phantoms import random_velocity
from custom_components.deformations.velocity import StationaryVelocity

SIZES = [(33, 28), (25, 22, 20)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])


def gaussian_parameters(size, log_variance=-3.0, batch=2):
    """A smooth mean of half a voxel at half resolution, and a constant log variance."""
    grid = StationaryVelocity().parameter_size(size)
    mean = random_velocity(grid, amplitude=0.5, batch=batch, generator=torch.Generator().manual_seed(0))
    return torch.cat([mean, torch.full_like(mean, log_variance)], 1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)
