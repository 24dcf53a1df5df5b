"""Train the bundles' networks on one GPU within a number of minutes, in lanes side by side.

    python -m benchmarks.gpu_queue MAPS.npz --table labels.csv --minutes 9 --output DIR [--only NAME ...] [-- WORD ...]

MAPS is a file of `device_maps`; the words go to every `device_training`. Weights and curves are written every minute.
The same command goes on after a cut: a training that had its time is passed over, one that had a part of it goes on
from its own newest weights for the rest (the rate rises and falls anew; Adam's moments start anew), its curves so far
in NAME.1.csv, NAME.2.csv. A rehearsal: `-- --device cpu --precision float32 --crop 32`.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

_BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
_FEWEST = 0.005  # minutes for which no training starts


@dataclass(frozen=True)
class Job:
    """A training.

    Args:
        name: of its files.
        share: of its lane's minutes.
        bundle: whose network is trained.
        initial: where it begins: weights in the output folder, the first of the names that are there, or else a
            bundle's weights, "bundle/file".
        words: for `device_training`.
    """

    name: str
    share: float
    bundle: str
    initial: Sequence[str]
    words: str = ""

    def weights(self, output: Path) -> Path:
        """The file to begin from."""
        places = [
            _BUNDLES / name.split("/")[0] / "models" / name.split("/")[1] if "/" in name else output / name
            for name in self.initial
        ]
        return next((path for path in places if path.exists()), places[-1])


LANES = (
    (
        Job("synthmorph", 1, "synthmorph", ["synthmorph/model.pt"],
            "--contrasts 0 0.05 --table_share 0.5 --folding_weight 30 --channels_last"),
    ),
    (
        Job("voxelmorph", 0.55, "voxelmorph", ["voxelmorph/model.pt"], "--folding_weight 30"),
        Job("voxelmorph_probabilistic", 0.3, "voxelmorph_probabilistic", ["voxelmorph.pt", "voxelmorph/model.pt"],
            "--learning_rate 0.0003"),
        Job("voxelmorph_calibrated", 0.15, "voxelmorph_probabilistic", ["voxelmorph_probabilistic.pt"],
            "--calibrate --learning_rate 0.001"),
    ),
    (
        Job("hypermorph", 0.55, "hypermorph", ["voxelmorph/model.pt"], "--learning_rate 0.0007 --folding_weight 30"),
        Job("avsm", 0.45, "avsm", ["avsm/model.pt"], "--folding_weight 30"),
    ),
    (
        Job("synthmorph_2d", 0.4, "synthmorph", ["synthmorph/model_2d.pt"],
            "--spatial_dims 2 --pairs 8 --contrasts 0 0.05 --table_share 0.5 --channels_last"),
        Job("rdmm", 0.6, "rdmm", ["rdmm/model.pt"], "--folding_weight 30"),
    ),
)  # fmt: skip


class Queue:
    """The trainings of a folder.

    Args:
        output: the folder.
        command: words of `device_training` that all of them share.
        minutes: of this call. The first call says how long each training is to be.
    """

    def __init__(self, output: Path, command: Sequence[str], minutes: float) -> None:
        self.output, self.command, self.minutes = output, list(command), minutes
        output.mkdir(parents=True, exist_ok=True)
        plan = output / "plan.json"
        if not plan.exists():
            plan.write_text(json.dumps({"minutes": minutes}))
        self.planned = float(json.loads(plan.read_text())["minutes"])

    def left(self, job: Job) -> float:
        """Minutes that a training still lacks."""
        seconds = sum(last_seconds(path) for path in [self.output / f"{job.name}.csv", *self._earlier(job)])
        left = job.share * self.planned - seconds / 60
        return left if left > _FEWEST else 0.0

    def lane(self, jobs: Sequence[Job]) -> None:
        """Train one after another; what is left of the lane is shared out over this call's minutes."""
        left = {job.name: self.left(job) for job in jobs}
        scale = min(1.0, self.minutes / max(sum(left.values()), _FEWEST))
        for job in jobs:
            if left[job.name]:
                self.train(job, left[job.name] * scale)

    def train(self, job: Job, minutes: float) -> None:
        """One training; its output goes to NAME.log."""
        weights, curve = self.output / f"{job.name}.pt", self.output / f"{job.name}.csv"
        initial = job.weights(self.output)
        if curve.exists():
            curve.rename(self.output / f"{job.name}.{len(self._earlier(job)) + 1}.csv")
            if weights.exists() and "--calibrate" not in job.words:  # which forgets what it begins from
                initial = weights
        words = ["--bundle", job.bundle, "--initial", initial, "--name", job.name, "--minutes", minutes]
        command = [*self.command, *words, "--output", self.output, *job.words.split()]
        with open(self.output / f"{job.name}.log", "a", encoding="utf-8") as log:
            program = [sys.executable, "-W", "ignore", "-m", "benchmarks.device_training"]
            code = subprocess.run([*program, *map(str, command)], stdout=log, stderr=subprocess.STDOUT).returncode
        print(f"{job.name}: {'failed, see its log' if code else f'{minutes:.2f} minutes'}", flush=True)

    def _earlier(self, job: Job) -> list[Path]:
        return list(self.output.glob(f"{job.name}.[0-9]*.csv"))


def last_seconds(curve: Path) -> float:
    """How long a training has been, by its curve; 0 without one."""
    if not curve.exists():
        return 0.0
    with open(curve, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return float(rows[-1]["seconds"]) if rows else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path)
    parser.add_argument("--table", type=Path, required=True, help="CSV file of the labels' T1-like intensities")
    parser.add_argument("--minutes", type=float, required=True, help="of each lane")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", help="names of trainings")
    ours, words = sys.argv[1:], []
    if "--" in ours:
        ours, words = ours[: ours.index("--")], ours[ours.index("--") + 1 :]
    options = parser.parse_args(ours)
    queue = Queue(options.output, [str(options.maps), "--table", str(options.table), *words], options.minutes)
    lanes = [[job for job in lane if not options.only or job.name in options.only] for lane in LANES]
    with ThreadPoolExecutor(len(lanes)) as pool:
        list(pool.map(queue.lane, lanes))


if __name__ == "__main__":
    main()
