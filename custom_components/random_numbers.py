"""Random numbers of a program, kept and given back, so that a library that seeds its own leaves others alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from monai.utils import misc
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """The state of every global generator, MONAI's seed, and what a GPU may choose."""

    python: object
    numpy: object
    torch: Tensor
    cuda: list[Tensor]
    seed: int | None
    cudnn: tuple[bool, bool]
    deterministic: tuple[bool, bool]

    @classmethod
    def now(cls) -> RandomState:
        """The state as it is."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
        known = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        numbers = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        return cls(*numbers, cuda, misc.get_seed(), cudnn, known)

    def restore(self) -> None:
        """Make it the state again."""
        random.setstate(self.python)  # type: ignore[arg-type]
        np.random.set_state(self.numpy)  # type: ignore[arg-type]  # noqa: NPY002
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        misc._seed = self.seed
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = self.cudnn
        torch.use_deterministic_algorithms(self.deterministic[0], warn_only=self.deterministic[1])


@contextmanager
def own_random_numbers(state: RandomState | None = None) -> Iterator[None]:
    """Give a block random numbers that begin with a state, or go on as they are; afterwards all is as it was."""
    before = RandomState.now()
    try:
        if state is not None:
            state.restore()
        yield
    finally:
        before.restore()
