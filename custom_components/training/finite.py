"""A training ends as soon as its loss or its weights are no numbers, before it writes anything."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from .loss_log import LossLog


class FiniteLoss:
    """End a training whose loss is NaN or infinite: what it has written up to then stays.

    It needs to be the first handler of the trainer, so that no other one uses what is no number. It looks at the losses
    when they are read (`LossLog`), at the latest before the validation and the checkpoint of their epoch.
    """

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        self.log = LossLog.of(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.check)

    def check(self, engine: Engine) -> None:
        """Look at the losses that were read.

        Raises:
            FloatingPointError: if one is not finite.
        """
        for step, terms in self.log.rows:
            if not math.isfinite(terms["loss"]):
                raise FloatingPointError(
                    f"the loss became {terms['loss']} at step {step} (epoch {engine.state.epoch}): the training ends "
                    "and keeps the checkpoints it had; give a lower learning_rate, and check the weights of the loss"
                )


def check_finite(state: object, what: str) -> None:
    """Refuse a state (tensors in mappings and lists) with a number that is not finite.

    Args:
        state: as `state_dict` returns it.
        what: of what it is, for the message.
    Raises:
        FloatingPointError: with the name of the first such tensor.
    """
    name = _not_finite(state)
    if name is not None:
        raise FloatingPointError(f"{what} has values that are not finite, {name} the first")


def _not_finite(state: object, name: str = "") -> str | None:
    if isinstance(state, Tensor):
        return None if not state.is_floating_point() or bool(torch.isfinite(state).all()) else name
    if isinstance(state, Mapping):
        parts = list(state.items())
    elif isinstance(state, list | tuple):
        parts = list(enumerate(state))
    else:
        return None
    found = (_not_finite(value, f"{name}.{key}" if name else str(key)) for key, value in parts)
    return next((place for place in found if place is not None), None)
