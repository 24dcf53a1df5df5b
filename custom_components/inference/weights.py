"""Load a network's weights when an evaluation starts."""

from __future__ import annotations

import os

from ignite.engine import Engine, Events
from torch import nn

from ..files import load_weights
from ..networks.parallel import unwrap


class WeightsLoader:
    """A handler that loads weights at the start of a run, by `files.load_weights`, whose errors are one sentence.

    Args:
        network: may be wrapped for data-parallel work.
        path: of a file of named weights, as `BestCheckpoint` writes it.
    """

    def __init__(self, network: nn.Module, path: str | os.PathLike[str]) -> None:
        self.network, self.path = network, path

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Raises: FileNotFoundError: if there is no such file. ValueError: if it is damaged or another network's."""
        load_weights(unwrap(self.network), self.path, "registration")
