"""Region-specific metrics against one metric for all, in scenes where the truth is known.

    python -m benchmarks.rdmm_scenes OUT [--scenes 5] [--iterations 60]

Regions of a textured object move by kernels of their own. For each method, the weights of the energy and of the
transport to the widest Gaussian are chosen on a scene that is not in the table. OUT receives table.md and regions.png.
Finished parts are kept: other settings need another folder.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.experiments import markdown, measure_once, write_and_print
from custom_components.deformations.kernels import MultiGaussianKernel, gaussian_kernel, smooth_weighted
from custom_components.deformations.momentum import VectorMomentum
from custom_components.evaluation.metrics import normalized_cross_correlation
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import identity_grid, jacobian_determinant, resize_map, spatial_gradient, warp
from custom_components.inference.refinement import PairwiseOptimizer
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import MeanEnergy
from custom_components.losses.similarity import MSE
from custom_components.methods.rdmm.metric import MetricSettings, RegionSpecificMomentum
from custom_components.methods.rdmm.objective import OMTPenalty, RegionLoss
from custom_components.methods.rdmm.weights import label_weights, smooth_weights

SIGMAS = (2.0, 5.0, 12.0)  # voxels
BASE = tuple(sigma / sum(SIGMAS) for sigma in SIGMAS)
KERNEL = MultiGaussianKernel(SIGMAS, BASE, padding="zeros")
OBJECT, SHARES = (0.0, 0.0, 1.0), {2: (1.0, 0.0, 0.0), 3: (0.0, 1.0, 0.0), 4: (0.5, 0.0, 0.5)}
WEIGHT_SIGMA = 2.0
NOISE = 0.05  # the texture's standard deviation is 0.2
# Sums of squared differences: the weight of the energy, and that of the transport to the widest Gaussian.
ENERGY, OMT = (1e-4, 3e-4), (7e-3, 1.4e-2)
GLOBAL = {"Gaussian 2": ((2.0,), None), "Gaussian 5": ((5.0,), None), "Gaussian 12": ((12.0,), None)}
GLOBAL["multi-Gaussian"] = (SIGMAS, BASE)
TRUE, OPTIMISED = "RDMM, true weights", "RDMM, optimised"
TUNING = (100,)
Setting = tuple[float, float]  # weights of the energy and of the transport


def main(command: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--scenes", type=int, default=5, help="scenes in the table")
    parser.add_argument("--iterations", type=int, default=60, help="of each registration")
    args = parser.parse_args(command)
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    write_and_print(args.output / "table.md", run_scenes(args.output, args.scenes, args.iterations))


def make_scene(seed: int, size: int = 64, motion: float = 2.5) -> dict[str, Tensor]:
    """A disk of texture with three elliptic regions: images with noise, thin rings as labels, the map, the weights.

    The momentum is lambda grad I, as that of two images' geodesic is, lambda = s . grad I with a vector field s as
    rough as the region's Gaussians are. `motion` is the largest velocity at time 0, voxels.
    """
    generator = torch.Generator().manual_seed(seed)
    regions, rings = draw_regions(size, generator)
    clean = (0.5 + 0.2 * smooth_noise(1.5, 1, size, generator)).clamp(0.1, 1) * gaussian_kernel(0.7)(
        (regions > 0).float()
    )
    pre_weights = label_weights(regions, SHARES, OBJECT)
    weights = smooth_weights(pre_weights, WEIGHT_SIGMA)
    push = sum(
        weights[:, i, None].square() * smooth_noise(1.5 * sigma, 2, size, generator) for i, sigma in enumerate(SIGMAS)
    )
    slope = spatial_gradient(clean)[:, 0]
    momentum = (slope * push).sum(1, keepdim=True) * slope
    speed = smooth_weighted(momentum, weights, KERNEL, form="square").norm(dim=1, keepdim=True)
    gain = torch.zeros_like(speed)
    for label in (1, *SHARES):
        gain = torch.where(regions == label, 1 / speed[regions == label].quantile(0.9), gain)
    momentum = momentum * gaussian_kernel(1.0)(gain)
    speed = smooth_weighted(momentum, weights, KERNEL, form="square").norm(dim=1)
    truth = RegionSpecificMomentum(KERNEL, stride=1, metric=MetricSettings(WEIGHT_SIGMA)).given(pre_weights)
    found = truth(momentum * motion / speed.max(), (size, size))
    labels = regions * (rings % 5 < 2)[None, None]
    images = {"moving": clean, "fixed": warp(clean, found["ddf"])}
    scene = {k: v + NOISE * torch.randn(v.shape, generator=generator) for k, v in images.items()}
    scene |= {key: found[key] for key in ("ddf", "weights", "sigma", "pre_weights")}
    for key, values in (("regions", regions), ("labels", labels)):
        scene |= {key: values, f"{key}_fixed": warp(values, found["ddf"], mode="nearest")}
    return scene


def draw_regions(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Region numbers (1, 1, size, size), 0 outside, and the distance from the middle of the own region."""
    grid = identity_grid((size, size)) - (size - 1) / 2
    radius = grid.norm(dim=0)
    regions, rings = (radius < 0.45 * size).long(), radius
    turn, *angles = (2 * math.pi * torch.rand(4, generator=generator)).tolist()
    for number, angle in enumerate(angles):
        away = turn + 2 * math.pi * number / 3
        x, y = grid[0] - 0.235 * size * math.cos(away), grid[1] - 0.235 * size * math.sin(away)
        long, short = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        radius = (long.square() / 1.2 + short.square() * 1.2).sqrt()
        regions = torch.where(radius < 0.155 * size, number + 2, regions)
        rings = torch.where(radius < 0.155 * size, radius, rings)
    return regions[None, None], rings


