"""MorphZoo against MONAI and voxelmorph on the CPU: `python benchmarks/bench.py [--quick] [--output FILE]`.

Every row is a race: the contestants take turns in one process and the fastest turn of each counts, so that the ratios
hold on a busy machine where the seconds do not. First the contestants are checked to compute the same.
docs/benchmarks.md says how to read the table.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
warnings.filterwarnings("ignore")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom_components import fields
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet

SMALL, LARGE = (96, 112, 96), (160, 192, 224)
Contestants = dict[str, Callable[[], Any]]


@dataclass
class Row:
    """One comparison: the fastest of several turns, wall-clock and CPU seconds (summed over threads)."""

    case: str
    size: str
    ours: str
    theirs: str
    seconds: float
    their_seconds: float
    cpu_seconds: float
    their_cpu_seconds: float
    target: float | None = None

    @property
    def ratio(self) -> float:
        return self.their_seconds / self.seconds

    @property
    def cpu_ratio(self) -> float:
        return self.their_cpu_seconds / self.cpu_seconds

    def cells(self) -> list[str]:
        target = "" if self.target is None else f">= {self.target:g} {verdict(self.ratio >= self.target)}"
        times = [_number(self.seconds), _number(self.their_seconds), f"{self.ratio:.1f}", f"{self.cpu_ratio:.1f}"]
        return [self.case, self.size, self.ours, self.theirs, *times, target]


HEADER = ["case", "size", "ours", "theirs", "ours s", "theirs s", "ratio", "CPU ratio", "target"]


def race(contestants: Contestants, repeats: int) -> dict[str, tuple[float, float]]:
    """Fastest turn of each contestant, (wall, CPU) seconds; one turn each to warm up, then turns in alternation."""
    best = {name: (float("inf"), float("inf")) for name in contestants}
    for turn in range(repeats + 1):
        for name, run in contestants.items():
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn:
                best[name] = (min(best[name][0], wall), min(best[name][1], cpu))
    for name, (wall, cpu) in best.items():
        print(f"  {name}: {wall:.3f} s, {cpu:.3f} CPU s", file=sys.stderr)
    return best


def compare(
    case: str, size: Sequence[int], contestants: Contestants, theirs: str, repeats: int, targets: dict[str, float]
) -> list[Row]:
    """Race all contestants and set each against `theirs`."""
    times = race(contestants, repeats)
    return [
        Row(case, _size(size), name, theirs, wall, times[theirs][0], cpu, times[theirs][1], targets.get(name))
        for name, (wall, cpu) in times.items()
        if name != theirs
    ]


def textured_image(size: Sequence[int], seed: int) -> Tensor:
    """Noise at three scales in [0.2, 0.8], (1, 1, *size), with contrast nearly everywhere: flat windows differ."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 1, *size)
    for stride in (4, 10, 24):
        noise = torch.rand(1, 1, *[-(-n // stride) + 1 for n in size], generator=generator)
        image += F.interpolate(noise, size=tuple(size), mode="trilinear", align_corners=True)
    return 0.2 + 0.6 * (image - image.min()) / (image.max() - image.min())


def smooth_velocity(size: Sequence[int], amplitude: float = 3.0, seed: int = 0) -> Tensor:
    """Smooth random velocity, (1, 3, *size), with standard deviation `amplitude` voxels, 0 at the border."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.zeros(1, 3, *[max(5, n // 16) for n in size])
    inside = [slice(None)] * 2 + [slice(2, n - 2) for n in coarse.shape[2:]]
    coarse[inside] = torch.randn(coarse[inside].shape, generator=generator)
    velocity = F.interpolate(coarse, size=tuple(size), mode="trilinear", align_corners=True)
    return velocity * (amplitude / velocity.std())


def half(size: Sequence[int]) -> list[int]:
    return [-(-n // 2) for n in size]


def forward_backward(function: Callable[[Tensor], Tensor], leaf: Tensor) -> Callable[[], None]:
    leaf = leaf.clone().requires_grad_()

    def run() -> None:
        leaf.grad = None
        result = function(leaf)
        (result if result.ndim == 0 else result.square().mean()).backward()

    return run


def forward(function: Callable[[Tensor], Tensor], leaf: Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            function(leaf)

    return run


def plain_warp(image: Tensor, ddf: Tensor) -> Tensor:
    """The textbook warp: one call of torch's grid_sample."""
    size = ddf.shape[2:]
    scale = torch.tensor([2 / (n - 1) for n in size]).view(1, -1, 1, 1, 1)
    grid = ((fields.identity_grid(size) + ddf) * scale - 1).flip(1).movedim(1, -1)
    return F.grid_sample(image, grid, align_corners=True)


def bench_lncc(size: Sequence[int], repeats: int, target: float) -> Iterator[Row]:
    from monai.losses import LocalNormalizedCrossCorrelationLoss

    from custom_components.losses.similarity import LNCC

    a, b = textured_image(size, 0), textured_image(size, 1)
    ours, theirs = LNCC(9), LocalNormalizedCrossCorrelationLoss(kernel_size=9)
    contestants: Contestants = {
        "LNCC(9)": forward_backward(lambda x: ours(x, b), a),
        "MONAI LNCC(9)": forward_backward(lambda x: theirs(x, b), a),
    }
    yield from compare(
        "a LNCC, forward+backward", size, contestants, "MONAI LNCC(9)", repeats, targets={"LNCC(9)": target}
    )


def bench_integration(size: Sequence[int], repeats: int) -> Iterator[Row]:
    from monai.networks.blocks import DVF2DDF

    full, coarse = smooth_velocity(size), smooth_velocity(half(size), 1.5)
    deformation, theirs = StationaryVelocity(num_steps=7), DVF2DDF(num_steps=7)
    for name, mode in (("forward", forward), ("forward+backward", forward_backward)):
        contestants: Contestants = {
            "half res., upsampled": mode(lambda v: deformation(v, size)["ddf"], coarse),
            "half res., alone": mode(fields.integrate_velocity, coarse),
            "full res.": mode(fields.integrate_velocity, full),
            "MONAI DVF2DDF(7), full res.": mode(theirs, full),
        }
        yield from compare(
            f"b integration, {name}",
            size,
            contestants,
            "MONAI DVF2DDF(7), full res.",
            repeats,
            targets={"half res., upsampled": 5.0},
        )


def training_step(network: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    def run() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return run


def our_step(
    moving: Tensor, fixed: Tensor, precision: str = "float32", half_resolution: bool = True
) -> Callable[[], None]:
    from custom_components.inference.prediction import NetworkPredictor
    from custom_components.inference.registration import RegistrationInferer
    from custom_components.losses.regularization import GradientPenalty
    from custom_components.losses.similarity import LNCC

    network, image = VoxelMorphUNet(half_resolution=half_resolution), torch.cat([moving, fixed], 1)
    inferer = RegistrationInferer(StationaryVelocity(num_steps=7), NetworkPredictor(precision))
    similarity, regularization = LNCC(9), GradientPenalty()

    def loss() -> Tensor:
        pred = inferer(image, network)
        return similarity(pred["warped"], fixed) + regularization(pred["svf"])

    return training_step(network, loss)


def monai_step(moving: Tensor, fixed: Tensor) -> Callable[[], None]:
    from monai.losses import DiffusionLoss, LocalNormalizedCrossCorrelationLoss
    from monai.networks.nets import VoxelMorph

    network = VoxelMorph()
    similarity, regularization = LocalNormalizedCrossCorrelationLoss(kernel_size=9), DiffusionLoss()

    def loss() -> Tensor:
        warped, ddf = network(moving, fixed)
        return similarity(warped, fixed) + regularization(ddf)

    return training_step(network, loss)


def voxelmorph_step(moving: Tensor, fixed: Tensor) -> Callable[[], None]:
    import neurite
    import voxelmorph

    # Its default of five levels takes multiples of 32 only; four take our size and cost a little less.
    network = voxelmorph.nn.models.VxmPairwise(ndim=3, source_channels=1, target_channels=1, nb_features=[16] * 4)
    similarity, regularization = neurite.nn.modules.NCC(window_size=9), neurite.nn.modules.SpatialGradient("l2")

    def loss() -> Tensor:
        velocity, warped = network(moving, fixed, return_warped_source=True, return_field_type="velocity")
        return 1 - similarity(warped, fixed).mean() + regularization(velocity)

    return training_step(network, loss)


def bench_step(size: Sequence[int], repeats: int, with_voxelmorph: bool) -> Iterator[Row]:
    moving, fixed = textured_image(size, 0), textured_image(size, 1)
    contestants: Contestants = {
        "half res., float32": our_step(moving, fixed),
        "half res., bfloat16": our_step(moving, fixed, "bfloat16"),
        "full res., float32": our_step(moving, fixed, half_resolution=False),
        "MONAI VoxelMorph": monai_step(moving, fixed),
    }
    if with_voxelmorph:
        contestants["voxelmorph 0.3"] = voxelmorph_step(moving, fixed)
    times = race(contestants, repeats)
    for theirs, target in (("MONAI VoxelMorph", 3.0), ("voxelmorph 0.3", 1.5)):
        if theirs in times:
            for ours in list(contestants)[:3]:
                pair = (times[ours][0], times[theirs][0], times[ours][1], times[theirs][1])
                goal = None if ours.startswith("full") else target
                yield Row("c training step", _size(size), ours, theirs, *pair, goal)


def bench_warp(size: Sequence[int], repeats: int) -> Iterator[Row]:
    from monai.networks.blocks import Warp

    image, ddf = textured_image(size, 0), smooth_velocity(size)
    theirs = Warp(padding_mode="zeros")
    for name, mode in (("forward", forward), ("forward+backward", forward_backward)):
        contestants: Contestants = {
            "fields.warp": mode(lambda u: fields.warp(image, u), ddf),
            "torch grid_sample": mode(lambda u: plain_warp(image, u), ddf),
            "MONAI Warp": mode(lambda u: theirs(image, u), ddf),
        }
        times = race(contestants, repeats)
        for rival in ("torch grid_sample", "MONAI Warp"):
            pair = (times["fields.warp"], times[rival])
            wall, cpu = zip(*pair, strict=True)
            yield Row(f"e warp, {name}", _size(size), "fields.warp", rival, *wall, *cpu)


def network_alone(size: Sequence[int], half_resolution: bool, repeats: int) -> dict[str, float]:
    """Seconds and peak memory (GB, of the whole process) of the network without gradients; run in a fresh process."""
    network = VoxelMorphUNet(half_resolution=half_resolution).eval()
    image = torch.cat([textured_image(size, 0), textured_image(size, 1)], 1)
    image = image.contiguous(memory_format=torch.channels_last_3d)
    before = peak_memory()
    times = race({"network": forward(network, image)}, repeats)["network"]
    return {"seconds": times[0], "cpu_seconds": times[1], "peak_gb": peak_memory(), "peak_gb_before": before}


def peak_memory() -> float:
    """Largest resident memory of this process in GB.

    VmHWM where there is one: getrusage's maximum survives exec, so a child would report its parent's peak.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = [line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(lines[0][1]) * 1024 / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def bench_network(size: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    results = []
    for half_resolution in (True, False):
        child = f"import bench, json; print(json.dumps(bench.child({tuple(size)}, {half_resolution}, {repeats})))"
        output = subprocess.run(
            [sys.executable, "-c", child], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout
        results.append({"half_resolution": half_resolution, "size": _size(size), **json.loads(output.splitlines()[-1])})
    return results


def child(size: Sequence[int], half_resolution: bool, repeats: int) -> dict[str, float]:
    torch.set_num_threads(2)
    return network_alone(size, half_resolution, repeats)


def agreement(with_voxelmorph: bool) -> list[tuple[str, str]]:
    """Do the contestants compute the same? Each line: what was compared, and the difference."""
    from monai.losses import LocalNormalizedCrossCorrelationLoss
    from monai.networks.blocks import DVF2DDF, Warp

    from custom_components.losses.regularization import GradientPenalty
    from custom_components.losses.similarity import LNCC, _SquaredLocalCorrelation

    size = (64, 80, 64)
    a, velocity = textured_image(size, 0), smooth_velocity(size)
    ddf = fields.integrate_velocity(velocity)
    # Half alike: neurite's NCC stops with an AssertionError on nearly equal images, where rounding lifts cc above 1.
    b = (a + textured_image(size, 1)) / 2
    inside = (..., *[slice(8, n - 8) for n in size])

    def furthest(x: Tensor, y: Tensor) -> str:
        return f"{(x - y).abs().max().item():.1e}"

    cc = _SquaredLocalCorrelation.apply(b, a, None, 9, 1e-5)
    exact = _SquaredLocalCorrelation.apply(b.double(), a.double(), None, 9, 0.0)
    monai_cc = -LocalNormalizedCrossCorrelationLoss(kernel_size=9, reduction="none")(b, a)
    monai_exact = -LocalNormalizedCrossCorrelationLoss(kernel_size=9, reduction="none")(b.double(), a.double())
    half_resolution = StationaryVelocity()(fields.resize_field(velocity, half(size)), size)["ddf"]
    lines = [
        (
            "LNCC: MONAI, cc per voxel inside, float64, our floor 0, largest difference",
            furthest(exact[inside], monai_exact[inside]),
        ),
        (
            "LNCC: MONAI, cc per voxel inside, float32, as used, mean and largest difference",
            f"{(cc - monai_cc)[inside].abs().mean().item():.1e} {furthest(cc[inside], monai_cc[inside])}",
        ),
        ("LNCC: mean cc of the whole volume, ours and MONAI", f"{1 - LNCC(9)(b, a):.4f} {monai_cc.mean():.4f}"),
        ("warp: MONAI Warp, largest difference", furthest(fields.warp(a, ddf), Warp(padding_mode="zeros")(a, ddf))),
        ("warp: torch grid_sample, largest difference", furthest(fields.warp(a, ddf), plain_warp(a, ddf))),
        (
            "integration: MONAI DVF2DDF with border padding, largest difference, voxels",
            furthest(ddf, DVF2DDF(7, padding_mode="border")(velocity)),
        ),
        (
            "integration: half against full resolution, mean difference over mean displacement, voxels",
            f"{(half_resolution - ddf).norm(dim=1).mean():.2f} / {ddf.norm(dim=1).mean():.2f}",
        ),
    ]
    if with_voxelmorph:
        import neurite
        import voxelmorph

        integrated = voxelmorph.nn.functional.integrate_vec(velocity, 7)
        lines += [
            (
                "LNCC: mean cc of the whole volume, ours and neurite",
                f"{1 - LNCC(9)(b, a):.4f} {neurite.nn.modules.NCC(9)(b, a).item():.4f}",
            ),
            (
                "gradient term: neurite SpatialGradient, difference",
                furthest(GradientPenalty()(velocity), neurite.nn.modules.SpatialGradient("l2")(velocity)),
            ),
            ("integration: voxelmorph, 7 steps, largest difference, voxels", furthest(ddf, integrated)),
        ]
    return lines


def find_voxelmorph(folder: str | None) -> str | None:
    """Version of voxelmorph, None (and a printed reason) if it cannot be imported."""
    if folder:
        # At the end: its dependencies must not replace those of this environment.
        sys.path.append(folder)
    os.environ.setdefault("NEURITE_BACKEND", "pytorch")
    try:
        import voxelmorph
    except ImportError as error:
        print(f"voxelmorph skipped: {error}; see docs/benchmarks.md for how to install it apart", file=sys.stderr)
        return None
    return str(voxelmorph.__version__)


def cores_obtained(seconds: float = 1.0) -> float:
    """CPU seconds per second that a threaded matrix product gets: less than the threads where other work runs."""
    matrix = torch.rand(1500, 1500)
    matrix @ matrix
    wall, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        matrix @ matrix
    return (time.process_time() - cpu) / (time.perf_counter() - wall)


def machine(threads: int, voxelmorph_version: str | None) -> dict[str, str]:
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "threads": f"{threads}, OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'not set')}",
        "cores obtained": f"{cores_obtained():.1f}",
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "torch": torch.__version__,
        "monai": importlib.metadata.version("monai"),
        "voxelmorph": voxelmorph_version or "absent",
    }


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def _number(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 1 else f"{seconds:.2f}"


def _size(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def network_cells(result: dict[str, Any]) -> list[str]:
    return [
        "half res." if result["half_resolution"] else "full res.",
        result["size"],
        f"{result['seconds']:.2f}",
        f"{result['cpu_seconds']:.2f}",
        verdict(result["seconds"] <= 5),
        f"{result['peak_gb']:.2f}",
        f"{result['peak_gb_before']:.2f}",
        verdict(result["peak_gb"] <= 3),
    ]


NETWORK_HEADER = ["d network, no_grad", "size", "s", "CPU s", "<= 5 s", "peak GB", "before GB", "<= 3 GB"]


def as_table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table with aligned columns, which reads well on a terminal too."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * width for width in widths]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, rule, *rows]
    ]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small volumes and two turns only")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, help="turns of each contestant (default 5; 2 with --quick)")
    parser.add_argument("--only", default="abcde", help="letters of the parts to run, for example ab")
    parser.add_argument("--voxelmorph", metavar="FOLDER", help="where voxelmorph is, if not in this environment")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the results: .json or .md")
    options = parser.parse_args()
    if options.output and options.output.suffix not in (".json", ".md"):
        parser.error(f"expected an output ending in .json or .md, got {options.output}")
    repeats = options.repeats or (2 if options.quick else 5)
    few = max(2, repeats - 2)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    version = find_voxelmorph(options.voxelmorph)
    about = machine(options.threads, version)
    checks = agreement(version is not None)

    rows: list[Row] = []
    networks = bench_network(SMALL if options.quick else LARGE, few) if "d" in options.only else []
    for size, large in ((SMALL, False),) if options.quick else ((SMALL, False), (LARGE, True)):
        turns = few if large else repeats
        if "a" in options.only:
            rows += bench_lncc(size, turns, target=5.0 if large else 2.0)
        if "b" in options.only:
            rows += bench_integration(size, turns)
        if "c" in options.only and not large:
            rows += bench_step(size, few, version is not None)
        if "e" in options.only:
            rows += bench_warp(size, turns)
    rows.sort(key=lambda row: row.case[0])
    about["cores obtained after"] = f"{cores_obtained():.1f}"
    about["load after"] = " ".join(f"{load:.1f}" for load in os.getloadavg())

    parts = [as_table(["machine", ""], [[key, value] for key, value in about.items()])]
    parts.append(as_table(["do they compute the same?", ""], [list(line) for line in checks]))
    if rows:
        parts.append(as_table(HEADER, [row.cells() for row in rows]))
    if networks:
        parts.append(as_table(NETWORK_HEADER, [network_cells(result) for result in networks]))
    if min(float(about["cores obtained"]), float(about["cores obtained after"])) < 0.8 * options.threads:
        parts.append(
            f"The {options.threads} threads did not have a core each: the ratios compare work, not parallel speed, and "
            "part e (slabs for threads) shows nothing. Seconds are too long. Run again on an idle machine."
        )
    report = "\n\n".join(parts)
    print(report)
    if options.output and options.output.suffix == ".md":
        options.output.write_text(report + "\n")
    elif options.output:
        records = [{**asdict(row), "ratio": row.ratio, "cpu_ratio": row.cpu_ratio} for row in rows]
        result = {"machine": about, "agreement": dict(checks), "rows": records, "network": networks}
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
