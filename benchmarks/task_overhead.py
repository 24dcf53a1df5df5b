"""What a run over many items costs beside the items themselves: seconds for each, and memory.

    python -m benchmarks.task_overhead OUT [--numbers 250,1000,4000] [--pairs 125,500,1000] [--jobs 2]

First items that do nothing, then `morphzoo evaluate` of that many pairs of slices of 32 x 32 pixels. The memory is that
of the program itself, in which Dask's scheduler and client are, at 10, 50 and 100 % of the items.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil

import custom_components.tasks as tasks
from custom_components.commands.evaluate import evaluate
from custom_components.data.phantoms import phantom_pair


class Watched(tasks.Workers):
    """Workers that note when each tenth of the items was done, and the memory then."""

    seen: list[tuple[float, float]]

    def _there(self, function, items):  # type: ignore[no-untyped-def]
        self.seen = []
        for done, result in enumerate(super()._there(function, items), start=1):
            if done * 10 // len(items) > (done - 1) * 10 // len(items):
                self.seen.append((time.perf_counter(), psutil.Process().memory_info().rss / 2**20))
            yield result

    def row(self, number: int, before: tuple[float, float]) -> str:
        """Wall and CPU time for each item, here and (with their start) in the processes, and the memory."""
        (first, start_mib), (_, middle_mib), (last, end_mib) = self.seen[0], self.seen[4], self.seen[9]
        each_ms = 1000 * (last - first) / (0.9 * number)
        here_s, there_s = (now - then for now, then in zip(cpu_seconds(), before, strict=True))
        cpu = f"CPU {1000 * here_s / number:.2f} ms here, {there_s:.1f} s in the processes"
        return f"{number} | {each_ms:.2f} ms | {cpu} | {start_mib:.0f}, {middle_mib:.0f}, {end_mib:.0f} MiB"


def cpu_seconds() -> tuple[float, float]:
    """Of this process, and of those that it started and that have ended."""
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime, others.ru_utime + others.ru_stime


def nothing(item: int) -> int:
    """What the item was."""
    return item


def write_slices(folder: Path, number: int) -> Path:
    """A data list of pairs of tiny slices."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(21):
        image = phantom_pair((32, 32), k)["fixed"][0, 0].numpy()
        nib.save(nib.Nifti1Image(image[..., None], np.diag([4.0, 4, 4, 1])), folder / f"{k}.nii.gz")
    pairs = [{"id": f"p{k}", "moving": f"{1 + k % 20}.nii.gz", "fixed": "0.nii.gz"} for k in range(number)]
    path = folder / f"list{number}.json"
    path.write_text(json.dumps({"validation_pairs": pairs}))
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--numbers", default="250,1000,4000")
    parser.add_argument("--pairs", default="125,500,1000")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args(arguments)
    watched: list[Watched] = []
    original = tasks.Workers
    for number in map(int, given.numbers.split(",")):
        before = cpu_seconds()
        with Watched(given.jobs) as workers:
            workers.each(nothing, range(number))
        print("nothing |", workers.row(number, before), flush=True)

    def watch(jobs: int, scheduler: str | None) -> Watched:
        watched.append(Watched(jobs, scheduler))
        return watched[-1]

    tasks.Workers = watch  # type: ignore[assignment, misc]
    try:
        for number in filter(None, map(int, given.pairs.split(","))):
            data_list, output = write_slices(given.output, number), given.output / f"evaluated{number}"
            settings = {"affine": "none", "optimize": 0, "spacing": 2, "average": [], "pictures": False}
            before = cpu_seconds()
            evaluate(str(data_list), str(output), jobs=given.jobs, **settings)
            print(
                "pairs |", watched[-1].row(number, before), f"| {len(os.listdir(output))} files and folders", flush=True
            )
    finally:
        tasks.Workers = original  # type: ignore[misc]


if __name__ == "__main__":
    main()
