"""`prepare_batch` functions for MONAI's engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.data import list_data_collate
from torch import Tensor

from ..fields import plain
from ..vocabulary import Collated

# What a `prepare_batch` returns: network input, targets of the loss, (), keyword arguments of the inferer.
Prepared = tuple[Tensor, dict[str, Tensor], tuple[()], dict[str, Any]]


Prepare = Callable[..., Prepared]


PAIR_KEYS = (
    *("moving", "fixed", "label_moving", "label_fixed", "mask_moving", "mask_fixed"),
    *("distance_moving", "distance_fixed", "momentum"),
)


def prepare_pair_batch(
    batch: Collated, device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: object
) -> Prepared:
    """A batch of pairs as (network input, targets of the loss, (), keyword arguments of the inferer), on the device.

    Args:
        batch: has "image" (B, 2C, *S), moving then fixed, and any of `PAIR_KEYS`.
    Returns:
        The image, a dictionary of the `PAIR_KEYS` that the batch has, no positional arguments, and "masks" if any.
    """
    targets = {key: plain(batch[key]) for key in PAIR_KEYS if isinstance(batch.get(key), Tensor)}
    targets = {key: value.to(device, non_blocking=non_blocking, **kwargs) for key, value in targets.items()}
    masks = {key: value for key, value in targets.items() if key.startswith("mask_")}
    image = plain(batch["image"]).to(device, non_blocking=non_blocking, **kwargs)
    return image, targets, (), {"masks": masks} if masks else {}


class SynthesizedBatch:
    """`prepare_batch` for label maps: images are made of them on the training device, anew at each call.

    Args:
        synthesis: has `draw(batch, size, generator)`, and called with both maps and the draw gives `moving`, `fixed`,
            `label_moving` and `label_fixed` (see `synthesis.pairs.SynthesizePair`); or with the one map of a scan
            alone, and gives what is `moving` (`SynthesizeScan`).
        slices: cuts both maps into 2-D ones first; `draw(generator)` and a call (`synthesis.slices.TakeSlices`).
        seed: the same random numbers at each call, for validation; None draws a new seed from torch's global generator,
            so that a seeded run can be repeated, and each process of a distributed run goes its own way.
    """

    def __init__(self, synthesis: Any, slices: Any | None = None, seed: int | None = None) -> None:
        self.synthesis, self.slices, self.seed = synthesis, slices, seed

    @torch.no_grad()
    def __call__(
        self,
        batch: Collated,
        device: torch.device | str | None = None,
        non_blocking: bool = False,
        **kwargs: object,
    ) -> Prepared:
        """As `prepare_pair_batch`; the batch needs `label_moving` and, unless scans come alone, `label_fixed`."""
        maps = [plain(batch[key]) for key in ("label_moving", "label_fixed") if key in batch]
        maps = [labels.to(device, non_blocking=non_blocking, **kwargs) for labels in maps]
        seed = int(torch.randint(2**62, (1,))) if self.seed is None else self.seed
        generator = torch.Generator(maps[0].device).manual_seed(seed)
        if self.slices is not None:
            maps = self.slices(*maps, self.slices.draw(generator))
        draw = self.synthesis.draw(maps[0].shape[0], maps[0].shape[2:], generator)
        targets = self.synthesis(*maps, draw)
        return torch.cat([targets[role] for role in ("moving", "fixed") if role in targets], 1), targets, (), {}


def seeded_batch(prepare: Prepare, item: Any, seed: int, device: torch.device | str = "cpu") -> Any:
    """A batch of one pair, whose random numbers are the seed's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return prepare(list_data_collate([item]), device)
