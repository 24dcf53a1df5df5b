"""Label maps -> images of random contrast: intensities of the labels, then effects one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypedDict

from torch import Generator, Tensor

from .background import ZeroBackground
from .bias import BiasField
from .blur import RandomBlur
from .gamma import RandomGamma
from .intensities import LabelIntensities
from .noise import Draw, pass_over
from .unit_range import UnitRange


class Effect(Protocol):
    """A random step of a rendering: `draw` takes the random numbers, the call is a pure function of image and draw."""

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> Draw:
        """All random numbers of `batch` images of `size`, one entry of the batch per image."""

    def __call__(self, image: Tensor, labels: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """The changed image (B, 1, *S) of integer maps (B, 1, *S)."""


class ContrastDraw(TypedDict):
    """The random numbers of a batch of images; a plain dictionary, which `torch.load(weights_only=True)` reads."""

    intensities: Draw
    effects: list[Draw]


class RandomContrast:
    """Render label maps as images in [0, 1].

    Args:
        intensities: gives each label a mean and noise; default `LabelIntensities()`.
        effects: drawn and applied in this order. They start on the scale 0 to 255, so `UnitRange` must be among them.
            Default, SynthMorph's: `[ZeroBackground(), RandomBlur(), BiasField(), UnitRange(), RandomGamma()]`.
    References: Hoffmann et al., SynthMorph, IEEE TMI 41(3), 2022.
    """

    def __init__(self, intensities: LabelIntensities | None = None, effects: Sequence[Effect] | None = None) -> None:
        self.intensities = intensities or LabelIntensities()
        self.effects: Sequence[Effect] = (
            [ZeroBackground(), RandomBlur(), BiasField(), UnitRange(), RandomGamma()] if effects is None else effects
        )

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> ContrastDraw:
        """All random numbers of `batch` images."""
        draw: ContrastDraw = {
            "intensities": self.intensities.draw(batch, size, generator),
            "effects": [effect.draw(batch, size, generator) for effect in self.effects],
        }
        # A crop was once drawn here for every image: a seed still gives the next draw what it did in the figures.
        pass_over(generator, (batch, len(size), 2))
        return draw

    def __call__(self, labels: Tensor, draw: ContrastDraw) -> Tensor:
        """The image (B, 1, *S), float32, of integer maps (B, 1, *S) with ids below `intensities.num_labels`."""
        image = self.intensities(labels, draw["intensities"])
        for effect, numbers in zip(self.effects, draw["effects"], strict=True):
            image = effect(image, labels, numbers)
        return image
