"""`torch.compile` for the network of a training."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil

import torch
from torch import nn

from ..networks.parallel import unwrap

logger = logging.getLogger(__name__)

_BACKEND = "inductor"
_COMPILERS = ("g++", "clang++", "c++")


def compile_network(network: nn.Module, device: torch.device) -> None:
    """Let a network run as torch compiles it, from its next call on; another size of images is compiled anew.

    It stays the same object: weights keep their names, so checkpoints fit compiled and other networks alike, and copies
    and exports of it are not compiled. In a distributed run the network inside the wrapper is compiled.

    Raises:
        ValueError: if the machine lacks what compiles: a C++ compiler for a CPU, triton and a C compiler for a GPU.
    """
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ValueError("compile true needs the package triton on a GPU, which is not installed: give compile false")
    known = [name for name in (os.environ.get("CXX"), *_COMPILERS) if name]
    if not any(map(shutil.which, known)):
        raise ValueError("compile true needs a C++ compiler (g++), which is not installed: give compile false")
    logger.info("the network is compiled at its first step, which takes a minute or so")
    unwrap(network).compile(backend=_BACKEND)
