"""Several channels of one person: the images under `channels_moving` and `channels_fixed` of an item.

Convention: the image under `moving` is the first channel, whose grid the others take; networks see it alone. An item's
`channel_weights` say how much each channel counts in the comparison of the images.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..checks import check_number
from ..space.memory_images import MemoryImage
from ..space.volumes import Volume, load_channels
from ..vocabulary import Data, Item
from .scan_paths import source_in


def load_with_channels(data: Data, role: str) -> Volume:
    """The image of a role with its further channels. Errors as `load_image` and `Volume.with_channels`."""
    others = data.get(f"channels_{role}") or ()
    return load_channels(
        [source_in(data, role), *(one if isinstance(one, MemoryImage) else str(one) for one in others)]
    )


def channel_weights(data: Data, volumes: Mapping[str, Volume]) -> Item:
    """The weights (C, 1, ...) of several channels, by default equal ones; nothing if there is one channel.

    Raises:
        ValueError: if moving and fixed image, or the weights, differ in their number, or no weight is above 0.
    """
    numbers = [len(volumes[role].data) for role in ("moving", "fixed")]
    if numbers[0] != numbers[1]:
        raise ValueError(f"expected as many channels of both images, got {numbers[0]} moving and {numbers[1]} fixed")
    weights = data.get("channel_weights")
    weights = [1.0] * numbers[0] if weights is None else list(weights)
    if len(weights) != numbers[0]:
        raise ValueError(f"expected a weight for each of {numbers[0]} channels, got {weights}")
    for weight in weights:
        check_number("a channel's weight", weight, least=0)
    if not sum(weights) > 0:
        raise ValueError(f"expected a channel's weight above 0, got {weights}")
    if numbers[0] == 1:
        return {}
    return {"channel_weights": torch.tensor(weights).view(-1, *[1] * (volumes["fixed"].data.ndim - 1))}
