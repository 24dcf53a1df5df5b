"""Seconds and memory of a sweep of 20 values, for the bundle's page: the fields alone, without files.

    python -m benchmarks.hypermorph_speed

Each case runs in its own process, so that its peak memory is its own. The networks are untrained, because weights do
not change the cost.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import torch

from custom_components.deformations.velocity import StationaryVelocity
from custom_components.inference.prediction import NetworkPredictor
from custom_components.inference.registration import RegistrationInferer
from custom_components.methods.hypermorph.inference import HyperInferer, SweepInferer
from custom_components.methods.hypermorph.network import HyperMorphUNet

CASES = {"2-D 192 x 160": (192, 160), "3-D 160 x 192 x 224 mm at 2 mm": (80, 96, 112)}
NETWORKS = {
    "decoder by channels (shipped)": {"hyper_encoder": False},
    "all layers by channels": {},
    "all kernels (the paper's)": {"generated": "kernels"},
}


def main() -> None:
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| grid | network | precision | one value, s | sweep of 20, s | ratio | peak memory, MiB |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        for network in NETWORKS:
            for precision in ("float32", "bfloat16"):
                command = [sys.executable, "-m", "benchmarks.hypermorph_speed", case, network, precision]
                subprocess.run(command, check=True)


def measure(case: str, network: str, precision: str) -> None:
    size = CASES[case]
    model = HyperMorphUNet(len(size), half_resolution=True, **NETWORKS[network]).eval()
    image = torch.rand(1, 2, *size)
    deformation, seconds = StationaryVelocity(), {}
    with_hyper = HyperInferer(RegistrationInferer(deformation, NetworkPredictor(precision)), deformation, 0.3)
    with torch.no_grad():
        for sweep in (0, 20):
            inferer = SweepInferer(with_hyper, deformation, sweep=sweep, precision=precision)
            inferer(image, model)
            start = time.perf_counter()
            pred = inferer(image, model)
            seconds[sweep] = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    alone = float(pred["sweep_seconds"])
    print(
        f"| {case} | {network} | {precision} | {seconds[0]:.3f} | {alone:.2f} | {alone / seconds[0]:.1f} | {peak:.0f} |"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(*sys.argv[1:])
    else:
        main()
