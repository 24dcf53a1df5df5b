"""Write and measure the uncertainty of a registered pair, from samples of its deformation."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform
from torch import Tensor

from ..fields import resize_field
from ..metrics import folding_fraction, foreground_mask, write_metrics
from ..report import uncertainty_picture
from .pairs import load_labels_for
from .physical import (
    DisplacementField,
    Grid,
    load_image,
    resample,
    voxel_spacing,
    write_displacement_field,
    write_image,
)

_FILES = (
    *("displacement_sd.nii.gz", "velocity_sd.nii.gz", "label_entropy.nii.gz", "uncertainty.png"),
    *("sample_[0-9]*_warped.nii.gz", "sample_[0-9]*_field.nii.gz"),
)


class ReportUncertaintyd(Transform):
    """Write what samples of the deformation say about a pair, into its folder; leaves a pair without samples alone.

    Expects an item as `SavePaird` and `ReportPaird` left it, whose `pred` holds `ddf_samples` (K, D, *S) and
    `velocity_sd` (D, *S'). Standard deviations are those of the vector: the root of its components' summed variances,
    comparable with the length of an error. Images and maps are written if `SavePaird` wrote the warped image, the
    picture if `ReportPaird` drew one. From K = 2 on:

        displacement_sd.nii.gz: standard deviation of the displacement over the samples, mm, on the model grid.
        velocity_sd.nii.gz: that of the velocity, from its distribution, mm per unit time, on the model grid.
        label_entropy.nii.gz: entropy in nats of the warped moving labels over the samples (0: all agree), on the fixed
            image's grid, if there are moving labels.
        uncertainty.png: slices of these.

    For each sample, as far as `SavePaird` wrote the same of the mean: sample_01_warped.nii.gz, sample_01_field.nii.gz.
    Files of these names that an earlier run left in the folder are removed.
    The metrics get `samples`, `sample_folding_percent` (mean over the samples), and the means within the foreground
    `displacement_sd_mm`, `velocity_sd_mm`, `label_entropy` (the last over the fixed image's grid where any sample has a
    label).
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        folder = Path(data["output_dir"])
        for pattern in _FILES:
            for stale in folder.glob(pattern):
                stale.unlink()
        if "ddf_samples" not in data["pred"]:
            return dict(data)
        samples = _plain(data["pred"]["ddf_samples"])
        grid = Grid(np.asarray(data["grid_affine"], dtype=np.float64), tuple(samples.shape[2:]))
        mask = foreground_mask({key: _plain(data[key])[None] for key in ("fixed", "mask_fixed") if key in data})
        folding = torch.stack([folding_fraction(ddf[None], mask) for ddf in samples]).mean()
        metrics = {**data["metrics"], "samples": len(samples), "sample_folding_percent": 100 * float(folding)}
        files = {**data["output_files"]}
        if len(samples) > 1:
            sd = displacement_sd(samples, grid)
            velocity = resize_field(_plain(data["pred"]["velocity_sd"])[None], grid.size)[0]
            maps = {"displacement_sd": sd, "velocity_sd": _length_mm(velocity, grid)}
            for name, values in maps.items():
                metrics[f"{name}_mm"] = float(values[mask[0, 0]].mean())
                if "warped" in data["output_files"]:
                    files[name] = str(folder / f"{name}.nii.gz")
                    write_image(files[name], values, grid.affine)
            if data.get("label_moving_path"):
                metrics["label_entropy"] = self._write_entropy(data, samples, grid, files)
            if "picture" in data["output_files"]:
                files["uncertainty"] = str(folder / "uncertainty.png")
                spacing = [float(s) for s in voxel_spacing(grid.affine)]
                uncertainty_picture(files["uncertainty"], _plain(data["fixed"]), maps, spacing_mm=spacing)
        self._write_samples(data, samples, grid, files)
        write_metrics(files["metrics"], {name: value for name, value in metrics.items() if name != "picture"})
        return {**data, "metrics": metrics, "output_files": files}

    def _write_entropy(self, data: Mapping[Hashable, Any], samples: Tensor, grid: Grid, files: dict[str, str]) -> float:
        fixed, moving = load_image(data["fixed_path"]), load_image(data["moving_path"])
        labels = load_labels_for(str(data["label_moving_path"]), moving)
        warped = [
            resample(labels.data, labels.affine, fixed.grid, steps=_steps(data, ddf, grid), mode="nearest")
            for ddf in samples
        ]
        entropy = label_entropy(torch.stack(warped))[0]
        if "warped" in files:
            files["label_entropy"] = str(Path(data["output_dir"]) / "label_entropy.nii.gz")
            write_image(files["label_entropy"], entropy, fixed.affine, like=fixed)
        anywhere = torch.stack([w[0] > 0 for w in warped]).any(0)
        return float(entropy[anywhere].mean()) if anywhere.any() else 0.0

    def _write_samples(self, data: Mapping[Hashable, Any], samples: Tensor, grid: Grid, files: dict[str, str]) -> None:
        folder = Path(data["output_dir"])
        for i, ddf in enumerate(samples, 1):
            if "warped" in files:
                fixed, moving = load_image(data["fixed_path"]), load_image(data["moving_path"])
                warped = resample(moving.data, moving.affine, fixed.grid, steps=_steps(data, ddf, grid))
                files[f"sample_{i:02d}_warped"] = str(folder / f"sample_{i:02d}_warped.nii.gz")
                write_image(files[f"sample_{i:02d}_warped"], warped, fixed.affine, like=fixed)
            if "forward" in files:
                files[f"sample_{i:02d}_field"] = str(folder / f"sample_{i:02d}_field.nii.gz")
                write_displacement_field(files[f"sample_{i:02d}_field"], ddf, grid)


def displacement_sd(samples: Tensor, grid: Grid) -> Tensor:
    """Standard deviation of displacement vectors over samples (K, D, *S), K > 1, in mm, shape (*S)."""
    return _length_mm(samples.var(0).sqrt(), grid)


def label_entropy(labels: Tensor) -> Tensor:
    """Entropy in nats of the label over K maps (K, ...), between 0 (all agree) and log K (all differ), shape (...)."""
    entropy = torch.zeros(labels.shape[1:])
    for one in labels:
        share = torch.zeros_like(entropy)
        for other in labels:
            share += one == other
        # A label that n of K maps show contributes n terms of -1/K log(n/K) to -sum p log p.
        entropy -= torch.log(share / len(labels)) / len(labels)
    return entropy.clamp(min=0)


def _length_mm(vectors: Tensor, grid: Grid) -> Tensor:
    spacing = vectors.new_tensor([float(s) for s in voxel_spacing(grid.affine)])
    return (vectors * spacing.view(-1, *[1] * (vectors.ndim - 1))).norm(dim=0)


def _steps(data: Mapping[Hashable, Any], ddf: Tensor, grid: Grid) -> list[Any]:
    return [DisplacementField(ddf, grid), np.asarray(data["world_matrix"], dtype=np.float64)]


def _plain(value: Any) -> Tensor:
    return torch.as_tensor(value).detach().cpu()
