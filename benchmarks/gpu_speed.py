"""What the parts of a registration cost on a device, beside the time that their bytes need.

    python -m benchmarks.gpu_speed --output FILE [--device cuda] [--small]

Each row is printed and written as soon as it is measured; the same command goes on after a cut. `share` is the least
number of bytes that the operation must read and write, divided by its time and by the rate of a large copy on this
device. `waits` counts the times that one call waits for the device. Rows of networks and of the optimiser have the
numbers of `roofline`: `matrix_share` and `memory_share` of the measured rates, `peak_share` of the specification's,
and `times_roofline`, how many times as long as the roofline a call takes. Peers stand in rows of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks import gpu_peers
from benchmarks.experiments import bundle_config
from benchmarks.roofline import peak_of, shares, work
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.fields import integrate_velocity, warp
from custom_components.inference.refiner import refiner
from custom_components.losses import label_sums
from custom_components.losses.overlap import LabelDice
from custom_components.losses.pair import pair_loss
from custom_components.losses.similarity import LNCC, MIND
from custom_components.networks.layout import in_format

TIMED = ("voxelmorph", "synthmorph")


class Bench:
    """Times calls on a device and writes the table as it grows; a file that is there is gone on with."""

    def __init__(self, device: torch.device, output: Path) -> None:
        self.device, self.output, self.rate = device, output, float("nan")
        self.products: dict[str, float] = {}  # FLOP/s by precision
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

    def row(
        self, name: str, call: Callable[[], object], *, moved: int = 0, repeats: int = 5, precision: str | None = None
    ) -> None:
        """Measure a call unless the file has it.

        Args:
            moved: bytes that it must read and write.
            precision: of its products; with it, the row gets the numbers of `roofline`.
        """
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
            if precision is not None:
                row |= self.distance(call, seconds, precision)
        except Exception as error:  # a peer's, too: the other rows are to come
            row = {"case": name, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
        self.add(row)

    def distance(self, call: Callable[[], object], seconds: float, precision: str) -> dict[str, object]:
        """A call's distance to the roofline."""
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        product, peak = self.products[precision], peak_of(name, precision)
        return shares(work(call), seconds, product=product, copy=self.rate, peak=peak)

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
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # TF32, as cuDNN's convolutions of float32 take it
    for precision in ("float32", "bfloat16") if cuda else ("float32",):
        side = 8192 if cuda else 512
        matrix = torch.randn(side, side, device=bench.device).to(getattr(torch, precision))
        bench.products[precision] = 2 * side**3 / bench.seconds(lambda matrix=matrix: matrix @ matrix, 5)
    torch.set_float32_matmul_precision(before)
    bench.rows = [row for row in bench.rows if row["case"] != "machine"]
    bench.add(
        {
            "case": "machine",
            "device": torch.cuda.get_device_name() if cuda else platform.processor(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "copy_gb_per_s": round(bench.rate / 1e9, 1),
            "product_tflop_per_s": {name: round(rate / 1e12, 2) for name, rate in bench.products.items()},
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
    call = with_gradient(lambda: dice(field, *labels))
    for way in ("_multiplied", "_added"):
        with patch.multiple(label_sums, _added=getattr(label_sums, way), _multiplied=getattr(label_sums, way)):
            bench.row(f"LabelDice, labels {way[1:]}, + gradient {name}", call, moved=voxels * 4 * 8)
    for case, peer in gpu_peers.operations(moving, fixed, field).items():
        bench.row(f"{case} {name}", torch.no_grad()(peer))
        if "integrate" not in case:
            bench.row(f"{case} + gradient {name}", with_gradient(lambda peer=peer: peer().mean()))


class Timed(NamedTuple):
    """A pair through a network, and the gradient of the bundles' default loss."""

    name: str
    precision: str
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

            words = str(precision).removeprefix("torch.")
            yield Timed(f"{bundle} {words} {'x'.join(map(str, size))}", words, network, pair, gradient)


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
            bench.row(f"pair {timed.name}", timed.pair, precision=timed.precision)
        bench.row(f"training step {timed.name}", step, repeats=3, precision=timed.precision)


def ways(bench: Bench, size: list[int]) -> None:
    """The training step as `deterministic`, `compile` and the memory format change it."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cuda = bench.device.type == "cuda"
    for timed in timed_networks(bench.device, size, (torch.bfloat16,) if cuda else (torch.float32,)):
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            in_format(timed.network, layout)
            bench.row(f"gradient, weights {str(layout).removeprefix('torch.')}, {timed.name}", timed.gradient)
        in_format(timed.network, torch.contiguous_format)
        before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        torch.use_deterministic_algorithms(True, warn_only=True)
        bench.row(f"gradient, deterministic, {timed.name}", timed.gradient)
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
        if cuda:  # on a CPU it takes a minute, and docs/gpu.md has its figures
            timed.network.compile()
            bench.row(f"gradient, compiled, {timed.name}", timed.gradient)


def refinement(bench: Bench, size: list[int]) -> None:
    """A pair by the optimiser that the bundles share, 80 iterations on three levels."""
    device = bench.device
    moving, fixed = smooth([1, 1, *size], device), smooth([1, 1, *size], device)
    optimizer, name = refiner(StationaryVelocity()), "x".join(map(str, size))
    bench.row(
        f"refine 30 + 30 + 20 iterations {name}", lambda: optimizer(moving, fixed), repeats=1, precision="float32"
    )
    if gpu_peers.installed("fireants"):
        bench.row(f"FireANTs greedy, 200 + 100 + 50 iterations {name}", gpu_peers.fireants(moving, fixed), repeats=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="an eighth of the size along each axis: a rehearsal")
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    bench = Bench(torch.device(options.device), options.output)
    shrink = 8 if options.small else 1
    coarse, full = ([n // shrink for n in size] for size in ([80, 112, 96], [160, 192, 224]))
    ceilings(bench)
    networks(bench, full)
    refinement(bench, coarse)
    operations(bench, full)
    operations(bench, coarse)
    networks(bench, coarse)
    refinement(bench, full)
    for size in (coarse,) if options.small else (coarse, full):
        ways(bench, size)


if __name__ == "__main__":
    main()