def smooth_noise(sigma: float, channels: int, size: int, generator: torch.Generator) -> Tensor:
    """Noise of standard deviation 1 with the given smoothness, (1, channels, size, size)."""
    values = torch.randn(1, channels, size, size, generator=generator)
    smooth = gaussian_kernel(sigma, padding="reflect")(values)
    return smooth / smooth.std()


def register_scene(
    scene: Mapping[str, Tensor], method: str, energy: float, omt: float, iterations: int
) -> dict[str, Tensor]:
    loss: nn.Module = RegistrationLoss(MSE(), MeanEnergy(), energy, regularized="energy")
    deformation: Any = RegionSpecificMomentum(KERNEL, num_steps=4, metric=MetricSettings(WEIGHT_SIGMA))
    if method in GLOBAL:
        deformation = VectorMomentum(MultiGaussianKernel(*GLOBAL[method], padding="zeros"), num_steps=4)
    elif method == TRUE:
        deformation = deformation.given(scene["pre_weights"])
    else:
        loss = RegionLoss(loss, omt=OMTPenalty(SIGMAS, squared=True), omt_weight=omt, rate=None)
    optimizer = PairwiseOptimizer(deformation, loss, levels=[1], iterations=[iterations], method="lbfgs")
    parameters = optimizer(scene["moving"], scene["fixed"])
    with torch.no_grad():
        found = deformation(parameters, scene["fixed"].shape[2:])
    if method in GLOBAL:
        given = dict(zip(deformation.kernel.sigmas, deformation.kernel.weights, strict=True))
        shares = torch.tensor([given.get(sigma, 0.0) for sigma in SIGMAS]).view(1, -1, 1, 1)
        sigma = (shares * torch.tensor(SIGMAS).square().view_as(shares)).sum(1, keepdim=True).sqrt()
        found |= {"weights": shares.sqrt().expand_as(scene["weights"]), "sigma": sigma.expand_as(scene["sigma"])}
    return {key: found[key] for key in ("ddf", "weights", "sigma")}


def measure_scene(scene: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, float]:
    """Errors of the map (voxels) within the object, of the metric by region, and the overlap of the rings."""
    error = (found["ddf"] - scene["ddf"]).norm(dim=1, keepdim=True)
    inside = error[scene["regions_fixed"] > 0]
    warped = warp(scene["labels"], found["ddf"], mode="nearest")
    result = {"error": float(inside.mean()), "error95": float(inside.quantile(0.95))}
    result |= {"dice": float(mean_dice(warped, scene["labels_fixed"]))}
    result |= {"det_min": float(jacobian_determinant(found["ddf"]).min())}
    for label in (1, *SHARES):
        result[f"error_{label}"] = float(error[scene["regions_fixed"] == label].mean())
    size, region = scene["sigma"].shape[2:], scene["regions"]
    sigma, shares = resize_map(found["sigma"], size), resize_map(found["weights"], size).square()
    moved = 0.5 * (shares - scene["weights"].square()).abs().sum(1, keepdim=True)
    result["sigma_error"] = float((sigma - scene["sigma"]).abs()[region > 0].mean())
    result["weight_error"] = float(moved[region > 0].mean())
    result["sigma_correlation"] = float(normalized_cross_correlation(sigma, scene["sigma"], region > 0))
    for label in (1, *SHARES):
        result[f"sigma_{label}"] = float(sigma[region == label].mean())
        result[f"true_sigma_{label}"] = float(scene["sigma"][region == label].mean())
        for i in range(len(SIGMAS)):
            result[f"share_{label}_{i}"] = float(shares[:, i, None][region == label].mean())
    return result


