r"""Region-specific metrics against one metric for all: in scenes where the truth is known, and in lungs.

    python bundles/rdmm/docs/reproduce_regions.py scene OUT
    python bundles/rdmm/docs/reproduce_regions.py lung OUT --data DATA

scene: regions of a textured object move by kernels of their own. Weights of the energy and of the transport to the
widest Gaussian are chosen for each method on a scene that is not in the table. OUT gets table.md and regions.png.
lung: DATA holds masks and landmarks of breath-hold scans (datalist.json names them). Two thirds of the landmarks and
the masks' distance maps drive the registration, the others judge it. OUT gets table.md.
What is there is not done again: other settings want another folder.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY))

from custom_components.deformations.kernels import MultiGaussianKernel, gaussian_kernel, smooth_weighted
from custom_components.deformations.momentum import VectorMomentum
from custom_components.evaluation.metrics import landmark_error_mm, normalized_cross_correlation
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import (
    identity_grid,
    jacobian_determinant,
    resize_field,
    resize_map,
    spatial_gradient,
    transform_points,
    warp,
)
from custom_components.files import write_metrics
from custom_components.inference.refinement import PairwiseOptimizer
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import MeanEnergy
from custom_components.losses.similarity import MSE
from custom_components.methods.rdmm.metric import RegionSpecificMomentum
from custom_components.methods.rdmm.objective import OMTPenalty, RegionLoss
from custom_components.methods.rdmm.weights import label_weights, smooth_weights
from custom_components.methods.voxelmorph_probabilistic.surfaces import signed_distance_mm


def run(command: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("experiment", choices=["scene", "lung"])
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", type=Path, help="of lung; default: lung_masks_landmarks in $MORPHZOO_TEST_DATA")
    parser.add_argument("--scenes", type=int, default=5, help="of the table")
    parser.add_argument("--iterations", type=int, help="of each registration; default: 60 in scenes, 30 in lungs")
    args = parser.parse_args(command)
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    if args.experiment == "scene":
        table = run_scenes(args.output, args.scenes, args.iterations or 60)
    else:
        folder = args.data or Path(os.environ.get("MORPHZOO_TEST_DATA", "")) / "lung_masks_landmarks"
        if not (folder / "datalist.json").is_file():
            parser.error(f"expected a datalist.json in {folder}: give --data, or set MORPHZOO_TEST_DATA")
        table = run_lungs(args.output, folder, args.iterations or 30)
    (args.output / "table.md").write_text(table)
    print(table)


def once(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of a file, which are made if it is not there."""
    if not path.is_file():
        write_metrics(path, make())
    return json.loads(path.read_text())


def markdown(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *[[f"{v:.3f}" if isinstance(v, float) else v for v in row] for row in rows]]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


# Scenes

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


def make_scene(seed: int, size: int = 64, motion: float = 2.5) -> dict[str, Tensor]:
    """A disk of texture with three elliptic regions: images with noise, thin rings as labels, the map, the weights.

    The momentum is lambda grad I, as that of two images' geodesic is, lambda = s . grad I with a vector field s as
    rough as the region's Gaussians are. `motion` is the largest velocity at time 0, voxels.
    """
    generator = torch.Generator().manual_seed(seed)

    def smooth_noise(sigma: float, channels: int) -> Tensor:
        values = torch.randn(1, channels, size, size, generator=generator)
        smooth = gaussian_kernel(sigma, padding="reflect")(values)
        return smooth / smooth.std()

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
    regions = regions[None, None]
    clean = (0.5 + 0.2 * smooth_noise(1.5, 1)).clamp(0.1, 1) * gaussian_kernel(0.7)((regions > 0).float())
    pre_weights = label_weights(regions, SHARES, OBJECT)
    weights = smooth_weights(pre_weights, WEIGHT_SIGMA)
    push = sum(weights[:, i, None].square() * smooth_noise(1.5 * sigma, 2) for i, sigma in enumerate(SIGMAS))
    slope = spatial_gradient(clean)[:, 0]
    momentum = (slope * push).sum(1, keepdim=True) * slope
    speed = smooth_weighted(momentum, weights, KERNEL, form="square").norm(dim=1, keepdim=True)
    gain = torch.zeros_like(speed)
    for label in (1, *SHARES):
        gain = torch.where(regions == label, 1 / speed[regions == label].quantile(0.9), gain)
    momentum = momentum * gaussian_kernel(1.0)(gain)
    speed = smooth_weighted(momentum, weights, KERNEL, form="square").norm(dim=1)
    truth = RegionSpecificMomentum(KERNEL, stride=1, weight_sigma=WEIGHT_SIGMA).given(pre_weights)
    found = truth(momentum * motion / speed.max(), (size, size))
    labels = regions * (rings % 5 < 2)[None, None]
    images = {"moving": clean, "fixed": warp(clean, found["ddf"])}
    scene = {k: v + NOISE * torch.randn(v.shape, generator=generator) for k, v in images.items()}
    scene |= {key: found[key] for key in ("ddf", "weights", "sigma", "pre_weights")}
    for key, values in (("regions", regions), ("labels", labels)):
        scene |= {key: values, f"{key}_fixed": warp(values, found["ddf"], mode="nearest")}
    return scene


