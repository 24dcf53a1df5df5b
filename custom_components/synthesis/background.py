"""An effect of preprocessing: a background of exactly 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Generator, Tensor

from .noise import Draw, uniform


class ZeroBackground:
    """With `probability`, label 0 is set to exactly 0, noise and all. The default is SynthMorph's."""

    def __init__(self, probability: float = 0.2) -> None:
        self.probability = probability

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> Draw:
        """Draw "zero" (B,), whether the background is."""
        return {"zero": uniform((0, 1), (batch,), generator) < self.probability}

    def __call__(self, image: Tensor, labels: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """The image (B, 1, *S) with its background, where `labels` (B, 1, *S) are 0."""
        return image.masked_fill((labels == 0) & draw["zero"].view(-1, *[1] * (labels.ndim - 1)), 0)
