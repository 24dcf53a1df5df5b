"""How long `morphzoo prepare` takes, in one process and in several, killed and resumed.

    python -m benchmarks.prepare LABELMAPS OUT [--people 20] [--jobs 1,2] [--kill_after 45]

Renders a T1w and a T2w image of each label map as BIDS, the T2w with a header that is off by 5 mm, and cuts one
person's file short. Then runs the command for each number of processes, once more when there is nothing left to do, and
once so that it is killed and called again. Writes `results.csv`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.experiments import REPOSITORY, markdown
from benchmarks.rendered_bids import write_people
from custom_components.files import write_table

OFF_MM = (3.0, -4.0, 0.0)  # of each T2w image, by its header
KEPT_BYTES = 20_000  # of the broken file


def write_damaged(label_maps: Path, folder: Path, number: int) -> None:
    """Write so many people as BIDS; of the third one the T1w is broken."""
    write_people(label_maps, folder, number, t2_off_mm=OFF_MM)
    broken = folder / "sub-03" / "anat" / "sub-03_T1w.nii.gz"
    if broken.exists():
        broken.write_bytes(broken.read_bytes()[:KEPT_BYTES])


def prepare(bids: Path, output: Path, jobs: int, kill_after: float | None = None) -> dict[str, Any]:
    """Call the command; how long it took, its CPU seconds, and how many sessions are there."""
    command = [sys.executable, "-m", "custom_components", "prepare", str(bids), "-o", str(output), "--spacing", "2"]
    before, start = os.times(), time.perf_counter()
    with (output.parent / f"{output.name}.log").open("a") as log:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        process = subprocess.Popen([*command, "--jobs", str(jobs)], stdout=log, stderr=log, env=environment)
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    done = {kind: len(list(output.glob(f"sub-*/anat/{name}"))) for kind, name in LOGS.items()}
    return {
        "jobs": jobs,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": cpu,
        "exit": process.returncode,
        **done,
    }


LOGS = {"cleaned": "log_native.json", "done": "log.json"}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder of label maps with labels.csv")
    parser.add_argument("output", type=Path, help="folder of the images and results")
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--jobs", default="1,2", help="numbers of processes, separated by commas")
    parser.add_argument("--kill_after", type=float, default=45.0, help="seconds")
    args = parser.parse_args(words)
    bids = args.output / "bids"
    write_damaged(args.data, bids, args.people)
    numbers = [int(number) for number in args.jobs.split(",")]
    rows = [{"run": "new", **prepare(bids, args.output / f"jobs_{jobs}", jobs)} for jobs in numbers]
    last = numbers[-1]
    rows.append({"run": "nothing to do", **prepare(bids, args.output / f"jobs_{last}", last)})
    rows.append({"run": "killed", **prepare(bids, args.output / "killed", last, args.kill_after)})
    rows.append({"run": "called again", **prepare(bids, args.output / "killed", last)})
    write_table(args.output / "results.csv", rows)
    print(markdown(list(rows[0]), [list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