def register_scene(
    scene: Mapping[str, Tensor], method: str, energy: float, omt: float, iterations: int
) -> dict[str, Tensor]:
    loss: nn.Module = RegistrationLoss(MSE(), MeanEnergy(), energy, regularized="energy")
    deformation: Any = RegionSpecificMomentum(KERNEL, num_steps=4, weight_sigma=WEIGHT_SIGMA)
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
    """Choose each method's weights on scenes for tuning, measure with them; tables, and a picture of the first."""
    settings = {name: [(energy, 0.0) for energy in ENERGY] for name in (*GLOBAL, TRUE)}
    settings[OPTIMISED] = list(itertools.product(ENERGY, OMT))
    made = {seed: make_scene(seed) for seed in (*TUNING, *range(scenes))}
    total = len(TUNING) * sum(map(len, settings.values())) + scenes * len(settings)
    with tqdm(total=total, desc="registering") as bar:

        def measured(seed: int, name: str, energy: float, omt: float) -> dict[str, float]:
            path = folder / "scenes" / f"{seed} {name} {energy:g} {omt:g}.json"

            def measure() -> dict[str, float]:
                found = register_scene(made[seed], name, energy, omt, iterations)
                path.parent.mkdir(exist_ok=True)
                torch.save(found, path.with_suffix(".pt"))
                return measure_scene(made[seed], found)

            result = once(path, measure)
            bar.update()
            return result

        tried = {
            (name, *pair): np.mean([measured(seed, name, *pair)["error"] for seed in TUNING])
            for name, pairs in settings.items()
            for pair in pairs
        }
        best = {name: min(pairs, key=lambda pair, name=name: tried[(name, *pair)]) for name, pairs in settings.items()}
        rows = {name: [measured(seed, name, *best[name]) for seed in range(scenes)] for name in settings}
    shown = {name: f"0 {name} {best[name][0]:g} {best[name][1]:g}.pt" for name in settings}
    winner = min(GLOBAL, key=lambda name: tried[(name, *best[name])])
    found = {name: torch.load(folder / "scenes" / shown[name]) for name in (winner, OPTIMISED, TRUE)}
    scene_picture(folder / "regions.png", made[0], found)
    return scene_tables(tried, best, rows, winner)


def scene_tables(tried: Mapping[Any, float], best: Mapping[str, Any], rows: Mapping[str, Any], winner: str) -> str:
    def mean(name: str, key: str) -> float:
        return float(np.mean([row[key] for row in rows[name]]))

    lines = []
    for name in rows:
        fewer = sum(a["error"] < b["error"] for a, b in zip(rows[name], rows[winner], strict=True))
        least = min(row["det_min"] for row in rows[name])
        values = [mean(name, key) for key in ("error", "error95", "dice", "sigma_error", "weight_error")]
        better = "" if name == winner else f"{fewer} of {len(rows[name])}"
        lines.append([name, f"{best[name][0]:g}", f"{best[name][1]:g}", *values, least, better])
    heads = ["method", "energy", "OMT", "error, voxels", "95 %", "Dice", "error of sigma", "of weights", "least det J"]
    text = markdown([*heads, f"better than {winner}"], lines)
    text += f"\nCorrelation of the optimised sigma with the true one: {mean(OPTIMISED, 'sigma_correlation'):.2f}\n\n"
    regions = [
        [label, mean(OPTIMISED, f"true_sigma_{label}"), *[mean(name, f"sigma_{label}") for name in (OPTIMISED, winner)]]
        + [
            " / ".join(f"{mean(name, f'share_{label}_{i}'):.2f}" for i in range(len(SIGMAS)))
            for name in (TRUE, OPTIMISED)
        ]
        + [mean(name, f"error_{label}") for name in (winner, OPTIMISED, TRUE)]
        for label in (1, *SHARES)
    ]
    heads = ["region", "true sigma", "optimised", winner, "true shares", "optimised shares"]
    text += markdown([*heads, f"error: {winner}", "optimised", "true weights"], regions) + "\n"
    return text + markdown(
        ["for tuning", "energy", "OMT", "error"],
        [[name, f"{a:g}", f"{b:g}", float(v)] for (name, a, b), v in tried.items()],
    )


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


