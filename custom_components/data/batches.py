"""`prepare_batch` functions for MONAI's engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PAIR_KEYS = ("moving", "fixed", "label_moving", "label_fixed", "mask_moving", "mask_fixed")


def prepare_pair_batch(
    batch: Mapping[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, dict[str, Tensor], tuple[()], dict[str, Any]]:
    """A batch of pairs as (network input, targets of the loss, (), keyword arguments of the inferer), on the device.

    Args:
        batch: has "image" (B, 2C, *S), moving then fixed, and any of `PAIR_KEYS`.
    Returns:
        The image, a dictionary of the `PAIR_KEYS` that the batch has, no positional arguments, and "masks" if any.
    """
    targets = {key: _plain(batch[key]) for key in PAIR_KEYS if isinstance(batch.get(key), Tensor)}
    targets = {key: value.to(device, non_blocking=non_blocking, **kwargs) for key, value in targets.items()}
    masks = {key: value for key, value in targets.items() if key.startswith("mask_")}
    image = _plain(batch["image"]).to(device, non_blocking=non_blocking, **kwargs)
    return image, targets, (), {"masks": masks} if masks else {}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
