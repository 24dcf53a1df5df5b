"""The intensities that the network sees, in training and in use."""

from __future__ import annotations

import torch
from torch import Tensor

_SAMPLE = 200_000  # voxels that tell the percentiles of an image


def normalize(image: Tensor, percentiles: tuple[float, float] = (0.5, 99.5)) -> Tensor:
    """Map percentiles of an image's voxels above its least value to 0 and 1, and clip beyond them.

    Args:
        image: shape (*S), finite. An image of one value becomes 0.
    """
    shown = image[image > image.min()]
    if not len(shown):
        return torch.zeros_like(image)
    shown = shown[:: max(1, len(shown) // _SAMPLE)].float()
    low, high = (float(value) for value in torch.quantile(shown, torch.tensor(percentiles).to(shown) / 100))
    if high <= low:
        low, high = float(image.min()), float(image.max())
    return ((image - low) / (high - low)).clamp(0, 1)
