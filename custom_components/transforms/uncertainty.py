"""Write and measure the uncertainty of a registered pair, from samples of its deformation."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform
from torch import Tensor

from ..evaluation.metrics import folding_fraction
from ..evaluation.pictures import maps_picture
from ..fields import resize_field
from ..files import write_metrics
from ..space.files import publish_together, write_displacement_field, write_image
from ..space.grids import Grid, voxel_spacing
from ..space.resampling import DisplacementField, resample
from ..space.volumes import load_image
from .load import load_labels_for


class ReportUncertaintyd(Transform):
    """Write what samples of the deformation say about a pair, into its folder; leaves a pair without samples alone.

    Expects an item as `SavePaird` and `ReportPaird` left it (with `foreground`, where the pair is judged), whose `pred`
    holds `ddf_samples` (K, D, *S) and `velocity_sd` (D, *S'). Standard deviations are those of the vector: the root of
    its components' summed variances, comparable with the length of an error. Images and maps are written if `SavePaird`
    wrote the warped image, the picture if `ReportPaird` drew one. From K = 2 on:

        displacement_sd.nii.gz: standard deviation of the displacement over the samples, mm, on the model grid.
        velocity_sd.nii.gz: that of the velocity, from its distribution, mm per unit time, on the model grid.
        label_entropy.nii.gz: entropy in nats of the warped moving labels over the samples (0: all agree), on the fixed
            image's grid, if there are moving labels.
        uncertainty.png: slices of these.

    For each sample, as far as `SavePaird` wrote the same of the mean: sample_01_warped.nii.gz, sample_01_field.nii.gz.
    The metrics get `samples`, `sample_folding_percent` (mean over the samples), and the means within the foreground
    `displacement_sd_mm`, `velocity_sd_mm`, `label_entropy` (the last over the fixed image's grid where any sample has a
    label).
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if "ddf_samples" not in data["pred"]:
            return dict(data)
        samples = _plain(data["pred"]["ddf_samples"])
        grid = Grid(np.asarray(data["grid_affine"], dtype=np.float64), tuple(samples.shape[2:]))
        mask = _plain(data["foreground"])[None]
        folding = torch.stack([folding_fraction(ddf[None], mask) for ddf in samples]).mean()
        metrics = {**data["metrics"], "samples": len(samples), "sample_folding_percent": 100 * float(folding)}
        folder = Path(data["output_dir"])
        with publish_together(folder) as scratch:
            if len(samples) > 1:
                metrics |= self._write_deviations(scratch, data, samples, grid, mask)
                if data.get("label_moving_path"):
                    metrics["label_entropy"] = self._write_entropy(scratch, data, samples, grid)
            self._write_samples(scratch, data, samples, grid)
            files = {path.name.partition(".")[0]: str(folder / path.name) for path in sorted(scratch.iterdir())}
            shown = {name: value for name, value in metrics.items() if name != "picture"}
            write_metrics(scratch / "metrics.json", shown)
        return {**data, "metrics": metrics, "output_files": {**data["output_files"], **files}}

    def _write_deviations(
        self, folder: Path, data: Mapping[Hashable, Any], samples: Tensor, grid: Grid, mask: Tensor
    ) -> dict[str, float]:
        velocity = resize_field(_plain(data["pred"]["velocity_sd"])[None], grid.size)[0]
        maps = {"displacement_sd": displacement_sd(samples, grid), "velocity_sd": _length_mm(velocity, grid)}
        if "warped" in data["output_files"]:
            for name, values in maps.items():
                write_image(folder / f"{name}.nii.gz", values, grid.affine)
        if "picture" in data["output_files"]:
            spacing = [float(s) for s in voxel_spacing(grid.affine)]
            maps_picture(folder / "uncertainty.png", _plain(data["fixed"]), maps, spacing_mm=spacing)
        return {f"{name}_mm": float(values[mask[0, 0]].mean()) for name, values in maps.items()}

    def _write_entropy(self, folder: Path, data: Mapping[Hashable, Any], samples: Tensor, grid: Grid) -> float:
        fixed, moving = load_image(data["fixed_path"]), load_image(data["moving_path"])
        labels = load_labels_for(str(data["label_moving_path"]), moving)
        warped = torch.empty(len(samples), *fixed.grid.size, dtype=labels.data.dtype)
        for one, ddf in zip(warped, samples, strict=True):
            steps = _steps(data, ddf, grid)
            one.copy_(resample(labels.data, labels.affine, fixed.grid, steps=steps, mode="nearest")[0])
        entropy = label_entropy(warped)
        if "warped" in data["output_files"]:
            write_image(folder / "label_entropy.nii.gz", entropy, fixed.affine, like=fixed)
        anywhere = (warped > 0).any(0)
        return float(entropy[anywhere].mean()) if anywhere.any() else 0.0

    def _write_samples(self, folder: Path, data: Mapping[Hashable, Any], samples: Tensor, grid: Grid) -> None:
        fixed, moving = load_image(data["fixed_path"]), load_image(data["moving_path"])
        for i, ddf in enumerate(samples, 1):
            if "warped" in data["output_files"]:
                warped = resample(moving.data, moving.affine, fixed.grid, steps=_steps(data, ddf, grid))
                write_image(folder / f"sample_{i:02d}_warped.nii.gz", warped, fixed.affine, like=fixed)
            if "forward" in data["output_files"]:
                write_displacement_field(folder / f"sample_{i:02d}_field.nii.gz", ddf, grid)


def displacement_sd(samples: Tensor, grid: Grid) -> Tensor:
    """Standard deviation of displacement vectors over samples (K, D, *S), K > 1, in mm, shape (*S)."""
    return _length_mm(samples.var(0).sqrt(), grid)


def label_entropy(labels: Tensor) -> Tensor:
    """Entropy in nats of the label over K maps (K, ...), between 0 (all agree) and log K (all differ), shape (...)."""
    num = len(labels)
    ordered = labels.sort(0).values
    entropy = torch.zeros(labels.shape[1:])
    run = torch.ones_like(entropy)  # how often the current label has occurred
    for k in range(1, num + 1):
        goes_on = ordered[k] == ordered[k - 1] if k < num else torch.zeros_like(run, dtype=torch.bool)
        share = run / num
        entropy -= torch.where(goes_on, 0.0, share * share.log())
        run = torch.where(goes_on, run + 1, 1.0)
    return entropy.clamp(min=0)


def _length_mm(vectors: Tensor, grid: Grid) -> Tensor:
    spacing = vectors.new_tensor([float(s) for s in voxel_spacing(grid.affine)])
    return (vectors * spacing.view(-1, *[1] * (vectors.ndim - 1))).norm(dim=0)


def _steps(data: Mapping[Hashable, Any], ddf: Tensor, grid: Grid) -> list[Any]:
    return [DisplacementField(ddf, grid), np.asarray(data["world_matrix"], dtype=np.float64)]


def _plain(value: Any) -> Tensor:
    return torch.as_tensor(value).detach().cpu()
