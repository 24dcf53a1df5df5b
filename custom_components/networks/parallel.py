"""Networks and processes of a distributed training."""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import nn

Thing = TypeVar("Thing")


def unwrap(thing: Thing) -> Thing:
    """The network inside a wrapper of data-parallel training; anything else as it is.

    A wrapper has none of its network's attributes, and a call of it waits for the other processes.
    """
    if isinstance(thing, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return cast(Thing, thing.module)
    return thing


def is_distributed() -> bool:
    """Whether this process is one of a distributed run."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_first_process() -> bool:
    """Whether this process writes the files: the only one, or the first of a distributed run."""
    return not is_distributed() or torch.distributed.get_rank() == 0


@torch.no_grad()
def share_weights(network: nn.Module) -> None:
    """Copy the first process's parameters and buffers to all others; without a distributed run, do nothing."""
    if is_distributed():
        for value in (*network.parameters(), *network.buffers()):
            torch.distributed.broadcast(value.data, 0)
