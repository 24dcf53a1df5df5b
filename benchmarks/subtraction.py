"""What `morphzoo subtract` leaves of the background and of the vessels, on angiograms whose truth is known.

    python -m benchmarks.subtraction OUTPUT [--series 8] [--size 192] [--frames 12] [--weights model.pt]

OUTPUT receives subtraction.csv, the mean of each measure over the series by way of correction, and before_after.gif of
the first series. The ways: all squares; the vessel-robust objective of the command; the network of `subtraction` alone,
and with a few iterations of that objective; the true motion, which is the most that can be reached. The series: as they
come; with two and three times the motion; and "layers", in which soft tissue and vessels come to move against the
bones. None of their seeds is one of the network's training.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.experiments import BUNDLES
from custom_components.data.angiography import Angiogram, angiogram
from custom_components.files import write_table
from custom_components.methods.subtraction.correction import Correction, correct, subtracted
from custom_components.methods.subtraction.measures import series_metrics, true_metrics
from custom_components.methods.subtraction.network import MotionNetwork
from custom_components.methods.subtraction.objective import SubtractionLoss
from custom_components.methods.subtraction.pictures import write_animation
from custom_components.weights import load_weights

# By name: how far layers come apart, pixels in an image of 256, and the factor of all motion.
KINDS = {"one map": (0.0, 1.0), "twice": (0.0, 2.0), "three times": (0.0, 3.0), "layers": (3.0, 1.0)}
ITERATIONS = (10, 30)  # after the network


def ways(series: Angiogram, network: nn.Module) -> dict[str, tuple[Correction, float]]:
    """Each way's result and its seconds of CPU time."""
    logs, found = series.counts.clamp(min=1).log(), {}
    for name, robust in (("vessel-robust", "vessels"), ("squares", "squares")):
        begin = time.process_time()
        found[name] = correct(logs, loss=SubtractionLoss(robust=robust)), time.process_time() - begin
    for count in (0, *ITERATIONS):
        begin, iterations = time.process_time(), [count] if count else []
        corrected = correct(logs, network=network, iterations=iterations)
        found[f"network, {count} iterations"] = corrected, time.process_time() - begin
    mask = found["vessel-robust"][0].mask
    found["true motion"] = subtracted(logs, mask, series.ddf, (0, 1, 2)), 0.0
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--series", type=int, default=8)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--weights", type=Path, default=BUNDLES / "subtraction" / "models" / "model.pt")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    network = MotionNetwork().eval()
    load_weights(network, options.weights, "motion")
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    for kind, (apart, motion) in KINDS.items():
        for seed in range(100, 100 + options.series):
            series = angiogram((options.size, options.size), options.frames, seed, apart=apart, motion=motion)
            for name, (found, seconds) in ways(series, network).items():
                measures = true_metrics(found, series.vessels, series.noise, series.ddf)
                blind = series_metrics(found)["background_to_noise_after"]
                row = {**measures, "background_to_noise_after": blind, "seconds": seconds}
                rows.setdefault((kind, name), []).append(row)
                if (kind, name, seed) == ("one map", "vessel-robust", 100):
                    logs = series.counts.clamp(min=1).log()
                    shown = (one.transpose(2, 3) for one in (logs, found.before, found.after))
                    frames, before, after = shown
                    write_animation(
                        options.output / "before_after.gif", frames, Correction(found.ddf, before, after, found.mask)
                    )
    table = [
        {"series": kind, "way": name, **{key: float(np.mean([row[key] for row in some])) for key in some[0]}}
        for (kind, name), some in rows.items()
    ]
    write_table(options.output / "subtraction.csv", table)
    for row in table:
        print({key: value if isinstance(value, str) else round(value, 3) for key, value in row.items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
