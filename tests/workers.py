"""What processes of a test do; a process imports nothing else for it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


def doubled(item: int) -> int:
    """Twice the item; but three is refused, and four ends the process after a while."""
    print("a line about", item)
    if item == 3:
        raise ValueError("three is no number")
    if item == 4:
        time.sleep(0.3)  # as memory takes a while to run out
        os._exit(9)
    return 2 * item


@dataclass
class Counted:
    """Twice the item, and a line in a folder's file of that item for each time that it was done.

    The process that comes first to item `fatal` is killed there.
    """

    folder: Path
    fatal: int = -1

    def __call__(self, item: int) -> int:
        if item == self.fatal:
            with (self.folder / "killed").open("a") as file:
                file.write(".")
            if (self.folder / "killed").stat().st_size == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        with (self.folder / str(item)).open("a") as file:
            file.write(f"{os.getpid()}\n")
        return 2 * item


class Loaded:
    """The item, and how many this process has had before; what is counted does not travel."""

    def __init__(self) -> None:
        self.before = 0

    def __getstate__(self) -> dict[str, int]:
        return {"before": 0}

    def __call__(self, item: int) -> tuple[int, int]:
        self.before += 1
        return os.getpid(), self.before


def page_faults(item: int) -> int:
    """How many pages of memory ten arrays of 40 MB take from the system, one after the other, when all is warm."""
    import resource

    import torch

    for _ in range(30):
        torch.ones(10_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
