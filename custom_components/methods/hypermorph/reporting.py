"""Report what hyper-parameters a pair was registered with, and a sweep over them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
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
from ...evaluation.metrics import image_metrics
from ...evaluation.overlap import label_overlap, present_labels
from ...evaluation.result import MEASURED
from ...fields import warp
from ...files import write_table
from ...results import replacing
from ...space.warping import warp_image
from ...transforms.publish import OutputFile, Report, image_file
from ...transforms.registered import RegisteredPair
from ...vocabulary import Metrics, Row
from .tuning import best_values

Rows = list[Row]


class HyperReport:
    """A reporter: the hyper-parameters of a registered pair, and its sweep if there is one.

    Expects `hyper` (H) in the prediction, and for a sweep `sweep_hyper` (K, H), `sweep_ddf` (K, D, *S) and
    `sweep_seconds`. The metrics are the values by name, and `sweep_seconds`. Of a sweep:

        sweep.csv: a line for each value: similarity, regularity and, with labels, Dice, measured on the model grid.
        sweep_structures.csv: with labels, for each the value of highest Dice in the sweep, and that Dice.
        sweep_warped.nii.gz: the moving image warped with each value, on the fixed image's grid, along the fourth axis;
            if an earlier reporter has the warped image.
        sweep.png: contact sheet; if an earlier reporter has a picture.

    Args:
        names: of the hyper-parameters.
        labels: ids for the overlap; by default those present in the pair, without the background.
    """

    def __init__(self, names: Sequence[str] = ("lambda",), labels: Sequence[int] | None = None) -> None:
        self.names, self.labels = list(names), labels
        self.captions = {"lambda": "lambda (weight of the regularisation)"} if "lambda" in self.names else {}

    def __call__(self, pair: RegisteredPair, earlier: Report) -> Report:
        metrics = {k: round(float(v), 6) for k, v in zip(self.names, pair.pred["hyper"], strict=True)}
        if "sweep_ddf" not in pair.pred:
            return Report(metrics, captions=self.captions)
        metrics["sweep_seconds"] = round(float(pair.pred["sweep_seconds"]), 3)
        return Report(metrics, self._sweep(pair, earlier), self.captions)

    def _sweep(self, pair: RegisteredPair, earlier: Report) -> dict[str, OutputFile]:
        ddfs, moving = pair.pred["sweep_ddf"], pair.images["moving"].float()
        warped = [warp(moving[None], ddf[None])[0] for ddf in ddfs]
        rows = self._measured(pair, warped)
        files = {"sweep": OutputFile("sweep.csv", partial(_write_rows, rows))}
        if {"label_moving", "label_fixed"} <= pair.images.keys():
            best = self._add_overlap(pair, rows)
            if best:
                files["sweep_structures"] = OutputFile("sweep_structures.csv", partial(_write_rows, best))
        if "picture" in earlier.files:
            fixed, spacing = pair.images["fixed"].float(), pair.spacing_mm
            headings = self._headings(rows)
            files["sweep_picture"] = OutputFile(
                "sweep.png", lambda path: sweep_picture(path, fixed, warped, list(ddfs), headings, spacing_mm=spacing)
            )
        if "warped" in earlier.files:
            target, source = pair.volumes["fixed"], pair.volumes["moving"]
            images = torch.empty(len(ddfs), *target.grid.size)
            for image, ddf in zip(images, ddfs, strict=True):
                image.copy_(warp_image(source, target.grid, pair.steps(ddf))[0])
            files["sweep_warped"] = image_file("sweep_warped.nii.gz", images, target.affine, like=target)
        return files

    def _measured(self, pair: RegisteredPair, warped: Sequence[Tensor]) -> Rows:
        image = {key: pair.images[key].float()[None] for key in ("moving", "fixed")}
        image["mask_fixed"] = pair.foreground[None]
        rows = []
        for values, ddf, one in zip(pair.pred["sweep_hyper"].tolist(), pair.pred["sweep_ddf"], warped, strict=True):
            row = {k: round(v, 4) for k, v in zip(self.names, values, strict=True)}
            pred = {"ddf": ddf[None], "warped": one[None]}
            found = image_metrics(image, pred, spacing_mm=pair.spacing_mm, stages=MEASURED[1:])
            rows.append(row | found | pair.as_written(ddf).metrics)
        return rows

    def _headings(self, rows: Sequence[Metrics]) -> list[str]:
        score, text = ("dice", "Dice") if "dice" in rows[0] else ("ncc_after", "NCC")
        return [f"{self.names[0]} {row[self.names[0]]:.2f}, {text} {row[score]:.3f}" for row in rows]

    def _add_overlap(self, pair: RegisteredPair, rows: Rows) -> Rows:
        """Add Dice to the rows; the best value of each label."""
        moving, fixed = (pair.images[key][None] for key in ("label_moving", "label_fixed"))
        labels = list(self.labels or present_labels(fixed, moving))
        moved = (warp(moving, ddf[None], mode="nearest") for ddf in pair.pred["sweep_ddf"])
        dice = torch.stack([label_overlap(one, fixed, labels)[0] for one in moved])
        for row, values in zip(rows, dice, strict=True):
            row["dice"] = float(values.nanmean())
            row |= {f"dice_{label}": float(value) for label, value in zip(labels, values, strict=True)}
        return best_values([row[self.names[0]] for row in rows], dice, labels, self.names[0])


def _write_rows(rows: Rows, path: Path) -> None:
    write_table(path, rows)


def sweep_picture(
    path: str | os.PathLike[str],
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
