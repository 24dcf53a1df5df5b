"""The uncertainty of a registered pair, from samples of its deformation."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..evaluation.pictures import maps_picture
from ..fields import resize_field
from ..space.files import write_image
from ..space.grids import Grid, voxel_spacing
from ..space.warping import warp_to_grid
from .publish import OutputFile, Report, field_file, image_file, model_image_file
from .registered import RegisteredPair

_CAPTIONS = {
    "displacement_sd_mm": "mean uncertainty (SD of the displacement), mm",
    "sample_folding_percent": "folding of the samples, %",
}


class UncertaintyReport:
    """A reporter: what samples of the deformation say about a pair; nothing about a pair without samples.

    Expects `ddf_samples` (K, D, *S) and `velocity_sd` (D, *S') in the prediction. Standard deviations are those of the
    vector: the root of its components' summed variances, comparable with the length of an error. There are images and
    maps if an earlier reporter has the warped image, and a picture if one has a picture. From K = 2 on:

        displacement_sd.nii.gz: standard deviation of the displacement over the samples, mm, on the model grid.
        velocity_sd.nii.gz: that of the velocity, from its distribution, mm per unit time, on the model grid.
        label_entropy.nii.gz: entropy in nats of the warped moving labels over the samples (0: all agree), on the fixed
            image's grid, if there are moving labels.
        uncertainty.png: slices of these.

    For each sample, as far as earlier reporters have the same of the mean: sample_01_warped.nii.gz,
    sample_01_field.nii.gz. The metrics are `samples`, `sample_folding_percent` (mean over the samples), and the means
    within the foreground `displacement_sd_mm`, `velocity_sd_mm`, `label_entropy` (the last over the fixed image's grid
    where any sample has a label).
    """

    def __call__(self, pair: RegisteredPair, earlier: Report) -> Report:
        if "ddf_samples" not in pair.pred:
            return Report()
        samples = pair.pred["ddf_samples"]
        folding = [pair.as_written(ddf).metrics["folding_percent"] for ddf in samples]
        metrics = {"samples": len(samples), "sample_folding_percent": sum(folding) / len(folding)}
        report = Report(metrics, captions=_CAPTIONS)
        if len(samples) > 1:
            report = report | _deviations(pair, earlier)
            if "label_moving" in pair.volumes:
                report = report | _entropy(pair, earlier)
        return report | Report(files=_sample_files(pair, earlier))


def _deviations(pair: RegisteredPair, earlier: Report) -> Report:
    grid = pair.grid
    velocity = resize_field(pair.pred["velocity_sd"][None], grid.size)[0]
    maps = {
        "displacement_sd": displacement_sd(pair.pred["ddf_samples"], grid),
        "velocity_sd": _length_mm(velocity, grid),
    }
    files = {}
    if "warped" in earlier.files:
        files = {name: model_image_file(f"{name}.nii.gz", values[None], pair) for name, values in maps.items()}
    if "picture" in earlier.files:
        fixed, spacing = pair.images["fixed"], pair.spacing_mm
        files["uncertainty"] = OutputFile(
            "uncertainty.png", lambda path: maps_picture(path, fixed, maps, spacing_mm=spacing)
        )
    metrics = {f"{name}_mm": float(values[pair.foreground[0]].mean()) for name, values in maps.items()}
    return Report(metrics, files)


def _entropy(pair: RegisteredPair, earlier: Report) -> Report:
    labels, fixed = pair.volumes["label_moving"], pair.volumes["fixed"]
    samples = pair.pred["ddf_samples"]
    warped = torch.empty(len(samples), *fixed.grid.size, dtype=labels.data.dtype)
    for one, ddf in zip(warped, samples, strict=True):
        one.copy_(warp_to_grid(labels.data, labels.affine, fixed.grid, pair.steps(ddf), mode="nearest")[0])
    entropy = label_entropy(warped)
    anywhere = (warped > 0).any(0)
    metrics = {"label_entropy": float(entropy[anywhere].mean()) if anywhere.any() else 0.0}
    if "warped" not in earlier.files:
        return Report(metrics)
    return Report(
        metrics, {"label_entropy": image_file("label_entropy.nii.gz", entropy[None], fixed.affine, like=fixed)}
    )


def _sample_files(pair: RegisteredPair, earlier: Report) -> dict[str, OutputFile]:
    files = {}
    for i, ddf in enumerate(pair.pred["ddf_samples"], 1):
        name = f"sample_{i:02d}"
        if "warped" in earlier.files:
            files[f"{name}_warped"] = _warped_sample(f"{name}_warped.nii.gz", pair, ddf)
        if "forward" in earlier.files:
            files[f"{name}_field"] = field_file(f"{name}_field.nii.gz", ddf, pair)
    return files


def _warped_sample(name: str, pair: RegisteredPair, ddf: Tensor) -> OutputFile:
    fixed = pair.volumes["fixed"]

    def write(path: Path) -> None:
        # Resampled only now: all samples at once would fill the memory.
        warped = pair.warped("moving", "fixed", pair.steps(ddf))
        write_image(path, warped, fixed.affine, like=fixed)

    return OutputFile(name, write)


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
