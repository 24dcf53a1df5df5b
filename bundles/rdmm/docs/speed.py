r"""Seconds and memory of a training step and of the map alone, for a pair: python bundles/rdmm/docs/speed.py [2 3]

Each model runs in a process of its own, one thread; the networks are those of the bundles, with random weights. A
step is prediction, map, loss and gradient (metric learning: without the iterations of the momentum). Memory is the
process's peak, less what it had before.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
SIZES = {2: [182, 217], 3: [80, 112, 96]}
MODELS = {"vSVF": "avsm", "LDDMM": "avsm", "RDMM": "rdmm", "metric learning": "metric_learning"}


def measure(name: str, dims: int) -> dict[str, float]:
    """Seconds (the faster of two runs after a first one) and MB."""
    sys.path.insert(0, str(REPOSITORY))
    import torch
    from monai.bundle import ConfigParser

    torch.set_num_threads(1)
    configs = REPOSITORY / "bundles" / MODELS[name] / "configs"
    parser = ConfigParser()
    parser.read_config([str(configs / f"train{form}.json") for form in (("", "_2d") if dims == 2 else ("",))])
    parser.update({"integration_steps": 5, "precision": "float32"})
    if name == "LDDMM":
        parser["deformation#stationary"] = False
    network, deformation = parser.get_parsed_content("network_def"), parser.get_parsed_content("deformation")
    size = SIZES[dims]
    image = torch.rand(1, 2, *size)
    batch = dict(zip(("moving", "fixed"), image.chunk(2, 1), strict=True))
    small = deformation.parameter_size(size)
    momentum = 0.1 * torch.randn(1, dims, *small)

    def register() -> dict[str, torch.Tensor]:
        if name == "metric learning":
            seen = torch.cat([torch.rand(1, 1, *small), momentum], 1)
            return deformation(torch.cat([momentum, network(seen)], 1), size)
        parameters = network(image)
        return deformation(torch.cat([parameters[:, :dims] + momentum, parameters[:, dims:]], 1), size)

    loss = parser.get_parsed_content("loss" if name == "metric learning" else "step_loss")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds: dict[str, list[float]] = {"map": [], "step": []}
    with torch.no_grad():
        for _ in range(3):
            start = time.perf_counter()
            register()
            seconds["map"].append(time.perf_counter() - start)
    map_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        start = time.perf_counter()
        pred = register()
        pred["warped"] = batch["moving"]
        loss(pred, batch).backward()
        seconds["step"].append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {key: min(values[1:]) for key, values in seconds.items()}
    return result | {"map_mb": (map_peak - before) / 1024, "step_mb": (peak - before) / 1024}


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "--one":
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
        raise SystemExit
    print("| model | map, s | MB | training step, s | MB |\n|---|---|---|---|---|")
    for dims in [int(word) for word in sys.argv[1:]] or SIZES:
        for name in MODELS:
            command = [sys.executable, __file__, "--one", name, str(dims)]
            lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
            found = json.loads(lines[-1])
            cells = [f"{found[key]:.2f} | {found[f'{key}_mb']:.0f}" for key in ("map", "step")]
            print(f"| {name}, {dims}-D | {' | '.join(cells)} |", flush=True)
