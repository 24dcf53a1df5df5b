"""`prepare_batch` functions for MONAI's engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from monai.data import list_data_collate
from torch import Generator, Tensor

from ..fields import plain
from ..vocabulary import Collated, Entry

# What a `prepare_batch` returns: network input, targets of the loss, (), keyword arguments of the inferer.
Prepared = tuple[Tensor, dict[str, Tensor], tuple[()], dict[str, Any]]


Prepare = Callable[..., Prepared]


PAIR_KEYS = (
    *("moving", "fixed", "label_moving", "label_fixed", "mask_moving", "mask_fixed"),
    *("distance_moving", "distance_fixed", "momentum", "channel_weights"),
    *("landmarks_moving", "landmarks_fixed", "landmarks_mm", "guide_moving", "guide_fixed"),
)


def prepare_pair_batch(
    batch: Collated, device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: object
) -> Prepared:
    """A batch of pairs as (network input, targets of the loss, (), keyword arguments of the inferer), on the device.

    Args:
        batch: has "image" (B, 2C, *S), moving then fixed, and any of `PAIR_KEYS`.
        device: where the batch goes.
        non_blocking, **kwargs: as for `Tensor.to`; True lets the host go on while it is copied.
    Returns:
        The image, a dictionary of the `PAIR_KEYS` that the batch has, no positional arguments, and "masks", with the
        landmarks and guides, if any, and "finer", if the grid is finer than a network's.
    Raises:
        ValueError: if the batch has no image.
    """
    targets = {key: plain(batch[key]) for key in PAIR_KEYS if isinstance(batch.get(key), Tensor)}
    targets = {key: value.to(device, non_blocking=non_blocking, **kwargs) for key, value in targets.items()}
    looks = ("mask_", "landmarks_", "guide_", "channel_weights")
    masks = {key: value for key, value in targets.items() if key.startswith(looks)}
    if "image" not in batch:
        raise ValueError(f"this bundle needs scans with an image, got {', '.join(sorted(targets)) or 'nothing'} alone")
    image = plain(batch["image"]).to(device, non_blocking=non_blocking, **kwargs)
    options: dict[str, Any] = {"masks": masks} if masks else {}
    finer = int(torch.as_tensor(batch.get("finer", 1)).max())
    if finer > 1:
        options["finer"] = finer
    return image, targets, (), options


class Synthesis(Protocol):
    """Images of label maps: `draw` takes all random numbers, the call is a pure function of the maps and the draw."""

    def draw(self, batch: int, size: Sequence[int], generator: Generator, /) -> Mapping[str, object]:
        """The random numbers of `batch` maps of `size`."""
        ...

    def __call__(self, *maps_and_draw: object) -> dict[str, Tensor]:
        """Images and label maps (B, 1, *S) by role."""
        ...


class Slices(Protocol):
    """2-D slices of label maps, split in the same way."""

    def draw(self, generator: Generator, /) -> Mapping[str, object]:
        """Where the maps are cut."""
        ...

    def __call__(self, *maps_and_draw: object) -> list[Tensor]:
        """The maps, cut."""
        ...


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

    def __init__(self, synthesis: Synthesis, slices: Slices | None = None, seed: int | None = None) -> None:
        self.synthesis, self.slices, self.seed = synthesis, slices, seed

    @torch.no_grad()
    def __call__(
        self, batch: Collated, device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: object
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


def seeded_batch(prepare: Prepare, item: Entry, seed: int, device: torch.device | str = "cpu") -> Prepared:
    """A batch of one pair, whose random numbers are the seed's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return prepare(list_data_collate([item]), device)
