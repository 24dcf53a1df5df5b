"""Numbers that a device has without the host waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def filled(values: Sequence[float], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers as a tensor (N,) of the type and device of another tensor, filled there.

    A tensor of a list is copied to the device, and the host waits for it.
    """
    return torch.cat([like.new_empty(0, dtype=dtype), *(like.new_full((1,), value, dtype=dtype) for value in values)])


class Constant:
    """A tensor that is copied to each device once: a host waits for a GPU at every such copy."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._copies: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """The tensor on a device; not to be changed in place."""
        if device not in self._copies:
            self._copies[device] = self.values.to(device)
        return self._copies[device]
