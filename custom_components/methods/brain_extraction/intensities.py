"""The intensities that the network sees, in training and in use."""

from __future__ import annotations

import torch
from torch import Tensor

from ...constants import filled

_SAMPLE = 200_000  # voxels that tell the percentiles of an image


def normalize(image: Tensor, percentiles: tuple[float, float] = (0.5, 99.5)) -> Tensor:
    """Map percentiles of an image's voxels above its least value to 0 and 1, and clip beyond them.

    Args:
        image: shape (*S), finite. An image of one value becomes 0.
    """
    if image.device == torch.device("cpu"):
        shown = image[image > image.min()]
        if not len(shown):
            return torch.zeros_like(image)
        shown = shown[:: max(1, len(shown) // _SAMPLE)].float()
        low, high = torch.quantile(shown, filled(percentiles, shown) / 100)
    else:
        low, high = _percentiles(image, percentiles)
    flat = high <= low
    low, high = torch.where(flat, image.min(), low), torch.where(flat, image.max(), high)
    return ((image - low) / torch.where(high > low, high - low, 1)).clamp(0, 1)


def _percentiles(image: Tensor, percentiles: tuple[float, float]) -> Tensor:
    """The percentiles of the same voxels, without the host knowing how many they are."""
    values = image.flatten().float()
    shown = values > values.min()
    rank = shown.cumsum(0)
    step = (rank[-1] // _SAMPLE).clamp(min=1)
    shown &= (rank - 1) % step == 0
    ordered = torch.where(shown, values, torch.inf).sort().values
    place = filled(percentiles, values) / 100 * (shown.sum() - 1).clamp(min=0)
    below = place.floor().long()
    at = ordered.gather(0, torch.stack([below, place.ceil().long()]).flatten()).unflatten(0, (2, -1))
    # Of an image of one value nothing is shown.
    return torch.lerp(at[0], at[1], place - below).nan_to_num(posinf=0.0)