def run_scenes(folder: Path, scenes: int, iterations: int) -> str:
    """Choose each method's weights on scenes for tuning, then measure with them; tables and a picture of the first."""
    settings: dict[str, list[Setting]] = {name: [(energy, 0.0) for energy in ENERGY] for name in (*GLOBAL, TRUE)}
    settings[OPTIMISED] = list(itertools.product(ENERGY, OMT))
    made = {seed: make_scene(seed) for seed in (*TUNING, *range(scenes))}
    total = len(TUNING) * sum(map(len, settings.values())) + scenes * len(settings)
    with tqdm(total=total, desc="registering") as bar:

        def measured(seed: int, name: str, setting: Setting) -> dict[str, float]:
            path = folder / "scenes" / f"{seed} {_name(name, setting)}.json"

            def measure() -> dict[str, float]:
                found = register_scene(made[seed], name, *setting, iterations)
                path.parent.mkdir(exist_ok=True)
                torch.save(found, path.with_suffix(".pt"))
                return measure_scene(made[seed], found)

            result = measure_once(path, measure)
            bar.update()
            return result

        tried = {
            name: {pair: float(np.mean([measured(seed, name, pair)["error"] for seed in TUNING])) for pair in pairs}
            for name, pairs in settings.items()
        }
        best = {name: min(errors, key=lambda pair: errors[pair]) for name, errors in tried.items()}
        rows = {name: [measured(seed, name, best[name]) for seed in range(scenes)] for name in settings}
    winner = min(GLOBAL, key=lambda name: tried[name][best[name]])
    shown = {name: folder / "scenes" / f"0 {_name(name, best[name])}.pt" for name in (winner, OPTIMISED, TRUE)}
    scene_picture(folder / "regions.png", made[0], {name: torch.load(path) for name, path in shown.items()})
    tuning = [
        [name, *(f"{v:g}" for v in pair), error] for name, errors in tried.items() for pair, error in errors.items()
    ]
    text = methods_table(best, rows, winner) + "\n" + regions_table(rows, winner) + "\n"
    return text + markdown(["for tuning", "energy", "OMT", "error"], tuning)


def _name(method: str, setting: Setting) -> str:
    return f"{method} {setting[0]:g} {setting[1]:g}"


Rows = Mapping[str, Sequence[Mapping[str, float]]]


def mean(rows: Sequence[Mapping[str, float]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def methods_table(best: Mapping[str, Setting], rows: Rows, winner: str) -> str:
    """Means over the scenes, a line for each method; `winner` is the best global metric."""
    lines = []
    for name, found in rows.items():
        fewer = sum(a["error"] < b["error"] for a, b in zip(found, rows[winner], strict=True))
        least = min(row["det_min"] for row in found)
        values = [mean(found, key) for key in ("error", "error95", "dice", "sigma_error", "weight_error")]
        better = "" if name == winner else f"{fewer} of {len(found)}"
        lines.append([name, *(f"{v:g}" for v in best[name]), *values, least, better])
    heads = ["method", "energy", "OMT", "error, voxels", "95 %", "Dice", "error of sigma", "of weights", "least det J"]
    correlation = mean(rows[OPTIMISED], "sigma_correlation")
    text = markdown([*heads, f"better than {winner}"], lines)
    return text + f"\nCorrelation of the optimised sigma with the true one: {correlation:.2f}\n"


def regions_table(rows: Rows, winner: str) -> str:
    """Sigma, shares of the Gaussians and error, a line for each region."""

    def shares(name: str, label: int) -> str:
        return " / ".join(f"{mean(rows[name], f'share_{label}_{i}'):.2f}" for i in range(len(SIGMAS)))

    lines = []
    for label in (1, *SHARES):
        sigmas = [mean(rows[name], f"sigma_{label}") for name in (OPTIMISED, winner)]
        errors = [mean(rows[name], f"error_{label}") for name in (winner, OPTIMISED, TRUE)]
        true = mean(rows[OPTIMISED], f"true_sigma_{label}")
        lines.append([label, true, *sigmas, shares(TRUE, label), shares(OPTIMISED, label), *errors])
    heads = ["region", "true sigma", "optimised", winner, "true shares", "optimised shares"]
    return markdown([*heads, f"error: {winner}", "optimised", "true weights"], lines)


def scene_picture(path: Path, scene: Mapping[str, Tensor], found: Mapping[str, Mapping[str, Tensor]]) -> None:
    """The scene, true and found deviations, and the errors of the maps."""
    import matplotlib.pyplot as plt

    size = scene["sigma"].shape[2:]
    inside = scene["regions_fixed"] > 0
    panels = [("moving", scene["moving"], "gray", (0, 1)), ("fixed", scene["fixed"], "gray", (0, 1))]
    panels += [("labels", scene["labels"], "nipy_spectral", (0, 4)), ("true sigma", scene["sigma"], "viridis", (0, 12))]
    panels += [("sigma, optimised", resize_map(found[OPTIMISED]["sigma"], size), "viridis", (0, 12))]
    for name, fields in found.items():
        error = (fields["ddf"] - scene["ddf"]).norm(dim=1, keepdim=True) * inside
        panels.append((f"error, {name}", error, "magma", (0, 1)))
    with plt.style.context("dark_background"):
        figure, axes = plt.subplots(2, 4, figsize=(11, 5.6), layout="constrained")
        for axis, (name, values, colours, (low, high)) in zip(axes.flat, panels, strict=True):
            image = axis.imshow(values[0, 0], cmap=colours, vmin=low, vmax=high)
            axis.set_title(name, fontsize=10)
            axis.axis("off")
            if colours in ("viridis", "magma"):
                figure.colorbar(image, ax=axis, label="voxels", shrink=0.8)
        figure.savefig(path, dpi=90)
        plt.close(figure)


if __name__ == "__main__":
    main()