# Lungs

SIDES = ("moving", "fixed")
LUNG_SIGMAS = (12.0, 18.0, 24.0, 60.0)  # mm
INSIDE, OUTSIDE, BOTH = (0.1, 0.4, 0.5, 0.0), (0.0, 0.0, 0.0, 1.0), (0.1, 0.3, 0.3, 0.3)
LUNG_METHODS: dict[str, dict[str, Any]] = {
    "LDDMM, energy 1e-5": {"inside": BOTH, "outside": BOTH, "energy": 1e-5},
    "LDDMM, energy 1e-4": {"inside": BOTH, "outside": BOTH},
    "LDDMM, energy 1e-3": {"inside": BOTH, "outside": BOTH, "energy": 1e-3},
    "LDDMM, the wide Gaussian, energy 1e-5": {"inside": OUTSIDE, "outside": OUTSIDE, "energy": 1e-5},
    "RDMM, energy 1e-5": {"energy": 1e-5},
    "RDMM, energy 1e-4": {},
    "RDMM, soft to 10 mm outside, energy 1e-4": {"rim": 10.0},
}
GRID_MM, EDGE_MM, NEAR_MM, FAR_MM = 6.0, 10.0, 10.0, 30.0
POINTS, DRIVING = 1e-3, 200


class PointLoss(nn.Module):
    """A registration loss, and weight * the mean robust squared distance (mm^2) of points that belong together.

    The batch has `points_moving` and `points_fixed`, (B, N, D), as shares of the grid's `extent` (D,) in mm. Distances
    far above `limit_mm` cost their first power.
    """

    def __init__(self, loss: nn.Module, weight: float, limit_mm: float = 5.0) -> None:
        super().__init__()
        self.loss, self.weight, self.limit_mm = loss, weight, limit_mm

    def forward(self, pred: dict[str, Any], batch: Mapping[str, Tensor]) -> Tensor:
        distance = (mapped(batch["points_fixed"], pred["ddf"]) - batch["points_moving"]) * batch["extent"]
        share = distance.square().sum(2) / self.limit_mm**2
        robust = 2 * self.limit_mm**2 * ((1 + share).sqrt() - 1).mean()
        return self.loss(pred, batch) + self.weight * robust


def mapped(points: Tensor, ddf: Tensor) -> Tensor:
    """Points as shares of the grid's extent, moved by a field."""
    last = points.new_tensor(ddf.shape[2:]) - 1
    return transform_points(points * last, ddf) / last


def run_lungs(folder: Path, data: Path, iterations: int) -> str:
    """Register each case with each metric; a table."""
    listed = json.loads((data / "datalist.json").read_text())
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ("none", *LUNG_METHODS)}
    with tqdm(total=len(listed["pairs"]) * len(LUNG_METHODS), desc="registering") as bar:
        for item in listed["pairs"]:
            case = load_lungs(data, item, listed["evaluation_spacing"])
            for name in rows:
                path = folder / "lungs" / f"{item['subject']} {name}.json"
                rows[name].append(once(path, lambda name=name, case=case: measure_lungs(case, name, iterations)))
                bar.update(name != "none")
    keys = list(rows["none"][0])
    reduce = {key: np.min if key.startswith("least") else np.mean for key in keys}
    return markdown(
        ["mean of the cases", *keys],
        [[name, *[float(reduce[key]([row[key] for row in found])) for key in keys]] for name, found in rows.items()],
    )


