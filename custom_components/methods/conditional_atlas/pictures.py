"""Pictures of templates, and the animation of a sweep."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...evaluation.drawing import (
    DARK,
    LIGHT,
    MOVING_COLOUR,
    PANEL,
    centre_of,
    draw_image,
    draw_outlines,
    finish_panel,
    grey_window,
    on_cpu,
    views_of,
)
from ...results import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def template_picture(
    path: str | os.PathLike[str],
    image: Tensor,
    labels: Tensor | None = None,
    *,
    spacing_mm: Sequence[float],
    title: str = "",
) -> None:
    """Write a template as PNG: the slices through its middle and, in a second row, with its labels' outlines.

    Args:
        path: the picture; replaced only by a complete one.
        image: shape (C, *S).
        labels: shape (1, *S).
        spacing_mm: voxel size along each axis.
        title: heading.
    """
    with replacing(path) as temporary:
        figure = _template_figure(on_cpu(image)[0].float(), labels, spacing_mm, title)
        figure.savefig(temporary, format="png", facecolor=DARK)


def template_animation(
    path: str | os.PathLike[str],
    images: Sequence[Tensor],
    headings: Sequence[str],
    *,
    spacing_mm: Sequence[float],
    seconds: float = 0.2,
) -> None:
    """Write templates as an animated GIF, there and back, on one grey scale and through the same slices.

    Args:
        path: the picture; replaced only by a complete one.
        images: each (C, *S).
        headings: one for each.
        spacing_mm: voxel size along each axis.
        seconds: for which a frame is shown.
    """
    from PIL import Image

    shown = [on_cpu(image)[0].float() for image in images]
    mean = torch.stack(shown).mean(0)
    frames = []
    for image, heading in zip(shown, headings, strict=True):
        figure = _template_figure(image, None, spacing_mm, heading, like=mean)
        figure.canvas.draw()
        frames.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3]))  # type: ignore[attr-defined]
    frames += frames[-2:0:-1]
    with replacing(path) as temporary:
        milliseconds = round(1000 * seconds)
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)


def _template_figure(
    image: Tensor, labels: Tensor | None, spacing_mm: Sequence[float], title: str, like: Tensor | None = None
) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    like = image if like is None else like
    views = views_of(image.shape, spacing_mm, centre_of(like))
    window = grey_window({"fixed": like, "moving": like})["intensity"]
    rows = 1 + (labels is not None)
    scale = 1.6 * PANEL / max(view.width_mm for view in views)
    sizes = [(view.width_mm * scale, view.height_mm * scale) for view in views]
    tall = max(height for _, height in sizes)
    figure = Figure(figsize=(sum(w for w, _ in sizes), rows * tall + 0.35), dpi=110, facecolor=DARK)
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, len(views), squeeze=False, width_ratios=[w for w, _ in sizes])
    for row in range(rows):
        for axes, view in zip(panels[row], views, strict=True):
            draw_image(axes, image, view, "gray", window)
            if row and labels is not None:
                draw_outlines(axes, view.cut(on_cpu(labels)[0]), MOVING_COLOUR)
            finish_panel(axes, view, heading="", letters=row == 0)
    figure.suptitle(title, color=LIGHT, size=10, y=0.985)
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.35 / (rows * tall + 0.35), 0.02, 0.02)
    return figure
