"""Measure a registered pair and draw its quality-control picture."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform
from torch import Tensor

from ..evaluation.metrics import foreground_mask, pair_metrics
from ..evaluation.overlap import label_overlap, present_labels
from ..evaluation.pictures import pair_picture
from ..files import write_metrics
from ..space.grids import voxel_spacing
from ..space.resampling import resample
from ..space.volumes import Volume, load_image, load_labels
from .load import load_labels_for

logger = logging.getLogger(__name__)


def _has_matplotlib() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


class ReportPaird(Transform):
    """Write `metrics.json` and `picture.png` for a saved pair, into the folder that `SavePaird` made.

    Similarity, folding and inverse consistency are measured on the model grid (see `pair_metrics`), overlap on
    the fixed image's own grid: the original moving labels, warped by nearest neighbour, against the original fixed ones
    (`dice_before`: placed by the headers alone).

    Args:
        labels: ids for the overlap; by default those present in the pair, without the background.
        picture: draw the picture; without matplotlib there is none, and the log says so.
        surfaces: also 95 % Hausdorff distances, on the model grid (slow).
        brain_only: judge folding and similarity where the fixed label map is not 0, instead of the image's foreground.
    """

    def __init__(
        self,
        labels: Sequence[int] | None = None,
        *,
        picture: bool = True,
        surfaces: bool = False,
        brain_only: bool = False,
    ) -> None:
        if picture and not _has_matplotlib():
            logger.warning("no pictures are drawn: matplotlib is not installed")
            picture = False
        self.labels, self.picture, self.surfaces, self.brain_only = labels, picture, surfaces, brain_only

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Takes and returns an item as `SavePaird` left it; adds `metrics` and `foreground`, a mask (1, *S) of where
        the pair is judged, and extends `output_files`."""
        folder = Path(data["output_dir"])
        spacing = [float(s) for s in voxel_spacing(np.asarray(data["grid_affine"]))]
        keys = ["moving", "fixed", "mask_fixed"] + (["label_moving", "label_fixed"] if self.surfaces else [])
        batch = {key: batched(data[key]) for key in keys if key in data}
        if self.brain_only and "label_fixed" in data:
            batch["mask_fixed"] = batched(data["label_fixed"] > 0)
        pred = {key: batched(value) for key, value in data["pred"].items() if key in ("ddf", "inverse_ddf", "warped")}
        metrics: dict[str, Any] = {"id": folder.name, "moving": data["moving_path"], "fixed": data["fixed_path"]}
        metrics |= pair_metrics(batch, pred, spacing_mm=spacing, labels=self.labels, surfaces=self.surfaces)
        if data.get("label_moving_path") and data.get("label_fixed_path") and "warped_label" in data["output_files"]:
            metrics |= self._overlap(data)
        if "seconds" in data["pred"]:
            metrics["seconds"] = round(float(data["pred"]["seconds"]), 3)
        metrics["model_spacing_mm"] = spacing
        files = {**data["output_files"], "metrics": str(folder / "metrics.json")}
        write_metrics(files["metrics"], metrics)
        if self.picture:
            files["picture"] = str(folder / "picture.png")
            metrics["picture"] = files["picture"]
            labels = {key: data[key] for key in ("label_moving", "label_fixed") if key in data}
            pair_picture(
                files["picture"],
                data["moving"].float().cpu(),
                data["fixed"].float().cpu(),
                data["pred"]["warped"].float().cpu(),
                data["pred"]["ddf"].float().cpu(),
                spacing_mm=spacing,
                title=folder.name,
                **labels,
            )
        foreground = foreground_mask(batch)[0]
        return {**data, "metrics": metrics, "foreground": foreground, "output_files": files}

    def _overlap(self, data: Mapping[Hashable, Any]) -> dict[str, float]:
        fixed, moving = load_image(data["fixed_path"]), load_image(data["moving_path"])
        target = _on_grid(load_labels_for(data["label_fixed_path"], fixed), fixed)
        before = _on_grid(load_labels_for(data["label_moving_path"], moving), fixed)
        after = load_labels(data["output_files"]["warped_label"]).data
        labels = self.labels or present_labels(target, before)
        result: dict[str, float] = {}
        for name, source in (("before", before), ("after", after)):
            dice = label_overlap(source[None], target[None], labels)[0]
            result[f"dice_{name}"] = float(dice.nanmean())
            result |= {f"dice_{name}_{label}": float(value) for label, value in zip(labels, dice, strict=True)}
        return result


def _on_grid(labels: Volume, image: Volume) -> Tensor:
    return resample(labels.data, labels.affine, image.grid, mode="nearest")


def batched(value: Any) -> Tensor:
    return torch.as_tensor(value).detach().cpu()[None]
