"""What a step of each bundle's train.json costs: its time, the loader's share of it, and its memory.

    python -m benchmarks.step_costs OUTPUT.json [--size 48 64 64] [--only NAME ...] [--precision float32]
        [--device cuda:0] [--deterministic false]

Trains on phantoms, one pair a step. On the CPU three steps; the median of the last two counts. `kept_gib` is what the
step keeps for its gradient, beside the weights: every storage that autograd saves, once. It stands in for a GPU's peak,
of which it is the larger part; the same at other sizes is in proportion to the voxels. On a GPU 30 steps, of which the
last 20 count: their time from the first to the last, with nothing between them that waits, and `peak_gib`, the peak
that torch's allocator counts. Rows are written as they are measured, and those that the file has are passed over.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from torch import Tensor

from custom_components.data.phantoms import write_phantom_scans

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
STATISTICS = "id,t1_prior_mean,t1_prior_mean_spread\n0,5,2\n1,110,8\n2,170,8\n3,60,8\n4,140,8\n"
# Networks of patches and of optimised momenta: few examples, optimised briefly.
BRIEF = {"num_momenta": 1, "iterations": [2, 2, 2], "visit_iterations": 2, "window": [0.0, 1.0, 1.0]}
BRIEF |= {"conditions": {"age": "numeric"}, "center": "image", "spacing": 1.0}
KEYS = ("precision", "device", "deterministic")


class Meter:
    """Times and memory of a trainer's steps."""

    def __init__(self, trainer: Engine, weights: list[Tensor]) -> None:
        self.loading: list[float] = []
        self.working: list[float] = []
        self.weights = {weight.untyped_storage().data_ptr() for weight in weights}
        self.kept: list[int] = []
        self._storages: dict[int, int] = {}
        self._hooks: Any = None
        trainer.add_event_handler(Events.GET_BATCH_STARTED, self._begin)
        trainer.add_event_handler(Events.ITERATION_STARTED, self._loaded)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._done)

    def _begin(self) -> None:
        self._at = time.process_time()

    def _loaded(self) -> None:
        now = time.process_time()
        self.loading.append(now - self._at)
        self._at, self._storages = now, {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def _done(self) -> None:
        self._hooks.__exit__(None, None, None)
        self.working.append(time.process_time() - self._at)
        self.kept.append(sum(self._storages.values()))


class GpuMeter:
    """The time of a trainer's last steps on a GPU, and the peak of its memory.

    Args:
        skipped: steps that do not count.
    """

    def __init__(self, trainer: Engine, skipped: int) -> None:
        self.skipped, self.steps = skipped, 0
        self.begin = self.seconds = math.nan
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._done)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._end)

    def _done(self) -> None:
        self.steps += 1
        if self.steps == self.skipped:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.begin = time.perf_counter()

    def _end(self) -> None:
        torch.cuda.synchronize()
        self.seconds = (
            math.nan if self.steps <= self.skipped else (time.perf_counter() - self.begin) / (self.steps - self.skipped)
        )

    def row(self) -> dict[str, object]:
        """Seconds of a step, NaN if there were too few, and GiB."""
        peak = torch.cuda.max_memory_allocated() / 2**30
        return {"seconds": round(self.seconds, 5), "peak_gib": round(peak, 3)}


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def phantoms(folder: Path, size: list[int]) -> Path:
    """Four scans with an attribute, and the labels' statistics."""
    data = Path(write_phantom_scans(folder, 4, tuple(size))).parent
    (data / "labels.csv").write_text(STATISTICS)
    sections = json.loads((data / "datalist.json").read_text())
    for i, scan in enumerate(sections["training"] + sections["validation"]):
        scan["age"] = 20 + 10 * i
    (data / "datalist.json").write_text(json.dumps(sections))
    return data


def measure(bundle: str, data: Path, folder: Path, size: list[int], options: argparse.Namespace) -> dict[str, object]:
    """The row of a bundle."""
    on_gpu = options.device.startswith("cuda")
    steps = 30 if on_gpu else 3
    config = BUNDLES / bundle / "configs" / "train.json"
    settings = {**BRIEF, "dataset_dir": str(data), "output_dir": str(folder), "ckpt_dir": str(folder), "size": size}
    settings |= {"num_pairs": steps, "num_val_pairs": 1, "max_epochs": 1, "val_interval": 1}
    settings |= {"precision": options.precision, "device": torch.device(options.device)}
    settings["deterministic"] = options.deterministic == "true"
    known = json.loads(config.read_text(encoding="utf-8"))
    settings["num_patches"] = steps * known["batch_size"]  # where they are what a batch counts
    job = ConfigWorkflow(
        workflow_type="train",
        config_file=str(config),
        meta_file=str(BUNDLES / bundle / "configs" / "metadata.json"),
        logging_file=False,
        bundle_root=str(BUNDLES / bundle),
        **{name: value for name, value in settings.items() if name in known},
    )
    job.initialize()
    trainer = job.parser.get_parsed_content("train#trainer")
    row = {"bundle": bundle, "size": size, **{key: getattr(options, key) for key in KEYS}}
    if on_gpu:
        timed = GpuMeter(trainer, 10)
        job.run()
        return row | timed.row()
    meter = Meter(trainer, list(job.network_def.parameters()))
    job.run()
    loading, working = median(meter.loading[1:]), median(meter.working[1:])
    return row | {
        "seconds": round(loading + working, 3),
        "loader_share": round(loading / (loading + working), 4),
        "kept_gib": round(max(meter.kept) / 2**30, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", type=int, nargs="+", default=[48, 64, 64])
    parser.add_argument("--only", nargs="+", help="names of bundles")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--deterministic", choices=["true", "false"], default="true")
    options = parser.parse_args()
    rows = json.loads(options.output.read_text()) if options.output.exists() else []
    names = options.only or sorted(path.parents[1].name for path in BUNDLES.glob("*/configs/train.json"))
    for name in names:
        if any(row["bundle"] == name and all(row[key] == getattr(options, key) for key in KEYS) for row in rows):
            continue
        with tempfile.TemporaryDirectory() as folder:
            data = phantoms(Path(folder) / "data", options.size)
            row = measure(name, data, Path(folder) / "run", options.size, options)
        rows.append(row)
        options.output.write_text(json.dumps(rows, indent=1))
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
