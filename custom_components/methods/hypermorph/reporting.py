"""Write what hyper-parameters a pair was registered with, and a sweep over them."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.transforms import Transform
from torch import Tensor

from ...evaluation.drawing import (
    DARK,
    PANEL,
    Subject,
    centre_of,
    draw_image,
    draw_panel,
    finish_panel,
    first_channel,
    grey_window,
    on_cpu,
    views_of,
)
from ...evaluation.metrics import pair_metrics
from ...evaluation.overlap import label_overlap, present_labels
from ...fields import warp
from ...files import replacing, write_metrics, write_table
from ...space.files import publish_together, write_image
from ...space.grids import Grid, voxel_spacing
from ...space.resampling import DisplacementField, Step, resample
from ...space.volumes import load_image
from .tuning import best_values

if TYPE_CHECKING:
    pass


class ReportHyperd(Transform):
    """Write the hyper-parameters of a registered pair, and its sweep if there is one, into its folder.

    Expects an item as `SavePaird` and `ReportPaird` left it (with `foreground`, where the pair is judged), whose `pred`
    holds `hyper` (H), and for a sweep `sweep_hyper` (K, H), `sweep_ddf` (K, D, *S) and `sweep_seconds`. The metrics get
    the values by name, and `sweep_seconds`. Of a sweep:

        sweep.csv: a line for each value: similarity, regularity and, with labels, Dice, measured on the model grid.
        sweep_structures.csv: with labels, for each the value of highest Dice in the sweep, and that Dice.
        sweep_warped.nii.gz: the moving image warped with each value, on the fixed image's grid, along the fourth axis;
            if `SavePaird` wrote the warped image.
        sweep.png: contact sheet; if `ReportPaird` drew a picture.

    Args:
        names: of the hyper-parameters.
        labels: ids for the overlap; by default those present in the pair, without the background.
    """

    def __init__(self, names: Sequence[str] = ("lambda",), labels: Sequence[int] | None = None) -> None:
        self.names, self.labels = list(names), labels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        pred, folder = data["pred"], Path(data["output_dir"])
        metrics = data["metrics"] | {k: round(float(v), 6) for k, v in zip(self.names, pred["hyper"], strict=True)}
        with publish_together(folder) as scratch:
            if "sweep_ddf" in pred:
                metrics["sweep_seconds"] = round(float(pred["sweep_seconds"]), 3)
                self._write_sweep(scratch, data, _plain(pred["sweep_ddf"]), _plain(pred["sweep_hyper"]))
            files = {path.name.partition(".")[0]: str(folder / path.name) for path in sorted(scratch.iterdir())}
            if (scratch / "sweep.png").exists():
                files |= {"sweep": str(folder / "sweep.csv"), "sweep_picture": str(folder / "sweep.png")}
            write_metrics(scratch / "metrics.json", {k: v for k, v in metrics.items() if k != "picture"})
        return {**data, "metrics": metrics, "output_files": {**data["output_files"], **files}}

    def _write_sweep(self, folder: Path, data: Mapping[Hashable, Any], ddfs: Tensor, hyper: Tensor) -> None:
        grid = Grid(np.asarray(data["grid_affine"], dtype=np.float64), tuple(ddfs.shape[2:]))
        spacing = [float(s) for s in voxel_spacing(grid.affine)]
        image = {key: _plain(data[key]).float()[None] for key in ("moving", "fixed")}
        image["mask_fixed"] = _plain(data["foreground"])[None]
        warped = [warp(image["moving"], ddf[None])[0] for ddf in ddfs]
        rows = []
        for values, ddf, one in zip(hyper.tolist(), ddfs, warped, strict=True):
            row = {k: round(v, 4) for k, v in zip(self.names, values, strict=True)}
            rows.append(row | pair_metrics(image, {"ddf": ddf[None], "warped": one[None]}, spacing_mm=spacing))
        if "label_moving" in data and "label_fixed" in data:
            self._add_overlap(folder, data, ddfs, rows)
        write_table(folder / "sweep.csv", rows)
        if "picture" in data["output_files"]:
            score = "dice" if "dice" in rows[0] else "ncc_after"
            text = "Dice" if score == "dice" else "NCC"
            headings = [f"{self.names[0]} {row[self.names[0]]:.2f}, {text} {row[score]:.3f}" for row in rows]
            sweep_picture(
                folder / "sweep.png", _plain(data["fixed"]).float(), warped, list(ddfs), headings, spacing_mm=spacing
            )
        if "warped" in data["output_files"]:
            fixed, moving = load_image(data["fixed_path"]), load_image(data["moving_path"])
            matrix = np.asarray(data["world_matrix"], dtype=np.float64)
            images = torch.empty(len(ddfs), *fixed.grid.size)
            for k, ddf in enumerate(ddfs):
                steps: list[Step] = [DisplacementField(ddf, grid), matrix]
                images[k] = resample(moving.data, moving.affine, fixed.grid, steps=steps)[0]
            write_image(folder / "sweep_warped.nii.gz", images, fixed.affine, like=fixed)

    def _add_overlap(
        self, folder: Path, data: Mapping[Hashable, Any], ddfs: Tensor, rows: list[dict[str, Any]]
    ) -> None:
        moving, fixed = (_plain(data[key])[None] for key in ("label_moving", "label_fixed"))
        labels = list(self.labels or present_labels(fixed, moving))
        dice = torch.stack([label_overlap(warp(moving, ddf[None], mode="nearest"), fixed, labels)[0] for ddf in ddfs])
        for row, values in zip(rows, dice, strict=True):
            row["dice"] = float(values.nanmean())
            row |= {f"dice_{label}": float(value) for label, value in zip(labels, values, strict=True)}
        best = best_values([row[self.names[0]] for row in rows], dice, labels, self.names[0])
        if best:
            write_table(folder / "sweep_structures.csv", best)


def _plain(value: Any) -> Tensor:
    return torch.as_tensor(value).detach().cpu()


def sweep_picture(
    path: str | os.PathLike,
    fixed: Tensor,
    warped: Sequence[Tensor],
    ddfs: Sequence[Tensor],
    headings: Sequence[str],
    *,
    spacing_mm: Sequence[float],
    columns: int = 7,
) -> None:
    """Write a contact sheet as PNG: one slice of the fixed image, then of each warped image with its deformed grid.

    Args:
        path: the picture; replaced only by a complete one.
        fixed, warped: shape (C, *S).
        ddfs: shape (D, *S), voxels.
        headings: of the warped images.
        spacing_mm: voxel size along each axis.
        columns: panels in a row.
    Raises:
        ValueError: if a shape or number differs.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not len(warped) == len(ddfs) == len(headings) > 0:
        raise ValueError(
            f"expected as many images, fields and headings, got {len(warped)}, {len(ddfs)}, {len(headings)}"
        )
    shown = first_channel(fixed, ddfs[0], "fixed")
    view = views_of(shown.shape, spacing_mm, centre_of(shown))[0]
    step = max(2, round(max(shown.shape) / 24))
    columns = min(columns, len(warped) + 1)
    rows = -(-(len(warped) + 1) // columns)
    tall = PANEL * view.height_mm / view.width_mm + 0.3
    figure = Figure(figsize=(columns * PANEL, rows * tall), dpi=110, facecolor=DARK)
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(warped) + 1 :]:
        axes.set_axis_off()
    draw_image(panels[0], shown, view, "gray", grey_window({"fixed": shown, "moving": shown})["intensity"])
    finish_panel(panels[0], view, heading="fixed", letters=True)
    for axes, image, ddf, heading in zip(panels[1:], warped, ddfs, headings, strict=False):
        volumes = {"fixed": shown, "moving": shown, "warped": first_channel(image, ddf, "warped")}
        draw_panel(axes, "grid", view, Subject(volumes, {}, on_cpu(ddf).float(), step))
        finish_panel(axes, view, heading=heading, letters=False)
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.28 / (rows * tall), 0.02, 0.3 / tall)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", facecolor=DARK)
