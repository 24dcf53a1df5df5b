"""Random hyper-parameters for the batches of a HyperMorph training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...data.batches import Prepare, Prepared, prepare_pair_batch
from ...vocabulary import Collated


class HyperBatch:
    """`prepare_batch` that adds hyper-parameters of the objective, for the network and for the loss.

    They come to the inferer as `hyper` (B, H), which hands it to the network, and to the loss among the targets.

    Args:
        hyper: either draws them, `hyper(number) -> (number, H)` (`HyperSampler`), or is a list of values, each a number
            or a list of H numbers: then every pair is repeated for each of them (validation).
        prepare: makes the batch itself.
        num_hyper: number H of hyper-parameters, for a list: a number in it stands for all H.
    Raises:
        ValueError: if a listed value is outside [0, 1], has not H numbers, or there is none.
    """

    def __init__(
        self,
        hyper: Callable[[int], Tensor] | Sequence[float | Sequence[float]],
        prepare: Prepare = prepare_pair_batch,
        num_hyper: int = 1,
    ) -> None:
        self.prepare = prepare
        self.hyper: Callable[[int], Tensor] | Tensor
        if callable(hyper):
            self.hyper = hyper
        else:
            rows = [list(value) if isinstance(value, Sequence) else [value] * num_hyper for value in hyper]
            if not rows or any(len(row) != num_hyper or not all(0 <= v <= 1 for v in row) for row in rows):
                raise ValueError(f"expected values in [0, 1] of {num_hyper} hyper-parameters, got {list(hyper)}")
            self.hyper = torch.tensor(rows, dtype=torch.float32)

    def __call__(
        self, batch: Collated, device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: object
    ) -> Prepared:
        """As `prepare` returns it, with `hyper`."""
        image, targets, _args, options = self.prepare(batch, device, non_blocking, **kwargs)
        if isinstance(self.hyper, Tensor):
            hyper, times = self.hyper.repeat(len(image), 1), len(self.hyper)
            image, targets, options = (_repeat(thing, times) for thing in (image, targets, options))
        else:
            hyper = self.hyper(len(image))
        hyper = hyper.to(image.device, non_blocking=True)
        return image, {**targets, "hyper": hyper}, (), {**options, "hyper": hyper}


class HyperSampler:
    """Random hyper-parameters in [0, 1]: a Beta distribution, and more often the end points than it gives.

    The end points are the hardest values to interpolate to, and no continuous distribution draws them.

    Args:
        num_hyper: number H of them, drawn independently.
        prior: (a, b) of the Beta distribution; (1, 1) is uniform. Or H such pairs.
        endpoint_share: probability that a value is 0 or 1, each as often, instead.
    Raises:
        ValueError: for a prior or a share that is impossible.
    References: Hoopes et al., MELBA 2022; the share is the reference implementation's.
    """

    def __init__(
        self,
        num_hyper: int = 1,
        prior: Sequence[float] | Sequence[Sequence[float]] = (1.0, 1.0),
        endpoint_share: float = 0.2,
    ) -> None:
        pairs = torch.as_tensor(prior, dtype=torch.float32)
        if num_hyper < 1 or pairs.shape not in ((2,), (num_hyper, 2)):
            raise ValueError(f"expected (a, b) or a pair for each of {num_hyper} hyper-parameters, got {prior}")
        if not bool((pairs > 0).all()) or not 0 <= endpoint_share <= 1:
            raise ValueError(
                f"expected a, b above 0 of a Beta distribution and a share in [0, 1], got {prior} and {endpoint_share}"
            )
        pairs = pairs.expand(num_hyper, 2)
        self.distribution = torch.distributions.Beta(pairs[:, 0], pairs[:, 1])
        self.num_hyper, self.endpoint_share = num_hyper, endpoint_share

    def __call__(self, number: int) -> Tensor:
        """Values (number, H), from torch's global generator."""
        values = self.distribution.sample((number,))
        ends = torch.randint(2, values.shape).to(values.dtype)
        return torch.where(torch.rand(values.shape) < self.endpoint_share, ends, values)


def _repeat(thing: Any, times: int) -> Any:
    if isinstance(thing, Mapping):
        return {key: _repeat(value, times) for key, value in thing.items()}
    return thing.repeat_interleave(times, 0)
