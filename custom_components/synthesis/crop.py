"""An effect of acquisition: a field of view that ends within the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from .noise import Draw, uniform


class CropFieldOfView:
    """With `probability`, the ends of all axes become 0.

    Args:
        largest_share: of an axis that is lost at either end; each end's share is drawn from U(0, largest_share).
    """

    def __init__(self, probability: float, largest_share: float = 0.2) -> None:
        self.probability, self.largest_share = probability, largest_share

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> Draw:
        """Draw "share" (B, D, 2), lost at the start and at the end of each axis."""
        cropped = uniform((0, 1), (batch, 1, 1), generator) < self.probability
        return {"share": uniform((0, self.largest_share), (batch, len(size), 2), generator) * cropped}

    def __call__(self, image: Tensor, labels: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """The image (B, 1, *S), 0 outside its field of view."""
        return crop_field_of_view(image, draw["share"])


def crop_field_of_view(image: Tensor, share: Tensor) -> Tensor:
    """Set the ends of the axes to 0.

    Args:
        image: shape (B, C, *S).
        share: shape (B, D, 2), the share of each axis lost at its start and end.
    """
    for axis in range(image.ndim - 2):
        n = image.shape[axis + 2]
        position = (torch.arange(n, device=image.device) + 0.5) / n
        inside = (position >= share[:, axis, :1]) & (position <= 1 - share[:, axis, 1:])
        shape = [1] * image.ndim
        shape[0], shape[axis + 2] = share.shape[0], n
        image = image * inside.view(shape)
    return image
