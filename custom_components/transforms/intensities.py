"""Which intensities of an image are compared, and how they become numbers from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..space.background import without_air
from ..space.volumes import Volume


def scale_intensity(image: Tensor, percentiles: tuple[float, float] = (0.0, 99.9)) -> Tensor:
    """Map the given percentiles of an image (C, *S), for each channel, to 0 and 1 and clip beyond them."""
    if len(image) > 1:
        return torch.cat([scale_intensity(one, percentiles) for one in image.split(1)])
    low, high = np.percentile(image.numpy(), percentiles)
    if high <= low:  # Nearly all voxels are equal: the percentiles say nothing, the range does.
        low, high = float(image.min()), float(image.max())
    return ((image - low) / (high - low)).clamp(0, 1)


def check_window(window: Sequence[float] | None) -> None:
    """Raises ValueError: if a window is not two numbers, the lower one first."""
    if window is not None and not (len(window) == 2 and window[0] < window[1]):
        raise ValueError(f"expected a window of two intensities, the lower one first, got {list(window)}")


def compared(volume: Volume, window: Sequence[float] | None = None) -> Tensor:
    """The intensities of an image that are compared: those in a window, or all, but of a CT neither air nor padding.

    Raises:
        ValueError: if nothing differs in the window.
    """
    if window is None:
        return torch.cat([torch.from_numpy(without_air(one.numpy())) for one in volume.data.split(1)])
    low, high = window
    data = volume.data.clamp(low, high)
    if any(one.min() == one.max() for one in data):
        found = f"{float(volume.data.min()):g} to {float(volume.data.max()):g}"
        raise ValueError(f"{volume.path}: all intensities, {found}, are on one side of the window {low:g} to {high:g}")
    return data
