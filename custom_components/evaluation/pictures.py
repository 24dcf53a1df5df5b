"""Pictures of a registered pair and of maps beside an image. They need matplotlib.

Convention: images are tensors (C, *S) of which the first channel is shown, fields (D, *S) in voxels as in `fields`.
Axes are taken as R, A, S (2-D: R, A) and shown as radiologists do: anterior or superior up, the patient's right on the
left of the picture; in sagittal slices anterior is on the left.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..results import replacing
from .drawing import (
    BOTTOM,
    DARK,
    FAINT,
    GAP,
    LEFT,
    LIGHT,
    PANEL,
    RIGHT,
    Subject,
    View,
    add_colour_bar,
    caption_of,
    centre_of,
    draw_image,
    draw_panel,
    finish_panel,
    first_channel,
    on_cpu,
    percentile,
    views_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEADINGS = {
    "fixed": "fixed",
    "moving": "moving",
    "warped": "warped",
    "before": "moving - fixed",
    "after": "warped - fixed",
    "grid": "deformed grid",
    "jacobian": "log det J",
}


def pair_picture(
    path: str | os.PathLike[str],
    moving: Tensor,
    fixed: Tensor,
    warped: Tensor,
    ddf: Tensor,
    *,
    spacing_mm: Sequence[float],
    title: str = "",
    label_moving: Tensor | None = None,
    label_fixed: Tensor | None = None,
    label_warped: Tensor | None = None,
) -> None:
    """Write the quality-control picture of a registered pair as PNG.

    Columns: fixed, moving, warped, difference to fixed before and after (one scale), warped with the deformed grid, log
    det J with folded voxels (det J <= 0) in red. Rows: in 3-D the axial, coronal and sagittal slices through the centre
    of the foreground (planes of a thin slab are left out); in 2-D the image. Moving and fixed must be on one grid.

    The grid shows where lines of the moving image come to lie: contours of the components of phi at whole multiples of
    a 24th of the longest axis, of at least 2 voxels. In 3-D it is the part of the map within the slice.

    Args:
        path: the picture; replaced only by a complete one.
        moving, fixed, warped: shape (C, *S).
        ddf: shape (D, *S), voxels.
        spacing_mm: voxel size along each axis; pixels are drawn in these proportions.
        title: heading.
        label_moving, label_fixed, label_warped: label maps (1, *S), drawn as outlines: fixed blue, moving orange.
    Raises:
        ValueError: if shapes do not fit each other.
    """
    images = {"fixed": fixed, "moving": moving, "warped": warped}
    volumes = {name: first_channel(image, ddf, name) for name, image in images.items()}
    given = {"fixed": label_fixed, "moving": label_moving, "warped": label_warped}
    labels = {name: first_channel(m, ddf, f"label_{name}") for name, m in given.items() if m is not None}
    volumes |= {"before": volumes["moving"] - volumes["fixed"], "after": volumes["warped"] - volumes["fixed"]}
    ddf = on_cpu(ddf).float()
    views = views_of(ddf.shape[1:], spacing_mm, centre_of(volumes["fixed"]))
    subject = Subject(volumes, labels, ddf, max(2, round(max(ddf.shape[1:]) / 24)))
    figure = _draw_pair(subject, views, title)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", facecolor=DARK)


def _draw_pair(subject: Subject, views: Sequence[View], title: str) -> Figure:
    """The table of panels: a row for each view, a column for each heading; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [PANEL * view.height_mm / max(v.width_mm for v in views) for view in views]
    top = 0.62 if title else 0.36
    width = LEFT + len(_HEADINGS) * (PANEL + GAP) + RIGHT
    height = top + sum(heights) + GAP * (len(heights) - 1) + BOTTOM
    figure = Figure(figsize=(width, height), dpi=110, facecolor=DARK)
    FigureCanvasAgg(figure)
    y = height - top + GAP
    for row, (view, tall) in enumerate(zip(views, heights, strict=True)):
        y -= tall + GAP
        for column, (name, heading) in enumerate(_HEADINGS.items()):
            x = LEFT + column * (PANEL + GAP)
            axes = figure.add_axes((x / width, y / height, PANEL / width, tall / height))
            image = draw_panel(axes, name, view, subject)
            finish_panel(axes, view, heading=heading if row == 0 else "", letters=column == 0)
        figure.text(0.13 / width, (y + tall / 2) / height, view.name, color=FAINT, size=8, rotation=90, va="center")
    add_colour_bar(figure, image, top=top)  # of the last column
    if title:
        figure.text(LEFT / width, 1 - 0.2 / height, title, color=LIGHT, size=11, weight="bold", va="center")
    caption = caption_of(subject, views[0].spacing)
    figure.text(LEFT / width, 0.14 / height, caption, color=FAINT, size=7.5, va="center")
    return figure


def maps_picture(
    path: str | os.PathLike[str],
    image: Tensor,
    maps: Mapping[str, Tensor],
    *,
    spacing_mm: Sequence[float],
    name: str = "fixed",
) -> None:
    """Write slices of an image and of maps of standard deviations beside it as PNG, all maps on one scale.

    Args:
        path: the picture; replaced only by a complete one.
        image: shape (C, *S).
        name: its heading.
        maps: heading to map (*S), in mm.
        spacing_mm: voxel size along each axis.
    Raises:
        ValueError: if a map has not the image's size.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    image = on_cpu(image)[0].float()
    for title, values in maps.items():
        if values.shape != image.shape:
            raise ValueError(f"expected {title} of size {tuple(image.shape)}, got {tuple(values.shape)}")
    views = views_of(image.shape, spacing_mm, centre_of(image))
    top = max(percentile(values.flatten(), 0.999) for values in maps.values()) or 1.0
    figure = Figure(figsize=(PANEL * (len(maps) + 1) + 1, PANEL * 1.15 * len(views)), dpi=110, facecolor=DARK)
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(views), len(maps) + 1, squeeze=False)
    for row, view in zip(panels, views, strict=True):
        heading = view is views[0]
        draw_image(
            row[0], image, view, "gray", (percentile(image.flatten(), 0.005), percentile(image.flatten(), 0.995))
        )
        finish_panel(row[0], view, heading=name if heading else "", letters=True)
        for axes, (title, values) in zip(row[1:], maps.items(), strict=True):
            drawn = draw_image(axes, values, view, "magma", (0, top))
            finish_panel(axes, view, heading=f"{title.replace('_', ' ')}, mm" if heading else "", letters=False)
    bar = figure.colorbar(drawn, ax=panels.ravel().tolist(), fraction=0.03, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, colors=FAINT, length=2)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", facecolor=DARK)
