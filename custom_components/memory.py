"""Refuse what cannot fit into memory, before it is tried; take it in large pages."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

_GIB = 2**30


def ask_for_large_pages() -> None:
    """Let torch take large arrays as pages of 2 MB, where Linux hands out such on request; before the first tensor.

    Each page is filled with zeros when it is first touched: with pages of 4 kB that took a third of all CPU time where
    arrays of 100 MB come and go. The environment variable THP_MEM_ALLOC_ENABLE=0 prevents it.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def check_memory(needed: float, what: str, cure: str) -> None:
    """Refuse a step whose estimated need of memory is more than is free.

    Args:
        needed: bytes.
        what: the beginning of the sentence, with the file or the setting.
        cure: what to do, with the switch that lowers the need.
    Raises:
        ValueError: with the estimate and what is free.
    """
    free = available_bytes()
    if needed > free:
        estimate = f"{needed / _GIB:.3g} GiB of memory, and {free / _GIB:.3g} are free"
        raise ValueError(f"{what} needs about {estimate}; {cure}")


def check_array(shape: Sequence[int], item_bytes: int, path: str) -> None:
    """Refuse a file whose voxels, once decompressed and turned into float32, do not fit into memory; see
    `check_memory`."""
    needed = math.prod(int(n) for n in shape) * (item_bytes + 4.0)
    size = " x ".join(map(str, shape))
    check_memory(needed, f"{path}: its header says {size} voxels, which", "crop or resample it, if that is true")


def available_bytes() -> float:
    """The memory that is free for this process: of the machine, and of the container's limit; infinite if unknown."""
    return min(_machine(), *(_container(*names) for names in _CGROUPS))


_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


def _machine() -> float:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return math.inf


def _container(limit: str, usage: str, stat: str) -> float:
    try:
        free = float(Path(limit).read_text(encoding="utf-8")) - float(Path(usage).read_text(encoding="utf-8"))
        counts = dict(line.split() for line in Path(stat).read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return math.inf
    # Files that were read lie in memory as long as nobody else needs it.
    return free + float(counts.get("total_inactive_file", counts.get("inactive_file", 0)))
