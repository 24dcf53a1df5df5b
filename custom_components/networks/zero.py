"""No network: the starting point of training-free registration."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ZeroField(nn.Module):
    """Answer every pair, whatever the hyper-parameters, with a zero field at half resolution for the optimiser.

    Shapes: input (B, 2C, *S), output (B, D, *ceil(S / 2)).
    """

    def __init__(self, spatial_dims: int = 3) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims

    def forward(self, image: Tensor, hyper: Tensor | None = None) -> Tensor:
        size = [image.shape[0], self.spatial_dims]
        for n in image.shape[2:]:
            size.append((n + 1) // 2)
        return torch.zeros(size, dtype=torch.float32, device=image.device)
