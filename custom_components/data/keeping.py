"""Where a data set keeps its transformed scans: on the training device, in memory, or nowhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..memory import available_bytes
from ..vocabulary import Entry

logger = logging.getLogger(__name__)

_KINDS = ("auto", "device", "memory", "none")
_SHARES = {"device": 0.25, "memory": 0.5}  # of what is free there; the rest is for the training


class ScanCache:
    """Transformed scans, kept after they were loaded once.

    - "device": on the training device. Pairs are put together, mirrored and rendered there, and no step waits for the
      host's memory.
    - "memory": in the host's memory; each batch goes to the device.
    - "none": a scan is loaded and transformed whenever a pair needs it.
    - "auto": the first of these for which there is room: a quarter of a GPU's free memory, half of the host's. The log
      says which. For a training on the CPU the first two are the same.

    Args:
        kind: one of these.
        device: where the training runs.
    Raises:
        ValueError: for another kind.
    """

    def __init__(self, kind: str = "auto", device: torch.device | str = "cpu") -> None:
        if kind not in _KINDS:
            raise ValueError(f"expected a cache out of {', '.join(_KINDS)}, got {kind!r}")
        self.kind, self.device = kind, torch.device(device)
        self.kept: list[Entry] | None = None

    @property
    def uploads(self) -> bool:
        """Whether batches go from the host's memory to a GPU."""
        return self.device.type == "cuda" and self.kind != "device"

    def fill(self, load: Callable[[int], Entry], count: int, *, shown: bool = True) -> None:
        """Load scans 0 to `count` - 1 and keep them, if they are to be kept; the first one tells how large they are.

        Args:
            load: gives the scan of a position.
            count: how many there are.
            shown: with a progress bar, where the loading takes time.
        """
        if self.kind == "none":
            return
        first = load(0)
        if self.kind == "auto":
            needed = count * _bytes(first)
            self.kind = self._chosen(needed)
            places = {"device": f"on {self.device}", "memory": "in memory"}
            place = places.get(self.kind, "nowhere: each is loaded whenever a pair needs it")
            logger.info("%d scans of %.3g GiB in all are kept %s", count, needed / 2**30, place)
        if self.kind == "none":
            return
        target = self.device if self.kind == "device" else None

        def there(position: int) -> Entry:
            entry = load(position) if position else first
            return {k: v.to(target) if target and isinstance(v, Tensor) else v for k, v in entry.items()}

        with ThreadPoolExecutor(2) as pool:
            loaded: Iterator[Entry] = pool.map(there, range(count))
            self.kept = list(tqdm(loaded, total=count, desc="loading scans", disable=None if shown else True))

    def _chosen(self, needed: float) -> str:
        if self.device.type == "cuda" and needed <= _SHARES["device"] * torch.cuda.mem_get_info(self.device)[0]:
            return "device"
        return "memory" if needed <= _SHARES["memory"] * available_bytes() else "none"


def _bytes(entry: Entry) -> int:
    return sum(value.nbytes for value in entry.values() if isinstance(value, Tensor | np.ndarray))
