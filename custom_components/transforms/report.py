"""Measures of a registered pair and its quality-control picture."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from ..evaluation.metrics import image_metrics
from ..evaluation.overlap import hausdorff95, label_overlap, present_labels
from ..evaluation.pictures import pair_picture
from ..evaluation.result import MEASURED
from ..notices import warn
from ..space.affine_parts import AffineParts
from ..space.grids import Grid
from ..space.resampling import Step, resample
from ..space.volumes import Volume
from ..vocabulary import Row
from .landmarks import landmark_metrics
from .likeness import image_likeness
from .publish import OutputFile, Report
from .registered import RegisteredPair

logger = logging.getLogger(__name__)

_WORTH_SAYING = 0.01  # of Dice

_CAPTIONS = {
    "ncc": "correlation with the fixed image",
    "image_ncc": "the same between the original images",
    "dice": "mean Dice of the labels",
    "tre_mm": "mean distance of the landmarks, mm",
    "tre_median_mm": "median of the same",
    "folding_percent": "folding (det J <= 0), % of the foreground",
    "sd_log_jacobian": "SD of log det J",
    "affine_rotation_degrees": "rotation of the linear stages, degrees",
    "displacement_mean_mm": "mean displacement, mm",
    "inverse_consistency_mm": "mean inverse-consistency error, mm",
    "seconds": "seconds (network, fields, refinement)",
}


class PairReport:
    """A reporter: the measures of a pair, and picture.png.

    Names have the stage: `_before` is as the headers place the images, `_aligned` after the linear stages alone (the
    same as before if there are none), `_after` through the whole transform. Similarity is measured on the model grid
    (`ncc_aligned`, see `image_metrics`) and between the images themselves (see `image_likeness`, which warns where it
    fell). Folding, the spread of log J, displacements and inverse consistency are those of the written fields at the
    voxels of the fixed image (see `WrittenField`). So is overlap: the warped label map of an earlier reporter against
    the original fixed one; a warning says if it fell. The linear stages are taken apart (see `AffineParts`), in RAS mm.
    Landmarks go through the whole transform (see `landmark_metrics`, which warns where they fell apart).

    Args:
        labels: ids for the overlap; by default those present in the pair, without the background.
        picture: draw the picture; without matplotlib there is none, and the log says so.
        surfaces: also 95 % Hausdorff distances, on the model grid (slow).
    """

    def __init__(self, labels: Sequence[int] | None = None, *, picture: bool = True, surfaces: bool = False) -> None:
        if picture and importlib.util.find_spec("matplotlib") is None:
            logger.warning("no pictures are drawn: matplotlib is not installed")
            picture = False
        self.labels, self.picture, self.surfaces = labels, picture, surfaces

    def __call__(self, pair: RegisteredPair, earlier: Report) -> Report:
        metrics: Row = {"id": pair.name}
        metrics |= {role: pair.volumes[role].path for role in ("moving", "fixed")}
        batch = dict(pair.judged)
        if self.surfaces:
            batch |= {key: pair.images[key][None] for key in ("label_moving", "label_fixed") if key in pair.images}
        pred = {key: pair.pred[key][None] for key in ("ddf", "warped") if key in pair.pred}
        measure = partial(image_metrics, labels=self.labels, surfaces=self.surfaces, stages=MEASURED[1:])
        metrics |= measure(batch, pred, spacing_mm=pair.spacing_mm)
        if self.surfaces and "label_moving" in batch and "label_fixed" in batch:
            metrics["hd95_before_mm"] = self._first_distance(pair, metrics["hd95_aligned_mm"])
        metrics |= pair.written.metrics
        warped = earlier.files["warped_label"].image if "warped_label" in earlier.files else None
        if warped is not None and "label_fixed" in pair.volumes:
            metrics |= self._overlap(pair, warped)
        metrics |= _linear_parts(pair)
        metrics |= landmark_metrics(pair)
        metrics |= image_likeness(pair)
        if "seconds" in pair.pred:
            metrics["seconds"] = round(float(pair.pred["seconds"]), 3)
        metrics["model_spacing_mm"] = pair.spacing_mm
        files = {"picture": OutputFile("picture.png", lambda path: _draw(pair, path))} if self.picture else {}
        return Report(metrics, files, _CAPTIONS)

    def _overlap(self, pair: RegisteredPair, after: Tensor) -> dict[str, float]:
        grid, moving = pair.volumes["fixed"].grid, pair.volumes["label_moving"]
        target, before = (_on_grid(labels, grid) for labels in (pair.volumes["label_fixed"], moving))
        aligned = _on_grid(moving, grid, [pair.world_matrix]) if pair.is_aligned else before
        labels = self.labels or present_labels(target, before)
        result: dict[str, float] = {}
        for name, source in zip(MEASURED, (before, aligned, after), strict=True):
            dice = label_overlap(source[None], target[None], labels)[0]
            result[f"dice_{name}"] = float(dice.nanmean())
            result |= {f"dice_{name}_{label}": float(value) for label, value in zip(labels, dice, strict=True)}
        if result["dice_after"] < result["dice_before"] - _WORTH_SAYING:
            warn(
                f"{pair.volumes['moving'].path}: the labels overlap less after registration, Dice "
                f"{result['dice_after']:.3f}, than before, {result['dice_before']:.3f}"
            )
        return result

    def _first_distance(self, pair: RegisteredPair, aligned: float) -> float:
        """The mean distance of surfaces as the headers place them, on the model grid like the other two."""
        if not pair.is_aligned:
            return aligned
        before, target = _on_grid(pair.volumes["label_moving"], pair.grid), pair.images["label_fixed"]
        distances = hausdorff95(before[None], target[None], self.labels, spacing_mm=pair.spacing_mm)
        return float(distances.nanmean())


def _linear_parts(pair: RegisteredPair) -> Row:
    return AffineParts.of(pair.world_matrix).as_row() if pair.is_aligned else {}


def _on_grid(labels: Volume, grid: Grid, steps: Sequence[Step] = ()) -> Tensor:
    return resample(labels.data, labels.affine, grid, steps=steps, mode="nearest")


def _draw(pair: RegisteredPair, path: Path) -> None:
    pair_picture(
        path,
        pair.images["moving"].float(),
        pair.images["fixed"].float(),
        pair.pred["warped"].float(),
        pair.pred["ddf"].float(),
        spacing_mm=pair.spacing_mm,
        title=pair.name,
        label_moving=pair.images.get("label_moving"),
        label_fixed=pair.images.get("label_fixed"),
    )
