"""Dictionary transforms that find the brain in images of heads."""

from __future__ import annotations

import os

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ...vocabulary import Data, Item
from .segmenter import BrainSegmenter


class ExtractBraind(MapTransform):
    """Add the brain mask of each image (1, *S) under `<key>_brain`, a MetaTensor (1, *S) of uint8 on the image's grid.

    Args:
        keys: of MetaTensors of any orientation, spacing and size.
        weights: file of the network's weights, which are loaded at the first call; or a `BrainSegmenter`.
        apply: set the images to 0 outside their masks.
        border: mm around the brain that the mask keeps, too.
        device: where the network runs.
        allow_missing_keys: skip keys that an item does not have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        weights: str | os.PathLike[str] | BrainSegmenter,
        *,
        apply: bool = False,
        border: float = 0.0,
        device: str | torch.device = "cpu",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.segmenter = weights if isinstance(weights, BrainSegmenter) else BrainSegmenter(weights, device=device)
        self.apply, self.border = apply, border

    def __call__(self, data: Data) -> Item:
        """Raises ValueError: if an image is not 3-D with one channel, or its weights are another network's."""
        result = dict(data)
        for key in self.key_iterator(result):
            image: MetaTensor = result[key]
            mask = result[f"{key}_brain"] = self.segmenter.mask(image, self.border)
            if self.apply:
                result[key] = image * mask.as_tensor().to(image.device)
        return result
