"""What several test files of this folder share."""

import pytest
import torch
from torch import nn


class Force(nn.Module):
    """A momentum that makes the images more alike: their difference times the gradient of the moving one."""

    def __init__(self, scale=2.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.seen = []

    def forward(self, image):
        self.seen.append(image.detach().clone())
        moving, fixed = image.chunk(2, 1)
        slopes = torch.gradient(moving[:, 0], dim=list(range(1, image.ndim - 1)))
        momentum = self.scale * (moving - fixed) * torch.stack(slopes, 1)
        return momentum[(..., *[slice(None, None, 2)] * (image.ndim - 2))]


SIZES = [(33, 28), (25, 22, 20)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])
