"""The losses of an optimisation, read from its device once in a while."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_EVERY = 10  # iterations


class Readings:
    """Losses and similarity terms of the iterations, as far as they have been read.

    A GPU works ahead of the host until somebody reads a number. So numbers are read every ten iterations, and after the
    last one; those on the CPU at once. A search on a GPU may therefore end up to nine iterations later.

    Args:
        voxels: by which a loss is divided.

    Attributes:
        losses, similarities: one of each iteration.
    """

    def __init__(self, voxels: int) -> None:
        self.voxels = voxels
        self.losses: list[float] = []
        self.similarities: list[float] = []
        self._waiting: list[tuple[int, Tensor]] = []

    def clear(self) -> None:
        """Forget what was and what would have been read."""
        self.losses, self.similarities, self._waiting = [], [], []

    def add(self, number: int, loss: Tensor, similarity: Tensor) -> None:
        """Take the values of iteration `number`, scalars on the device."""
        self._waiting.append((number, torch.stack([loss.detach(), similarity.detach()])))

    def read(self, *, at_last: bool) -> Iterator[int]:
        """Read what waits if it is time; gives the number of each iteration when its values have just been added.

        Args:
            at_last: no iteration follows.
        """
        device = self._waiting[-1][1].device
        if not at_last and device != torch.device("cpu") and len(self._waiting) < _EVERY:
            return
        numbers = torch.cat([values for _, values in self._waiting]).tolist()
        waiting, self._waiting = self._waiting, []
        for i, (number, _) in enumerate(waiting):
            self.losses.append(numbers[2 * i] / self.voxels)
            self.similarities.append(numbers[2 * i + 1])
            yield number
