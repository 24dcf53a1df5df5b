"""How much memory a pair and a training step take, by size.

    python -m benchmarks.gpu_memory --output FILE [--device cuda] [--small]

On a GPU `gib` is the peak that torch's allocator counts. The CPU has no such counter; there it is what the step keeps
for its gradient, beside the weights: every storage that autograd saves, once. Rows are written as they are measured,
and those that the file has are passed over.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu_speed import Bench, timed_networks

SIZES = ([64, 80, 64], [80, 112, 96], [112, 144, 128], [160, 192, 224], [192, 224, 256])


def memory(device: torch.device, call: Callable[[], object]) -> float:
    """GiB that a call takes, as this module counts them."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**30
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not (tensor.is_leaf and tensor.requires_grad):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(kept.values()) / 2**30


def cases(device: torch.device, size: list[int]) -> dict[str, Callable[[], object]]:
    """A pair, and a training step of one pair, of each network that is timed."""
    found: dict[str, Callable[[], object]] = {}
    for timed in timed_networks(device, size, (torch.float32, torch.bfloat16)):
        if device.type == "cuda":
            found[f"pair {timed.name}"] = torch.no_grad()(timed.pair)
        found[f"training step {timed.name}"] = timed.gradient
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="a quarter of the first two sizes: a rehearsal")
    options = parser.parse_args()
    bench, device = Bench(torch.device(options.device), options.output), torch.device(options.device)
    for size in [[n // 4 for n in size] for size in SIZES[:2]] if options.small else SIZES:
        for name, call in cases(device, size).items():
            if name in bench.known:
                continue
            try:
                bench.add({"case": name, "gib": round(memory(device, call), 4)})
            except torch.OutOfMemoryError:
                bench.add({"case": name, "gib": None, "error": "out of memory"})


if __name__ == "__main__":
    main()
