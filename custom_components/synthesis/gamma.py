"""An effect of contrast: a random power."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from .noise import Draw


class RandomGamma:
    """image ** exp(N(0, std)), for images in [0, 1] (`UnitRange`). The default is SynthMorph's."""

    def __init__(self, std: float = 0.25) -> None:
        self.std = std

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> Draw:
        """Draw "exponent" (B,)."""
        return {"exponent": (self.std * torch.randn(batch, generator=generator, device=generator.device)).exp()}

    def __call__(self, image: Tensor, labels: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """The image (B, 1, *S) to the power of its exponent."""
        return image ** draw["exponent"].view(-1, *[1] * (image.ndim - 1))
