"""No network: the starting point of training-free registration."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .blocks import half


class ZeroField(nn.Module):
    """Answer every pair with a zero field at half resolution, for the optimiser, whatever else it is asked.

    Shapes: input (B, 2C, *S), output (B, D, *ceil(S / 2)).
    """

    def __init__(self, spatial_dims: int = 3) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims

    def forward(self, image: Tensor, **conditions: Tensor) -> Tensor:
        size = half(list(image.shape[2:]))
        return torch.zeros(image.shape[0], self.spatial_dims, *size, dtype=torch.float32, device=image.device)
