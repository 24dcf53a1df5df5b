"""The scaling of a rendered image from 0 ... 255 to 0 ... 1, where the effects of contrast act."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Generator, Tensor

from .noise import Draw


class UnitRange:
    """Clip to 0 ... 255, then scale each image's least and largest value to 0 and 1. Nothing is random here."""

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> Draw:
        """Draw nothing."""
        return {}

    def __call__(self, image: Tensor, labels: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """The image (B, 1, *S) in [0, 1]; an image of one value becomes 0."""
        shape = (-1, *[1] * (image.ndim - 1))
        image = image.clamp(0, 255)
        low, high = image.flatten(1).amin(1).view(shape), image.flatten(1).amax(1).view(shape)
        return (image - low) / (high - low).clamp(min=1e-6)
