"""An effect of disease: blobs of another intensity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Generator, Tensor

from .noise import Draw, Range, smooth_noise, uniform


class RandomLesions:
    """With `probability`, blobs within the labels from `first` to `last` become brighter or darker.

    They lie where smooth noise of standard deviation 1, with one value in `scale` voxels, exceeds a threshold.

    Args:
        threshold: range of the threshold; 1.5 makes lesions of a few per cent of the brain.
        change: largest change of the intensity, on the scale 0 to 255; each image's is drawn from U(-change, change).
        first, last: ids of the brain.
    """

    def __init__(
        self,
        probability: float,
        *,
        scale: float = 10.0,
        threshold: Range = (1.2, 2.2),
        change: float = 100.0,
        first: int = 1,
        last: int = 499,
    ) -> None:
        self.probability, self.scale, self.threshold, self.change = probability, scale, threshold, change
        self.first, self.last = first, last

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> Draw:
        """Draw "field" (B, 1, *S), which is above 0 in a lesion, and "change" (B,), 0 for an image without lesions."""
        there = uniform((0, 1), (batch,), generator) < self.probability
        threshold = uniform(self.threshold, (batch, 1, *[1] * len(size)), generator)
        noise = smooth_noise(size, self.scale, threshold.new_ones(batch), generator)
        return {"field": noise - threshold, "change": uniform((-self.change, self.change), (batch,), generator) * there}

    def __call__(self, image: Tensor, labels: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """The image (B, 1, *S) with its lesions; their edges are a tenth of the noise's deviation wide."""
        inside = (10 * draw["field"]).clamp(0, 1) * ((labels >= self.first) & (labels <= self.last))
        return image + draw["change"].view(-1, *[1] * (image.ndim - 1)) * inside