def load_lungs(folder: Path, item: Mapping[str, Any], spacing: Sequence[float]) -> dict[str, Any]:
    """Masks on their own grid; on that of the registration signed distances (mm), landmarks as shares of its extent."""
    masks = {key: torch.from_numpy(np.asarray(nib.load(folder / item[f"{key}_mask"]).dataobj)) for key in SIDES}
    last = torch.tensor(masks["fixed"].shape) - 1
    extent = last * torch.tensor(spacing)
    size = [round(float(mm) / GRID_MM) + 1 for mm in extent]
    with (folder / item["landmarks"]).open(newline="") as file:
        rows = torch.tensor([[float(value) for value in row[1:]] for row in list(csv.reader(file))[1:]])
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    case: dict[str, Any] = {"extent": extent, "size": size, "spacing": (extent / (torch.tensor(size) - 1)).tolist()}
    for key, points in (("fixed", rows[None, :, :3] / last), ("moving", rows[None, :, 3:] / last)):
        distance = signed_distance_mm(masks[key], spacing_mm=spacing)
        case |= {f"mask_{key}": masks[key][None, None], f"distance_{key}": resize_map(distance[None, None], size)}
        case |= {f"driving_{key}": points[:, :DRIVING], f"held_out_{key}": points[:, DRIVING:]}
    return case


def register_lungs(
    case: Mapping[str, Any],
    iterations: int,
    *,
    inside: Sequence[float] = INSIDE,
    outside: Sequence[float] = OUTSIDE,
    rim: float = 0.0,
    weight_sigma: float = 8.0,
    energy: float = 1e-4,
) -> Tensor:
    """The field of a case: weights `inside` hold in the moving lungs and up to `rim` mm around them."""
    lungs = (case["distance_moving"] < rim).int()
    deformation = RegionSpecificMomentum(
        MultiGaussianKernel(LUNG_SIGMAS, BOTH, padding="zeros"),
        case["spacing"],
        num_steps=4,
        weight_sigma=weight_sigma,
        pre_weights=label_weights(lungs, {1: inside}, outside),
        checkpoint=False,
    )
    loss = PointLoss(RegistrationLoss(MSE(), MeanEnergy(), energy, regularized="energy"), POINTS)
    images = [(0.5 + case[f"distance_{key}"] / (2 * EDGE_MM)).clamp(0, 1) for key in SIDES]
    constants = {f"points_{key}": case[f"driving_{key}"] for key in SIDES} | {"extent": case["extent"]}
    optimizer = PairwiseOptimizer(deformation, loss, levels=[1], iterations=[iterations], method="lbfgs")
    parameters = optimizer(*images, constants=constants)
    with torch.no_grad():
        return deformation(parameters, case["size"])["ddf"]


def measure_lungs(case: Mapping[str, Any], name: str, iterations: int) -> dict[str, float]:
    """Distances of landmarks, overlap, and outside of the lungs the Green strain and the change of volume."""
    ddf = torch.zeros(1, 3, *case["size"]) if name == "none" else register_lungs(case, iterations, **LUNG_METHODS[name])
    result: dict[str, float] = {}
    for kind in ("held_out", "driving"):
        found, wanted = mapped(case[f"{kind}_fixed"], ddf), case[f"{kind}_moving"]
        result[f"{kind}, mm"] = float(landmark_error_mm(found * case["extent"], wanted * case["extent"]).mean())
    warped = warp(case["mask_moving"], resize_field(ddf, case["mask_fixed"].shape[2:]), mode="nearest")
    result["Dice"] = float(mean_dice(warped, case["mask_fixed"]))
    unit = ddf.new_tensor(case["spacing"])
    slopes = spatial_gradient(ddf)[0] * unit.view(3, 1, 1, 1, 1) / unit.view(1, 3, 1, 1, 1)
    jacobian = slopes.movedim((0, 1), (-2, -1)) + torch.eye(3)
    strain = 0.5 * (jacobian.mT @ jacobian - torch.eye(3)).norm(dim=(-2, -1))
    determinant = jacobian_determinant(ddf)[0, 0]
    volume = determinant.clamp(min=1e-6).log().abs()
    away = torch.minimum(case["distance_fixed"], warp(case["distance_moving"], ddf, padding="border"))[0, 0]
    for place, far in ((f"{NEAR_MM:g}-{FAR_MM:g} mm", FAR_MM), (f"from {NEAR_MM:g} mm", math.inf)):
        where = (away > NEAR_MM) & (away < far)
        for kind, values in (("strain", strain[where]), ("log det J", volume[where])):
            result[f"{kind}, {place}"] = float(values.mean())
            result[f"95 %, {kind}, {place}"] = float(values.quantile(0.95))
    return result | {"least det J": float(determinant.min())}


if __name__ == "__main__":
    run()
