"""Seconds and memory of a training step and of the map alone, for one pair.

    python -m benchmarks.rdmm_speed [2 3]

Each model runs in its own process with one thread; the networks are those of the bundles, with random weights. A step
is prediction, map, loss and gradient (for metric learning without the iterations of the momentum). Memory is the peak
of the process, less what it used before.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.experiments import bundle_config

SIZES = {2: [182, 217], 3: [80, 112, 96]}
MODELS = {"vSVF": "avsm", "LDDMM": "avsm", "RDMM": "rdmm", "metric learning": "metric_learning"}


def measure(name: str, dims: int) -> dict[str, float]:
    """Seconds (the faster of two runs after a first one) and MB."""
    torch.set_num_threads(1)
    forms = ["train", "train_2d"] if dims == 2 else ["train"]
    config = bundle_config(MODELS[name], forms, integration_steps=5, precision="float32")
    if name == "LDDMM":
        config["deformation#stationary"] = False
    image = torch.rand(1, 2, *SIZES[dims])
    register = registration(config, image, alternating=name == "metric learning")
    loss = config.get_parsed_content("loss" if name == "metric learning" else "step_loss")
    batch = dict(zip(("moving", "fixed"), image.chunk(2, 1), strict=True))

    def step() -> None:
        pred = register()
        pred["warped"] = batch["moving"]
        loss(pred, batch).backward()

    before = peak_mb()
    with torch.no_grad():
        map_seconds = fastest(register)
    map_peak = peak_mb()
    result = {"map": map_seconds, "step": fastest(step)}
    return result | {"map_mb": map_peak - before, "step_mb": peak_mb() - before}


def registration(config: Any, image: torch.Tensor, alternating: bool) -> Callable[[], dict[str, torch.Tensor]]:
    """Network and map of a pair; `alternating`: the network sees an image and the momentum, and predicts the rest."""
    network, deformation = config.get_parsed_content("network_def"), config.get_parsed_content("deformation")
    size = image.shape[2:]
    dims, small = len(size), deformation.parameter_size(size)
    momentum = 0.1 * torch.randn(1, dims, *small)

    def register() -> dict[str, torch.Tensor]:
        if alternating:
            seen = torch.cat([torch.rand(1, 1, *small), momentum], 1)
            return deformation(torch.cat([momentum, network(seen)], 1), size)
        parameters = network(image)
        return deformation(torch.cat([parameters[:, :dims] + momentum, parameters[:, dims:]], 1), size)

    return register


def fastest(run: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    print("| model | map, s | MB | training step, s | MB |\n|---|---|---|---|---|")
    for dims in [int(word) for word in sys.argv[1:]] or SIZES:
        for name in MODELS:
            command = [sys.executable, "-m", "benchmarks.rdmm_speed", "--one", name, str(dims)]
            lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
            found = json.loads(lines[-1])
            cells = [f"{found[key]:.2f} | {found[f'{key}_mb']:.0f}" for key in ("map", "step")]
            print(f"| {name}, {dims}-D | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "--one":
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
    else:
        main()
