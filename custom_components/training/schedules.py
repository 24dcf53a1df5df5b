"""Numbers that change over the epochs of a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ignite.engine import Engine, Events


class Schedule:
    """Set an attribute of an object, the weight of a loss for instance, at the start of each epoch.

    The value depends only on the epoch, so a resumed run follows the same schedule.

    Args:
        owner: the object.
        name: the attribute.
        value: a function of the epoch, counted from 0, or a mapping from the first epoch of each value to the value.
    Raises:
        ValueError: if the object has no such attribute, or the mapping has no value for epoch 0.
    """

    def __init__(self, owner: object, name: str, value: Callable[[int], object] | Mapping[str | int, object]) -> None:
        if not hasattr(owner, name):
            raise ValueError(f"{type(owner).__name__} has no {name!r} to set")
        if isinstance(value, Mapping):
            steps = {int(epoch): one for epoch, one in value.items()}
            if 0 not in steps:
                raise ValueError(f"expected a value from epoch 0 on, got epochs {sorted(steps)}")
            self.value: Callable[[int], object] = lambda epoch: steps[max(e for e in steps if e <= epoch)]
        else:
            self.value = value
        self.owner, self.name = owner, name

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.set)

    def set(self, engine: Engine) -> None:
        """Set the value of the engine's epoch."""
        setattr(self.owner, self.name, self.value(engine.state.epoch - 1))


def falling_weight(epoch: int, start: float = 10.0, end: float = 1e-3, static: int = 10, rate: float = 3.0) -> float:
    """A weight that is constant for `static` epochs, then falls as k / (k + exp((epoch - static) / k)), k the rate.

    Epochs are counted from 0. At epoch `static` the weight jumps from `start` to k / (k + 1) of it.
    References: Shen et al., CVPR 2019, for the penalty of the affine maps; the form is that of the authors' code.
    """
    share = 1.0 if epoch < static else rate / (rate + math.exp(min((epoch - static) / rate, 700.0)))
    return max(start * share, end)
