"""Training on scans in place of label maps: one scan is shown twice, deformed, each time with other intensities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from ...data.batches import Prepared, Synthesis, SynthesizedBatch
from ...fields import plain
from ...synthesis.bias import BiasField
from ...synthesis.contrast import Effect
from ...synthesis.gamma import RandomGamma
from ...synthesis.noise import Draw, uniform
from ...vocabulary import Collated


class ScanLook:
    """A scan in [0, 1] as another acquisition would show it: effects one after another, then clipped to [0, 1].

    Args:
        effects: by default a bias field, a random power, and noise.
    """

    def __init__(self, effects: Sequence[Effect] | None = None) -> None:
        self.effects: Sequence[Effect] = [BiasField(), RandomGamma(), WhiteNoise()] if effects is None else effects

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> list[Draw]:
        """All random numbers of `batch` images."""
        return [effect.draw(batch, size, generator) for effect in self.effects]

    def __call__(self, source: Tensor, draw: Sequence[Draw]) -> Tensor:
        """The images (B, 1, *S) of scans."""
        image = source
        for effect, numbers in zip(self.effects, draw, strict=True):
            image = effect(image.clamp(0, 1), source, numbers)
        return image.clamp(0, 1)


class WhiteNoise:
    """Noise that is independent in each voxel; each image's standard deviation is drawn from U(0, `std`)."""

    def __init__(self, std: float = 0.05) -> None:
        self.std = std

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> Draw:
        """Draw "noise" (B, 1, *S)."""
        std = uniform((0, self.std), (batch, *[1] * (len(size) + 1)), generator)
        return {"noise": std * torch.randn(batch, 1, *size, generator=generator, device=generator.device)}

    def __call__(self, image: Tensor, labels: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """The image (B, 1, *S) with its noise."""
        return image + draw["noise"]


class SimulatedScans:
    """`prepare_batch` for scans in [0, 1]: simulated pairs of them, made on the training device, anew at each call.

    Args:
        synthesis: makes the pairs (`SimulatedPairs`).
        seed: as of `SynthesizedBatch`.
    """

    def __init__(self, synthesis: Synthesis, seed: int | None = None) -> None:
        self.make = SynthesizedBatch(synthesis, seed=seed)

    def __call__(
        self, batch: Collated, device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: object
    ) -> Prepared:
        """As `SynthesizedBatch`; the batch needs "moving" and "fixed", and their masks, if any, say what counts."""
        sources = {}
        for side in ("moving", "fixed"):
            parts = [plain(batch[key]).float() for key in (side, f"mask_{side}") if key in batch]
            sources[f"label_{side}"] = torch.cat(parts, 1)
        return self.make(sources, device, non_blocking, **kwargs)
