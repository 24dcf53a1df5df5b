"""The losses of a training, read from the device once in a while."""

from __future__ import annotations

import time

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from ..vocabulary import Output

_PAUSE = 1.0  # seconds between two readings


def loss_terms(output: Output) -> dict[str, Tensor]:
    """The total loss and its named terms, from a trainer's output."""
    return {"loss": output["loss"], **output.get("pred", {}).get("terms", {})}


class LossLog:
    """The loss terms of each step. They stay on the device until they are read, all of them in one copy.

    A GPU works ahead of the host; whoever reads a number makes the host wait until that number is there. So the terms
    are read once a second, and at the last step of an epoch. What is on the CPU is read at every step.

    Attributes:
        rows: what was read at this step: the number of each step since the reading before, and its terms. Empty at
            the steps that read nothing.
        latest: the terms that were last read.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.latest: dict[str, float] = {}
        self._waiting: list[tuple[int, list[str], Tensor]] = []
        self._read_at = time.monotonic()

    @staticmethod
    def of(engine: Engine) -> LossLog:
        """The log of a trainer, attached at the first call: before the handlers that use it."""
        log = getattr(engine, "_loss_log", None)
        if log is None:
            log = LossLog()
            engine.add_event_handler(Events.ITERATION_COMPLETED, log.collect)
            setattr(engine, "_loss_log", log)  # noqa: B010 (ignite's class has no such attribute)
        return log

    def collect(self, engine: Engine) -> None:
        """Keep the terms of a step, and read all that wait if it is time."""
        terms = loss_terms(engine.state.output)
        loss = terms["loss"].detach()
        values = torch.stack(
            [v.detach().reshape(()) if isinstance(v, Tensor) else loss.new_full((), v) for v in terms.values()]
        )
        self._waiting.append((engine.state.iteration, list(terms), values))
        self.rows = []
        is_last = not engine.state.epoch_length or engine.state.iteration % engine.state.epoch_length == 0
        if is_last or values.device == torch.device("cpu") or time.monotonic() - self._read_at >= _PAUSE:
            self.read()

    def read(self) -> None:
        """Read what waits; the host waits for the device once."""
        numbers = torch.cat([values for _, _, values in self._waiting]).tolist()
        for step, names, _ in self._waiting:
            self.rows.append((step, dict(zip(names, numbers, strict=False))))
            del numbers[: len(names)]
        self.latest = self.rows[-1][1]
        self._waiting, self._read_at = [], time.monotonic()
