"""What the parts of a registration cost on a device, beside the time that their bytes need.

    python -m benchmarks.gpu_speed --output FILE [--device cuda] [--small]

Each row is printed and written as soon as it is measured; the same command goes on after a cut. `share` is the least
number of bytes that the operation must read and write, divided by its time and by the rate of a large copy on this
device. `waits` counts the times that one call waits for the device.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.experiments import bundle_config
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.fields import integrate_velocity, warp
from custom_components.inference.refiner import refiner
from custom_components.losses.overlap import LabelDice
from custom_components.losses.pair import pair_loss
from custom_components.losses.similarity import LNCC, MIND

TIMED = ("voxelmorph", "synthmorph")


class Bench:
    """Times calls on a device and writes the table as it grows; a file that is there is gone on with."""

    def __init__(self, device: torch.device, output: Path) -> None:
        self.device, self.output, self.rate = device, output, float("nan")
        self.rows: list[dict[str, object]] = json.loads(output.read_text()) if output.exists() else []

    @property
    def known(self) -> set[object]:
        """The cases that the file has."""
        return {row["case"] for row in self.rows}

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], repeats: int) -> float:
        """The median of so many calls, after one that does not count."""
        call()
        times = []
        for _ in range(repeats):
            self.synchronize()
            begin = time.perf_counter()
            call()
            self.synchronize()
            times.append(time.perf_counter() - begin)
        return sorted(times)[repeats // 2]

    def waits(self, call: Callable[[], object]) -> int | None:
        if self.device.type != "cuda":
            return None
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)

    def row(self, name: str, call: Callable[[], object], *, moved: int = 0, repeats: int = 5) -> None:
        """Measure a call unless the file has it; `moved` is the number of bytes it must read and write."""
        if name in self.known:
            return
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            seconds = self.seconds(call, repeats)
            row: dict[str, object] = {"case": name, "seconds": round(seconds, 6)}
            if moved:
                row["share"] = round(moved / seconds / self.rate, 3)
            row["waits"] = self.waits(call)
            if self.device.type == "cuda":
                row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        except RuntimeError as error:
            row = {"case": name, "error": str(error).splitlines()[0]}
        self.add(row)

    def add(self, row: dict[str, object]) -> None:
        self.rows.append(row)
        beside = self.output.with_suffix(".part")  # a cut leaves the file as it was
        beside.write_text(json.dumps(self.rows, indent=1))
        beside.replace(self.output)
        print(json.dumps(row), flush=True)


def smooth(shape: list[int], device: torch.device, scale: int = 8) -> Tensor:
    """Smooth noise in [0, 1]."""
    coarse = torch.randn(*shape[:2], *[max(2, n // scale) for n in shape[2:]], device=device)
    noise = torch.nn.functional.interpolate(coarse, size=shape[2:], mode="trilinear", align_corners=True)
    return (noise - noise.min()) / (noise.max() - noise.min())


def ceilings(bench: Bench) -> None:
    """The machine, the rate of a copy and that of a matrix product (bfloat16; float32 on the CPU)."""
    cuda = bench.device.type == "cuda"
    source = torch.rand(2**28 if cuda else 2**24, device=bench.device)
    target = torch.empty_like(source)
    bench.rate = 2 * source.nbytes / bench.seconds(lambda: target.copy_(source), 10)
    matrix = torch.randn(8192, 8192, device=bench.device).bfloat16() if cuda else torch.randn(512, 512)
    product = 2 * len(matrix) ** 3 / bench.seconds(lambda: matrix @ matrix, 5)
    bench.rows = [row for row in bench.rows if row["case"] != "machine"]
    bench.add(
        {
            "case": "machine",
            "device": torch.cuda.get_device_name() if cuda else platform.processor(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "copy_gb_per_s": round(bench.rate / 1e9, 1),
            "product_tflop_per_s": round(product / 1e12, 2),
        }
    )


def operations(bench: Bench, size: list[int]) -> None:
    """Warp, integration, similarities and penalties, forward and with the gradient."""
    device, voxels = bench.device, size[0] * size[1] * size[2]
    moving, fixed = smooth([1, 1, *size], device), smooth([1, 1, *size], device)
    field = (4 * (smooth([1, 3, *size], device) - 0.5)).requires_grad_()
    half = (4 * (smooth([1, 3, *[n // 2 for n in size]], device) - 0.5)).requires_grad_()
    labels = [(smooth([1, 1, *size], device) * 30).int() for _ in range(2)]
    name = "x".join(map(str, size))

    def with_gradient(value: Callable[[], Tensor]) -> Callable[[], None]:
        def call() -> None:
            field.grad = half.grad = None
            value().backward()

        return call

    with torch.no_grad():
        bench.row(f"warp {name}", lambda: warp(moving, field), moved=voxels * 4 * 5)
        bench.row(f"integrate 7 steps {name}", lambda: integrate_velocity(field), moved=voxels * 4 * 6)
    bench.row(f"warp + gradient {name}", with_gradient(lambda: warp(moving, field).mean()), moved=voxels * 4 * 8)
    bench.row(
        f"integrate 7 steps + gradient, half size of {name}",
        with_gradient(lambda: integrate_velocity(half).square().mean()),
        moved=voxels // 8 * 4 * 12,
    )
    for loss in (LNCC(9), MIND()):
        bench.row(
            f"warp + {type(loss).__name__} + gradient {name}",
            with_gradient(lambda loss=loss: loss(warp(moving, field), fixed)),
            moved=voxels * 4 * 9,
        )
    dice = LabelDice(list(range(30)))
    bench.row(f"LabelDice + gradient {name}", with_gradient(lambda: dice(field, *labels)), moved=voxels * 4 * 8)


class Timed(NamedTuple):
    """A pair through a network, and the gradient of the bundles' default loss."""

    name: str
    network: nn.Module
    pair: Callable[[], object]
    gradient: Callable[[], object]


