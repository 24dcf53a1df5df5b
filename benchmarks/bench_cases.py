"""The contestants of `benchmarks.bench` and their races."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.experiments import REPOSITORY
from custom_components import fields
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet

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
        times = [
            number_text(self.seconds),
            number_text(self.their_seconds),
            f"{self.ratio:.1f}",
            f"{self.cpu_ratio:.1f}",
        ]
        return [self.case, self.size, self.ours, self.theirs, *times, target]


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
        Row(case, size_text(size), name, theirs, wall, times[theirs][0], cpu, times[theirs][1], targets.get(name))
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
                yield Row("c training step", size_text(size), ours, theirs, *pair, goal)


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
            yield Row(f"e warp, {name}", size_text(size), "fields.warp", rival, *wall, *cpu)


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
        child = "import json; from benchmarks.bench_cases import child; "
        child += f"print(json.dumps(child({tuple(size)}, {half_resolution}, {repeats})))"
        output = subprocess.run(
            [sys.executable, "-c", child], cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout
        results.append(
            {"half_resolution": half_resolution, "size": size_text(size), **json.loads(output.splitlines()[-1])}
        )
    return results


def child(size: Sequence[int], half_resolution: bool, repeats: int) -> dict[str, float]:
    torch.set_num_threads(2)
    return network_alone(size, half_resolution, repeats)


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def number_text(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 1 else f"{seconds:.2f}"


def size_text(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
