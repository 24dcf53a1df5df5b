"""Region-specific metrics against one metric for all, in lungs that breathe.

    python -m benchmarks.rdmm_lungs OUT [--data DATA]

DATA holds masks and landmarks of breath-hold scans; its datalist.json names them. Two thirds of the landmarks and the
masks' distance maps drive the registration, the other landmarks judge it. OUT receives table.md. Finished parts are
kept: other settings need another folder.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.experiments import markdown, measure_once, write_and_print
from custom_components.deformations.kernels import MultiGaussianKernel
from custom_components.evaluation.metrics import landmark_error_mm
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import (
    jacobian_determinant,
    resize_field,
    resize_map,
    spatial_gradient,
    transform_points,
    warp,
)
from custom_components.inference.refinement import PairwiseOptimizer
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import MeanEnergy
from custom_components.losses.similarity import MSE
from custom_components.methods.rdmm.metric import MetricSettings, RegionSpecificMomentum
from custom_components.methods.rdmm.weights import label_weights
from custom_components.methods.voxelmorph_probabilistic.surfaces import signed_distance_mm

SIDES = ("moving", "fixed")
SIGMAS = (12.0, 18.0, 24.0, 60.0)  # mm
INSIDE, OUTSIDE, BOTH = (0.1, 0.4, 0.5, 0.0), (0.0, 0.0, 0.0, 1.0), (0.1, 0.3, 0.3, 0.3)
METHODS: dict[str, dict[str, Any]] = {
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


def main(command: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", type=Path, help="default: lung_masks_landmarks in $MORPHZOO_TEST_DATA")
    parser.add_argument("--iterations", type=int, default=30, help="of each registration")
    args = parser.parse_args(command)
    torch.set_num_threads(1)
    data = args.data or Path(os.environ.get("MORPHZOO_TEST_DATA", "")) / "lung_masks_landmarks"
    if not (data / "datalist.json").is_file():
        parser.error(f"expected a datalist.json in {data}: give --data, or set MORPHZOO_TEST_DATA")
    args.output.mkdir(parents=True, exist_ok=True)
    write_and_print(args.output / "table.md", run_lungs(args.output, data, args.iterations))


class PointLoss(nn.Module):
    """A registration loss plus `weight` times the mean robust squared distance (mm^2) of corresponding points.

    The batch has `points_moving` and `points_fixed`, (B, N, D), as shares of the grid's `extent` (D,) in mm. Distances
    far above `limit_mm` count linearly.
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
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ("none", *METHODS)}
    with tqdm(total=len(listed["pairs"]) * len(METHODS), desc="registering") as bar:
        for item in listed["pairs"]:
            case = load_lungs(data, item, listed["evaluation_spacing"])
            for name in rows:
                path = folder / "lungs" / f"{item['subject']} {name}.json"
                rows[name].append(
                    measure_once(path, lambda name=name, case=case: measure_lungs(case, name, iterations))
                )
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
        MultiGaussianKernel(SIGMAS, BOTH, padding="zeros"),
        case["spacing"],
        num_steps=4,
        metric=MetricSettings(weight_sigma),
        checkpoint=False,
    ).given(label_weights(lungs, {1: inside}, outside))
    loss = PointLoss(RegistrationLoss(MSE(), MeanEnergy(), energy, regularized="energy"), POINTS)
    images = [(0.5 + case[f"distance_{key}"] / (2 * EDGE_MM)).clamp(0, 1) for key in SIDES]
    constants = {f"points_{key}": case[f"driving_{key}"] for key in SIDES} | {"extent": case["extent"]}
    optimizer = PairwiseOptimizer(deformation, loss, levels=[1], iterations=[iterations], method="lbfgs")
    parameters = optimizer(*images, constants=constants)
    with torch.no_grad():
        return deformation(parameters, case["size"])["ddf"]


def measure_lungs(case: Mapping[str, Any], name: str, iterations: int) -> dict[str, float]:
    """Distances of landmarks, overlap, and outside of the lungs the Green strain and the change of volume."""
    ddf = torch.zeros(1, 3, *case["size"]) if name == "none" else register_lungs(case, iterations, **METHODS[name])
    result: dict[str, float] = {}
    for kind in ("held_out", "driving"):
        found, wanted = mapped(case[f"{kind}_fixed"], ddf), case[f"{kind}_moving"]
        result[f"{kind}, mm"] = float(landmark_error_mm(found * case["extent"], wanted * case["extent"]).mean())
    warped = warp(case["mask_moving"], resize_field(ddf, case["mask_fixed"].shape[2:]), mode="nearest")
    result["Dice"] = float(mean_dice(warped, case["mask_fixed"]))
    determinant = jacobian_determinant(ddf)[0, 0]
    strain, volume = green_strain(ddf, case["spacing"]), determinant.clamp(min=1e-6).log().abs()
    away = torch.minimum(case["distance_fixed"], warp(case["distance_moving"], ddf, padding="border"))[0, 0]
    for place, far in ((f"{NEAR_MM:g}-{FAR_MM:g} mm", FAR_MM), (f"from {NEAR_MM:g} mm", math.inf)):
        where = (away > NEAR_MM) & (away < far)
        for kind, values in (("strain", strain[where]), ("log det J", volume[where])):
            result[f"{kind}, {place}"] = float(values.mean())
            result[f"95 %, {kind}, {place}"] = float(values.quantile(0.95))
    return result | {"least det J": float(determinant.min())}


def green_strain(ddf: Tensor, spacing: Sequence[float]) -> Tensor:
    """Norm of the Green strain tensor of a field (1, 3, *S), (*S)."""
    unit = ddf.new_tensor(spacing)
    slopes = spatial_gradient(ddf)[0] * unit.view(3, 1, 1, 1, 1) / unit.view(1, 3, 1, 1, 1)
    jacobian = slopes.movedim((0, 1), (-2, -1)) + torch.eye(3)
    return 0.5 * (jacobian.mT @ jacobian - torch.eye(3)).norm(dim=(-2, -1))


if __name__ == "__main__":
    main()
