"""A similarity of edges: normalised gradient fields, for images of different contrast."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .similarity import checked_images, masked_mean


class NGF(nn.Module):
    """1 - mean squared cosine of the angle between the images' gradients, in [0, 1]: edges should lie on edges.

    Invariant to the sign of an edge. Gradients are central differences; those at the border are 0.

    Args:
        floor: added to the squared lengths of the gradients, in squared intensity units per voxel: edges below its
            square root count as noise.
    References: Haber and Modersitzki, MICCAI 2006.
    """

    def __init__(self, floor: float = 1e-3) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, warped: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        warped, fixed, mask = checked_images(warped, fixed, mask)
        a, b = _gradient(warped), _gradient(fixed)
        lengths = [gradient.square().sum(2) + self.floor for gradient in (a, b)]
        cosine = (a * b).sum(2).square() / (lengths[0] * lengths[1])
        return 1 - masked_mean(cosine, mask)


def _gradient(image: Tensor) -> Tensor:
    """Central differences of (B, C, *S), (B, C, D, *S), 0 at the border."""
    parts = []
    for axis in range(2, image.ndim):
        n = image.shape[axis]
        inner = (image.narrow(axis, 2, n - 2) - image.narrow(axis, 0, n - 2)) / 2 if n > 2 else image[:0]
        part = torch.zeros_like(image)
        if n > 2:
            part.narrow(axis, 1, n - 2).copy_(inner)
        parts.append(part)
    return torch.stack(parts, 2)
