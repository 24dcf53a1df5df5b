"""An effect of acquisition: the bias field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Generator, Tensor

from .noise import Draw, smooth_noise, uniform

_VOXELS_PER_VALUE = 40.0


class BiasField:
    """Multiplication with exp(smooth noise), one value in 40 voxels.

    Args:
        std: largest standard deviation of the log field, each image's is drawn from U(0, std). The default is
            SynthMorph's.
    """

    def __init__(self, std: float = 0.3) -> None:
        self.std = std

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> Draw:
        """Draw "log_field" (B, 1, *S)."""
        std = uniform((0, self.std), (batch,), generator)
        return {"log_field": smooth_noise(size, _VOXELS_PER_VALUE, std, generator)}

    def __call__(self, image: Tensor, labels: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """The image (B, 1, *S) under its bias field."""
        return image * draw["log_field"].exp()
