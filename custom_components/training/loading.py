"""Batches for a training, loaded in this process or in others: the same ones either way."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
from monai.data import DataLoader, DistributedSampler
from torch import Tensor
from torch.utils.data import Dataset, RandomSampler, SequentialSampler

from ..checks import check_number
from ..data.pairs import ScanPairDataset
from ..networks.parallel import is_distributed
from ..vocabulary import Entry

logger = logging.getLogger(__name__)

_MOST = 8  # processes that load
_AHEAD = 2  # batches that each of them has ready
_SHARED = Path("/dev/shm")  # through which batches come from other processes
_SHARE = 0.8  # of what is free there


def loader(
    dataset: Dataset[Entry], batch_size: int = 1, *, shuffle: bool = True, num_workers: int | None = None
) -> DataLoader:
    """Batches of a data set; in a distributed run, of this process's share of it.

    The batches of a `ScanPairDataset` do not depend on `num_workers`: the number from which a pair's random numbers
    come is drawn here. What goes from the host's memory to a GPU is pinned.

    Args:
        dataset: the items.
        batch_size: items in a batch.
        shuffle: draw their order anew in each epoch.
        num_workers: processes that load, each two batches ahead. By default none, but for scans that are kept nowhere
            and go to a GPU: then one for each core but one, at most 8, and as many as the shared memory holds.
    Raises:
        ValueError: if the size of a batch is no whole number of at least 1, or `num_workers` none of at least 0.
    """
    check_number("batch_size", batch_size, least=1, whole=True)
    if num_workers is not None:
        check_number("num_workers", num_workers, least=0, whole=True)
    pairs = dataset if isinstance(dataset, ScanPairDataset) else None
    if num_workers is None:
        num_workers = 0 if pairs is None else _chosen(pairs, batch_size)
    if is_distributed():
        shared = DistributedSampler if pairs is None else _NumberedShare
        sampler = shared(dataset, even_divisible=True, shuffle=shuffle)
    elif pairs is None:
        sampler = (RandomSampler if shuffle else SequentialSampler)(dataset)  # type: ignore[arg-type]
    else:
        sampler = (_NumberedAtRandom if shuffle else _NumberedInOrder)(pairs)
    return DataLoader(
        dataset,
        num_workers=num_workers,
        batch_size=batch_size,
        sampler=sampler,
        pin_memory=pairs is not None and pairs.cache.uploads,
        prefetch_factor=_AHEAD if num_workers else None,
    )


class _NumberedShare(DistributedSampler):
    """Positions of this process's share, each with a number for the pair."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return _numbered(super().__iter__(), cast(ScanPairDataset, self.dataset))


class _NumberedAtRandom(RandomSampler):
    """Positions at random, each with a number for the pair."""

    data_source: ScanPairDataset

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        return _numbered(super().__iter__(), self.data_source)


class _NumberedInOrder(SequentialSampler):
    """Positions in their order, each with a number for the pair."""

    data_source: ScanPairDataset

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        return _numbered(super().__iter__(), self.data_source)


def _numbered(positions: Iterator[int], pairs: ScanPairDataset) -> Iterator[tuple[int, int]]:
    return ((position, pairs.number()) for position in positions)


def _chosen(pairs: ScanPairDataset, batch_size: int) -> int:
    """How many processes load."""
    if pairs.cache.kind != "none" or not pairs.cache.uploads:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = max(0, min(_MOST, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1))
    if not wanted or not _SHARED.exists():
        return wanted
    values = pairs[0, 0].values()
    needed = _AHEAD * batch_size * sum(value.nbytes for value in values if isinstance(value, Tensor | np.ndarray))
    room = int(_SHARE * shutil.disk_usage(_SHARED).free // max(needed, 1))
    if room < wanted:
        logger.warning("%s has room for the batches of %d loading processes, not of %d", _SHARED, room, wanted)
    logger.info("scans are loaded by %d processes", min(room, wanted))
    return min(room, wanted)
