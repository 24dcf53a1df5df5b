"""Speeds of shots, which a training reads a few shots later, when a GPU has them anyway."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor

_LATER = 8  # shots


class LateReadings:
    """Numbers of earlier shots. Whoever reads a number of the shot that a GPU has just been given waits for it.

    Inside of `on()` shots on a device other than the CPU are not looked at when they are made (`shooting.shoot`). Their
    speeds go to the host on the side, and are read eight shots later: always so many, so that a training can be
    repeated.

    Attributes:
        steps: that the fastest shot would have needed.
    """

    current: ClassVar[LateReadings | None] = None

    def __init__(self) -> None:
        self.steps = 0
        self._waiting: deque[tuple[Tensor, torch.cuda.Event | None, int]] = deque()

    @contextmanager
    def on(self, wanted: bool) -> Iterator[None]:
        """Let the shots of a block be read late, if that is wanted."""
        before, LateReadings.current = LateReadings.current, self if wanted else None
        try:
            yield
        finally:
            LateReadings.current = before

    def add(self, numbers: Tensor, num_steps: int) -> Iterator[tuple[list[float], int]]:
        """Take the numbers (N,) of a shot of `num_steps`; give those of the shots that are now read."""
        is_cuda = numbers.device.type == "cuda"
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=is_cuda)
        host.copy_(numbers.detach(), non_blocking=True)
        event = None
        if is_cuda:
            event = torch.cuda.Event()
            event.record()
        self._waiting.append((host, event, num_steps))
        while len(self._waiting) > _LATER:
            host, event, steps = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            yield host.tolist(), steps
