"""Cases with a known rigid truth: one person, rendered twice from a label map, in two contrasts, turned between them.

The fixed image is T1-like; the moving one has another contrast, its own noise and bias, and shows the whole head or a
slab of 80 mm through the brain. Whatever a registration moves beyond the rigid truth is spurious.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from custom_components.space import load_labels, resample, transform_points_world, write_affine_transform, write_image
from custom_components.space.grids import fixed_size_grid
from custom_components.space.resampling import Step
from custom_components.synthesis.brains import BrainContrast

# What a T1 mean of fluid, grey and white matter (44, 96, 160) becomes; other tissue; bone, which is dark in T1.
_CONTRASTS = {
    "t1": ((44, 96, 160), 1.0, None),
    "t2": ((225, 140, 90), 0.8, None),
    "pd": ((190, 205, 145), 0.8, None),
    "flair": ((35, 165, 120), 0.7, None),
    "ct": ((85, 125, 110), 1.2, 255),
    "inverted": ((211, 159, 95), 1.0, 220),
}
CONTRASTS = tuple(_CONTRASTS)
SPACING = 2.0
SLAB_MM = 80.0


@dataclass(frozen=True)
class Case:
    """Files of a pair and what is known of it: the truth maps fixed world points to moving ones (RAS mm)."""

    fixed: Path
    moving: Path
    truth: np.ndarray
    affine: Path
    brain: np.ndarray
    seen: np.ndarray

    def error_mm(self, steps: list[Step], *, seen: bool = True) -> tuple[float, float]:
        """Median and 95th percentile of the error in the brain, where the moving image shows it, or does not."""
        points = self.brain[self.seen == seen]
        if not len(points):
            return float("nan"), float("nan")
        found = transform_points_world(points, steps)
        right = points @ self.truth[:3, :3].T + self.truth[:3, 3]
        errors = np.linalg.norm(found - right, axis=1)
        return float(np.median(errors)), float(np.percentile(errors, 95))


def make_case(label_map: Path, statistics: Path, contrast: str, folder: Path, *, slab: bool, seed: int = 0) -> Case:
    """Render and write a case.

    Args:
        label_map: of one person, ids as in `statistics`, a table with `id` and `t1_prior_mean`.
        contrast: of the moving image, one of `CONTRASTS`.
        slab: the moving image shows only `SLAB_MM` along its last axis.
    """
    folder.mkdir(parents=True, exist_ok=True)
    labels = load_labels(label_map)
    rng = np.random.default_rng(seed)
    inside = np.argwhere((labels.data[0].numpy() > 0) & (labels.data[0].numpy() < 500))
    center = inside.mean(0) @ labels.affine[:3, :3].T + labels.affine[:3, 3]
    truth = _rigid(rng.uniform(-12, 12, 3), rng.uniform(-15, 15, 3), center)
    fixed_grid, moving_grid = labels.grid, fixed_size_grid(1.0, (180, 220, 200), truth[:3, :3] @ center + truth[:3, 3])
    maps = [
        labels.data,
        resample(labels.data, labels.affine, moving_grid, world_matrix=np.linalg.inv(truth), mode="nearest"),
    ]
    images = []
    for i, (one, name) in enumerate(zip(maps, ("t1", contrast), strict=True)):
        images.append(_render(one, _table(statistics, name, folder), seed=2 * seed + i))
    size = (90, 110, round(SLAB_MM / SPACING) if slab else 100)
    grids = [fixed_size_grid(SPACING, (96, 112, 112), center), fixed_size_grid(SPACING, size, moving_grid.center)]
    case = folder / f"{label_map.name.split('.')[0]}_{contrast}_{'slab' if slab else 'whole'}"
    paths = [case.with_name(f"{case.name}_{role}.nii.gz") for role in ("fixed", "moving")]
    for path, image, source, grid in zip(paths, images, (fixed_grid, moving_grid), grids, strict=True):
        write_image(path, (255 * resample(image, source.affine, grid, antialias=True)).round(), grid.affine)
    affine = case.with_name(f"{case.name}_truth.tfm")
    write_affine_transform(affine, truth)
    brain = inside[::37] @ labels.affine[:3, :3].T + labels.affine[:3, 3]
    voxels = (brain @ truth[:3, :3].T + truth[:3, 3] - grids[1].affine[:3, 3]) / SPACING
    seen = ((voxels >= 0) & (voxels <= np.array(grids[1].size) - 1)).all(1)
    return Case(*paths, truth, affine, brain, seen)


def _render(labels: Tensor, statistics: Path, *, seed: int) -> Tensor:
    contrast = BrainContrast(statistics, std=(3, 8), zero_background=1.0, bias=0.15, gamma=0.1)
    draw = contrast.draw(1, labels.shape[1:], torch.Generator().manual_seed(seed))
    return contrast(labels[None], draw)[0]


def _table(statistics: Path, contrast: str, folder: Path) -> Path:
    """A table of means with which the T1 rendering gives the other contrast."""
    values, outside, bone = _CONTRASTS[contrast]
    with open(statistics, newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        mean, number = float(row["t1_prior_mean"]), int(row["id"])
        if 0 < number < 500:
            mean = float(np.interp(mean, (44, 96, 160), values))
        elif number:
            mean = bone if bone is not None and mean < 40 else outside * mean
        row["t1_prior_mean"] = str(mean)
    path = folder / f"{contrast}.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def _rigid(degrees: np.ndarray, shift: np.ndarray, center: np.ndarray) -> np.ndarray:
    """A rotation about the centre, then a shift."""
    matrix = np.eye(4)
    for axis, angle in enumerate(np.radians(degrees)):
        turn, (a, b) = np.eye(3), [i for i in range(3) if i != axis]
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix[:3, :3] = turn @ matrix[:3, :3]
    matrix[:3, 3] = center - matrix[:3, :3] @ center + shift
    return matrix
