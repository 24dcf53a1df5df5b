"""An effect of acquisition: blur."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Generator, Tensor

from .noise import Draw, Range, gaussian_blur, uniform


class RandomBlur:
    """Gaussian blur, its standard deviation in voxels drawn from `sigma` for each axis. The default is SynthMorph's."""

    def __init__(self, sigma: Range = (0, 1)) -> None:
        self.sigma = sigma

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> Draw:
        """Draw "sigma" (B, D), voxels."""
        return {"sigma": uniform(self.sigma, (batch, len(size)), generator)}

    def __call__(self, image: Tensor, labels: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """The blurred image (B, 1, *S)."""
        return gaussian_blur(image, draw["sigma"], radius=math.ceil(3 * self.sigma[1]))
