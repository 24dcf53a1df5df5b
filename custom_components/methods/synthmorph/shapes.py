"""Label maps of random shapes: SynthMorph without any scans."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Generator, Tensor

from ...fields import warp
from ...synthesis.noise import smooth_noise, uniform
from ...vocabulary import Data, Item


class RandomShapes:
    """Label maps of random shapes: the argmax over smooth random images, one for each label, each warped on its own.

    Args:
        size: of the maps.
        num_labels: labels 0 ... num_labels - 1.
        scales: of the images' noise, in voxels per control value; the standard deviation of each is drawn from U(0, 1).
        warp_scales, warp_std: the displacement of each label's image: scales, and largest standard deviation in voxels.
    References: Hoffmann et al., IEEE TMI 41(3), 2022. The defaults are those of the authors' 2-D demonstration with the
        26 labels of their 3-D training; scales are in voxels: halve them for maps of half the size.
    """

    def __init__(
        self,
        size: Sequence[int],
        num_labels: int = 26,
        *,
        scales: Sequence[float] = (32, 64),
        warp_scales: Sequence[float] = (16, 32, 64),
        warp_std: float = 16.0,
    ) -> None:
        self.size, self.num_labels = tuple(size), num_labels
        self.scales, self.warp_scales, self.warp_std = tuple(scales), tuple(warp_scales), warp_std

    def draw(self, generator: Generator) -> Tensor:
        """One map (1, *size), uint8. Labels are made one by one, so that memory does not grow with their number."""
        best, labels = None, torch.zeros(1, 1, *self.size, dtype=torch.uint8, device=generator.device)
        for label in range(self.num_labels):
            image = sum(smooth_noise(self.size, s, uniform((0, 1), (1,), generator), generator) for s in self.scales)
            shift = sum(
                smooth_noise(
                    self.size, s, uniform((0, self.warp_std), (1,), generator), generator, channels=len(self.size)
                )
                for s in self.warp_scales
            )
            image = warp(torch.as_tensor(image), torch.as_tensor(shift), padding="border")
            better = image > best if best is not None else torch.ones_like(image, dtype=torch.bool)
            labels = labels.masked_fill(better, label)
            best = image if best is None else torch.maximum(best, image)
        return labels[0]


class DrawShapesd(MapTransform):
    """A map of random shapes for an item of a data set: the entry `seed` decides which one.

    Args:
        keys: where the map goes, (1, *size), uint8.
        shapes: draws it.
        seed_key: that entry's name.
    """

    def __init__(self, keys: KeysCollection, shapes: RandomShapes, seed_key: str = "seed") -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.shapes, self.seed_key = shapes, seed_key

    def __call__(self, data: Data) -> Item:
        generator = Generator().manual_seed(int(data[self.seed_key]))
        return {**data, **{key: self.shapes.draw(generator) for key in self.keys}}
