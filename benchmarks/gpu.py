"""Everything that a GPU is to show, in one command.

    python -m benchmarks.gpu --minutes 14 --output DIR [--maps MAPS.npz --table labels.csv] [--heads LIST.json]
        [--wheels FOLDER] [--stages NAME ...]

Six stages, one after another; each writes its result as soon as it has it:

- environment.json: the device, versions;
- correctness.jsonl: the tests marked gpu, one line a test (on the CPU: a training on a stand-in for a GPU);
- speed.json: `gpu_speed`, one row a case;
- memory.json: `gpu_memory`, one row a size;
- heads.csv: `gpu_heads`, if there is a list of labelled pairs: overlap and seconds beside FireANTs;
- training/: `gpu_queue` for the rest of the time, if there are maps (a file of `device_maps`).

stages.json says how far each of them is. A run that is cut loses nothing, and the same command goes on: tests that
passed, rows that are there and trainings that had their time are passed over. The machine needs torch, and a folder of
wheels for what else it lacks, which is installed into DIR/packages without a network. A rehearsal: `--device cpu
--minutes 1`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
# The largest share of the whole time that a stage gets; what it leaves goes to those after it.
SHARES = {"environment": 0.1, "correctness": 0.4, "speed": 0.3, "memory": 0.15, "heads": 0.25, "training": 1.0}
STARTING = 0.15  # of the trainings' time: their processes start and validate
STAND_IN = ["tests/bundles/test_waits.py", "-k", "voxelmorph]"]


class Run:
    """A run of all stages into a folder, within a time.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.output, self.device = options, Path(options.output).resolve(), options.device
        self.output.mkdir(parents=True, exist_ok=True)
        self.begin, self.seconds = time.monotonic(), 60 * options.minutes
        self.scale = 1 / min(1.0, sum(SHARES[name] for name in options.stages))
        self.path = self.output / "stages.json"
        self.stages: dict[str, dict[str, Any]] = json.loads(self.path.read_text()) if self.path.exists() else {}
        paths = [str(self.output / "packages"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.monotonic() - self.begin)

    def call(self, module: str, *words: object, limit: float, **environment: str) -> str:
        """Run a module in a process of its own; "done", "failed" or "cut" at the limit. Its output goes to a log."""
        log = self.output / f"{module.rpartition('.')[2]}.log"
        with open(log, "a", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", module, *map(str, words)],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env={**self.environment, **environment},
                preexec_fn=os.setpgrp,  # a group that ends together, with the priority of this session
            )
            try:
                return "failed" if process.wait(max(limit, 1)) else "done"
            except subprocess.TimeoutExpired:
                return "cut"
            finally:
                end(process)

    def stage(self, name: str, work: Callable[[float], str]) -> None:
        """Do a stage unless it is done, or not asked for."""
        if name not in self.options.stages or self.stages.get(name, {}).get("state") == "done":
            return
        begin, limit = time.monotonic(), min(self.left, SHARES[name] * self.scale * self.seconds)
        state = work(limit) if limit > 1 else "no time left"
        self.stages[name] = {"state": state, "seconds": round(time.monotonic() - begin, 1)}
        self.path.write_text(json.dumps(self.stages, indent=1))
        print(f"{name}: {state} ({self.stages[name]['seconds']} s)", flush=True)

    def install(self) -> None:
        """Unpack the wheels, once, without looking for what they require.

        Raises:
            SystemExit: if there are none, or pip refuses one.
        """
        target = self.output / "packages"
        if self.options.wheels is None or target.exists():
            return
        wheels = sorted(Path(self.options.wheels).glob("*.whl"))
        words = ["install", "--no-index", "--no-deps", "--quiet", "--target", target, *wheels]
        if not wheels or self.call("pip", *words, limit=self.left) != "done":
            raise SystemExit(
                f"{self.options.wheels}: {len(wheels)} wheels, not installed; see {self.output / 'pip.log'}"
            )

    def describe(self, limit: float) -> str:
        """Stage environment."""
        cuda = self.device == "cuda"
        packages = distributions(path=[str(self.output / "packages"), *sys.path])
        known = {"torch", "monai", "nibabel", "numpy", "pytorch-ignite", "triton"}
        facts: dict[str, object] = {
            "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
            "memory_gib": round(torch.cuda.mem_get_info()[1] / 2**30, 1) if cuda else None,
            "capability": torch.cuda.get_device_capability() if cuda else None,
            "bfloat16": torch.cuda.is_bf16_supported() if cuda else None,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "packages": {p.metadata["Name"]: p.version for p in packages if p.metadata["Name"] in known},
        }
        (self.output / "environment.json").write_text(json.dumps(facts, indent=1))
        return "done"

    def check(self, limit: float) -> str:
        """Stage correctness."""
        if importlib.util.find_spec("pytest") is None and not (self.output / "packages" / "pytest").exists():
            return "failed: no pytest"
        words = ["-m", "gpu", "tests"] if self.device == "cuda" else STAND_IN
        if self.device == "cuda" and importlib.util.find_spec("xdist") is not None:
            words = ["-n", str(max(1, min(14, (os.cpu_count() or 1) - 2))), *words]
        return self.call(
            "pytest", "-p", "benchmarks.outcomes", "-p", "no:cacheprovider", *words,
            limit=limit, MORPHZOO_OUTCOMES=str(self.output / "correctness.jsonl"),
        )  # fmt: skip

    def measure(self, module: str, limit: float) -> str:
        """Stages speed and memory."""
        small = [] if self.device == "cuda" else ["--small"]
        file = self.output / f"{module.removeprefix('gpu_')}.json"
        return self.call(f"benchmarks.{module}", "--output", file, "--device", self.device, *small, limit=limit)

    def compare(self, limit: float) -> str:
        """Stage heads."""
        if not self.options.heads:
            return "left out: no --heads"
        device = "cuda:0" if self.device == "cuda" else self.device
        words = [self.options.heads, self.output / "heads.csv", "--device", device]
        return self.call("benchmarks.gpu_heads", *words, limit=limit)

    def train(self, limit: float) -> str:
        """Stage training."""
        if not self.options.maps:
            return "left out: no --maps"
        words = [self.options.maps, "--table", self.options.table, "--output", self.output / "training"]
        words += ["--minutes", min((1 - STARTING) * limit / 60, self.options.training_minutes)]
        if self.device != "cuda":
            words += ["--only", "voxelmorph", "--", "--device", self.device, "--precision", "float32", "--crop", 32]
        return self.call("benchmarks.gpu_queue", *words, limit=limit)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            pass
        return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="of all stages together")
    parser.add_argument("--output", required=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--maps", type=lambda path: Path(path).resolve(), help="file of device_maps; none: no training")
    parser.add_argument("--table", type=lambda path: Path(path).resolve(), help="CSV file of the labels' intensities")
    parser.add_argument("--heads", type=lambda path: Path(path).resolve(), help="data list of labelled pairs")
    parser.add_argument("--stages", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--training_minutes", type=float, default=math.inf, help="of the trainings at most")
    parser.add_argument("--wheels", help="folder of wheels that this machine lacks")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device; a rehearsal: --device cpu")
    if options.maps and not options.table:
        raise SystemExit("--maps needs --table")
    run = Run(options)
    run.install()
    run.stage("environment", run.describe)
    run.stage("correctness", run.check)
    run.stage("speed", lambda limit: run.measure("gpu_speed", limit))
    run.stage("memory", lambda limit: run.measure("gpu_memory", limit))
    run.stage("heads", run.compare)
    run.stage("training", run.train)


if __name__ == "__main__":
    main()
