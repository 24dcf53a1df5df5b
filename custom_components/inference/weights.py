"""Load a network's weights when an evaluation starts."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ignite.engine import Engine, Events
from torch import nn

from ..networks.parallel import unwrap
from ..weights import SPACING_FACTOR, load_weights


class WeightsLoader:
    """A handler that loads weights at the start of a run, by `weights.load_weights`, whose errors are one sentence.

    Args:
        network: may be wrapped for data-parallel work.
        path: of a file of named weights, as `BestCheckpoint` writes it.
        settings: what the network is used for, with which the sidecar of the weights must agree.
        spacing_factor: by which the spacing may differ from that of the training.
    """

    def __init__(
        self,
        network: nn.Module,
        path: str | os.PathLike[str],
        settings: Mapping[str, object] | None = None,
        spacing_factor: float = SPACING_FACTOR,
    ) -> None:
        self.network, self.path, self.settings, self.spacing_factor = network, path, settings, spacing_factor

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.load)

    def load(self) -> None:
        """Raises FileNotFoundError: if there is no such file; ValueError: if it is damaged, another network's, or for
        other settings."""
        network = unwrap(self.network)
        load_weights(network, self.path, "registration", self.settings, spacing_factor=self.spacing_factor)