def timed_networks(device: torch.device, size: list[int], precisions: Sequence[torch.dtype]) -> Iterator[Timed]:
    """The networks that are timed, each in each precision, with a pair of this size."""
    image = torch.cat([smooth([1, 1, *size], device), smooth([1, 1, *size], device)], 1)
    deformation, loss = StationaryVelocity(), pair_loss(0.1, folding_weight=10.0)
    for bundle in TIMED:
        network = bundle_config(bundle, ["inference"]).get_parsed_content("network_def").to(device)
        for precision in precisions:

            def pair(network: nn.Module = network, precision: torch.dtype = precision) -> dict[str, Tensor]:
                with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                    velocity = network(image).float()
                fields = deformation(velocity, size)
                return {**fields, "warped": warp(image[:, :1], fields["ddf"])}

            def gradient(pair: Callable[[], dict[str, Tensor]] = pair) -> None:
                loss(pair(), {"moving": image[:, :1], "fixed": image[:, 1:]}).backward()

            name = f"{bundle} {str(precision).removeprefix('torch.')} {'x'.join(map(str, size))}"
            yield Timed(name, network, pair, gradient)


def networks(bench: Bench, size: list[int]) -> None:
    """A pair through the networks, and a training step as the bundles' default loss asks for it."""
    precisions = (torch.float32, torch.bfloat16) if bench.device.type == "cuda" else (torch.float32,)
    for timed in timed_networks(bench.device, size, precisions):
        optimizer = torch.optim.Adam(timed.network.parameters(), lr=1e-4)

        def step(timed: Timed = timed, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            timed.gradient()
            optimizer.step()

        with torch.no_grad():
            bench.row(f"pair {timed.name}", timed.pair)
        bench.row(f"training step {timed.name}", step, repeats=3)


def refinement(bench: Bench, size: list[int]) -> None:
    """A pair by the optimiser that the bundles share, 80 iterations on three levels."""
    device = bench.device
    moving, fixed = smooth([1, 1, *size], device), smooth([1, 1, *size], device)
    optimizer = refiner(StationaryVelocity())
    bench.row(f"refine 30 + 30 + 20 iterations {'x'.join(map(str, size))}", lambda: optimizer(moving, fixed), repeats=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="a fifth of the size along each axis: a rehearsal")
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    bench = Bench(torch.device(options.device), options.output)
    shrink = 5 if options.small else 1
    coarse, full = ([n // shrink for n in size] for size in ([80, 112, 96], [160, 192, 224]))
    ceilings(bench)
    networks(bench, full)
    refinement(bench, coarse)
    operations(bench, full)
    operations(bench, coarse)
    networks(bench, coarse)
    refinement(bench, full)


if __name__ == "__main__":
    main()
