"""Read a network's weights from a file, with errors that name it."""

from __future__ import annotations

import os

import torch
from torch import nn


def load_weights(network: nn.Module, path: str | os.PathLike, name: str) -> None:
    """Load a state file into a network, where its parameters are.

    Args:
        name: of the network, for the messages.
    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does not hold this network's weights.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: there are no weights of the {name} network; train them")
    state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path}: these are not weights of this {name} network") from error
