"""Pictures and pages for people: a registered pair, a cohort, a training run. The pictures need matplotlib.

Convention: images are tensors (C, *S) of which the first channel is shown, fields (D, *S) in voxels as in `fields`.
Axes are taken as R, A, S (2-D: R, A) and shown as radiologists do: anterior or superior up, the patient's right on the
left of the picture; in sagittal slices anterior is on the left.
"""

from __future__ import annotations

import csv
import html
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from .fields import identity_grid, jacobian_determinant
from .metrics import present_labels, replacing, summarize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Name, horizontal axis, vertical axis, is the horizontal axis shown from high to low, letters left and right.
_PLANES = {
    3: (("axial", 0, 1, True, "RL"), ("coronal", 0, 2, True, "RL"), ("sagittal", 1, 2, True, "AP")),
    2: (("", 0, 1, True, ""),),
}
_DARK, _LIGHT, _FAINT = "#101418", "#e8eaed", "#9aa0a6"
_FIXED_COLOUR, _MOVING_COLOUR, _GRID_COLOUR, _FOLD_COLOUR = "#35c4dc", "#ffb347", "#7fd6a0", "#ff1f1f"
# Dark in the middle: what did not change recedes.
_DIFFERENCE_COLOURS = ("#7cc4ff", "#1f6fd0", "#000000", "#d0431f", "#ffb199")
_JACOBIAN_COLOURS = ("#b9f2e6", "#159a86", "#0b0b0b", "#b8860b", "#ffe9a8")
_NOT_DRAWN = ("epoch", "iteration", "seconds", "cpu_seconds")
_HEADINGS = {
    "fixed": "fixed",
    "moving": "moving",
    "warped": "warped",
    "before": "moving - fixed",
    "after": "warped - fixed",
    "grid": "deformed grid",
    "jacobian": "log det J",
}
_PANEL, _GAP, _LEFT, _RIGHT, _BOTTOM = 2.1, 0.06, 0.3, 0.75, 0.3  # inches
_MIN_SIZE = 12  # a plane with a shorter side is not shown if there is another one


def pair_picture(
    path: str | os.PathLike,
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
    grid_step: int | None = None,
) -> None:
    """Write the quality-control picture of a registered pair as PNG.

    Columns: fixed, moving, warped, difference to fixed before and after (one scale), warped with the deformed grid, log
    det J with folded voxels (det J <= 0) in red. Rows: in 3-D the axial, coronal and sagittal slices through the centre
    of the foreground (planes of a thin slab are left out); in 2-D the image. Moving and fixed must be on one grid.

    The grid shows where lines of the moving image come to lie: contours of the components of phi at whole multiples of
    the step. In 3-D it is the part of the map within the slice.

    Args:
        path: the picture; replaced only by a complete one.
        moving, fixed, warped: shape (C, *S).
        ddf: shape (D, *S), voxels.
        spacing_mm: voxel size along each axis; pixels are drawn in these proportions.
        title: heading.
        label_moving, label_fixed, label_warped: label maps (1, *S), drawn as outlines: fixed blue, moving orange.
        grid_step: distance of the lines in voxels; by default a 24th of the longest axis, at least 2.
    Raises:
        ValueError: if shapes do not fit each other.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    images = {"fixed": fixed, "moving": moving, "warped": warped}
    volumes = {name: _first_channel(image, ddf, name) for name, image in images.items()}
    given = {"fixed": label_fixed, "moving": label_moving, "warped": label_warped}
    labels = {name: _first_channel(m, ddf, f"label_{name}") for name, m in given.items() if m is not None}
    volumes |= {"before": volumes["moving"] - volumes["fixed"], "after": volumes["warped"] - volumes["fixed"]}
    ddf = _plain(ddf).float()
    views = _views(ddf.shape[1:], spacing_mm, _centre(volumes["fixed"]))
    subject = _Subject(volumes, labels, ddf, grid_step or max(2, round(max(ddf.shape[1:]) / 24)))

    heights = [_PANEL * view.height_mm / max(v.width_mm for v in views) for view in views]
    top = 0.62 if title else 0.36
    width = _LEFT + len(_HEADINGS) * (_PANEL + _GAP) + _RIGHT
    height = top + sum(heights) + _GAP * (len(heights) - 1) + _BOTTOM
    figure = Figure(figsize=(width, height), dpi=110, facecolor=_DARK)
    FigureCanvasAgg(figure)
    y = height - top + _GAP
    for row, (view, tall) in enumerate(zip(views, heights, strict=True)):
        y -= tall + _GAP
        for column, (name, heading) in enumerate(_HEADINGS.items()):
            x = _LEFT + column * (_PANEL + _GAP)
            axes = figure.add_axes((x / width, y / height, _PANEL / width, tall / height))
            image = _draw_panel(axes, name, view, subject)
            _finish_panel(axes, view, heading=heading if row == 0 else "", letters=column == 0)
        figure.text(0.13 / width, (y + tall / 2) / height, view.name, color=_FAINT, size=8, rotation=90, va="center")
    _add_colour_bar(figure, image, top=top)  # of the last column
    if title:
        figure.text(_LEFT / width, 1 - 0.2 / height, title, color=_LIGHT, size=11, weight="bold", va="center")
    caption = _caption(subject, views[0].spacing)
    figure.text(_LEFT / width, 0.14 / height, caption, color=_FAINT, size=7.5, va="center")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", facecolor=_DARK)


def maps_picture(
    path: str | os.PathLike,
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

    image = _plain(image)[0].float()
    for title, values in maps.items():
        if values.shape != image.shape:
            raise ValueError(f"expected {title} of size {tuple(image.shape)}, got {tuple(values.shape)}")
    views = _views(image.shape, spacing_mm, _centre(image))
    top = max(_percentile(values.flatten(), 0.999) for values in maps.values()) or 1.0
    figure = Figure(figsize=(_PANEL * (len(maps) + 1) + 1, _PANEL * 1.15 * len(views)), dpi=110, facecolor=_DARK)
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(views), len(maps) + 1, squeeze=False)
    for row, view in zip(panels, views, strict=True):
        heading = view is views[0]
        _draw_image(
            row[0], image, view, "gray", (_percentile(image.flatten(), 0.005), _percentile(image.flatten(), 0.995))
        )
        _finish_panel(row[0], view, heading=name if heading else "", letters=True)
        for axes, (title, values) in zip(row[1:], maps.items(), strict=True):
            drawn = _draw_image(axes, values, view, "magma", (0, top))
            _finish_panel(axes, view, heading=f"{title.replace('_', ' ')}, mm" if heading else "", letters=False)
    bar = figure.colorbar(drawn, ax=panels.ravel().tolist(), fraction=0.03, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, colors=_FAINT, length=2)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", facecolor=_DARK)


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
    shown = _first_channel(fixed, ddfs[0], "fixed")
    view = _views(shown.shape, spacing_mm, _centre(shown))[0]
    step = max(2, round(max(shown.shape) / 24))
    columns = min(columns, len(warped) + 1)
    rows = -(-(len(warped) + 1) // columns)
    tall = _PANEL * view.height_mm / view.width_mm + 0.3
    figure = Figure(figsize=(columns * _PANEL, rows * tall), dpi=110, facecolor=_DARK)
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(warped) + 1 :]:
        axes.set_axis_off()
    _draw_image(panels[0], shown, view, "gray", _window({"fixed": shown, "moving": shown})["intensity"])
    _finish_panel(panels[0], view, heading="fixed", letters=True)
    for axes, image, ddf, heading in zip(panels[1:], warped, ddfs, headings, strict=False):
        volumes = {"fixed": shown, "moving": shown, "warped": _first_channel(image, ddf, "warped")}
        _draw_panel(axes, "grid", view, _Subject(volumes, {}, _plain(ddf).float(), step))
        _finish_panel(axes, view, heading=heading, letters=False)
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.28 / (rows * tall), 0.02, 0.3 / tall)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", facecolor=_DARK)


def template_picture(
    path: str | os.PathLike,
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
        figure = _template_figure(_plain(image)[0].float(), labels, spacing_mm, title)
        figure.savefig(temporary, format="png", facecolor=_DARK)


def template_animation(
    path: str | os.PathLike,
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

    shown = [_plain(image)[0].float() for image in images]
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
    views = _views(image.shape, spacing_mm, _centre(like))
    window = _window({"fixed": like, "moving": like})["intensity"]
    rows = 1 + (labels is not None)
    scale = 1.6 * _PANEL / max(view.width_mm for view in views)
    sizes = [(view.width_mm * scale, view.height_mm * scale) for view in views]
    tall = max(height for _, height in sizes)
    figure = Figure(figsize=(sum(w for w, _ in sizes), rows * tall + 0.35), dpi=110, facecolor=_DARK)
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, len(views), squeeze=False, width_ratios=[w for w, _ in sizes])
    for row in range(rows):
        for axes, view in zip(panels[row], views, strict=True):
            _draw_image(axes, image, view, "gray", window)
            if row and labels is not None:
                _draw_outlines(axes, view.cut(_plain(labels)[0]), _MOVING_COLOUR)
            _finish_panel(axes, view, heading="", letters=row == 0)
    figure.suptitle(title, color=_LIGHT, size=10, y=0.985)
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.35 / (rows * tall + 0.35), 0.02, 0.02)
    return figure


def cohort_page(
    folder: str | os.PathLike, rows: Sequence[Mapping[str, Any]], *, title: str = "Registration report"
) -> None:
    """Write `index.html` for a cohort: mean and SD of each measure, one row for each pair, and the pictures.

    The page needs no other file than the pictures and works from the disk.

    Args:
        folder: made if needed.
        rows: one mapping for each pair: `id`, numbers (of `pair_metrics`), and `picture`, the path of a PNG, absolute
            or relative to the folder. Other texts are shown in the table.
        title: heading.
    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("expected at least one row, got none")
    folder = Path(folder)
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "picture"))
    # Measures of single labels are for the CSV file; on a page they would hide the others.
    columns = [c for c in columns if not c.rpartition("_")[2].isdigit()]
    numeric = summarize([{k: row[k] for k in columns if k in row} for row in rows])
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{len(rows)} pair{'s' if len(rows) > 1 else ''}. Mean and standard deviation over the pairs.</p>",
        _table(
            ["measure", "mean", "SD", "n"],
            [[k, _number(s["mean"]), _number(s["sd"]), str(s["n"])] for k, s in numeric.items()],
        ),
        "<h2>Pairs</h2>",
        _table(columns, [[_number(row.get(key)) for key in columns] for row in rows]),
    ]
    for i, row in enumerate(rows):
        if "picture" in row:
            name = html.escape(str(row.get("id", i + 1)))
            image = f'<img loading="lazy" src="{_link(row["picture"], folder)}" alt="{name}">'
            parts.append(f"<figure><figcaption>{name}</figcaption>{image}</figure>")
    page = _PAGE.format(title=html.escape(title), body="\n".join(parts))
    with replacing(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def training_curve(
    path: str | os.PathLike, data: str | os.PathLike | Sequence[Mapping[str, Any]], *, title: str = ""
) -> None:
    """Draw the course of a training run, one panel for each quantity, as PNG.

    Args:
        path: the picture.
        data: a CSV file or rows, with a column `epoch` or `iteration` (else rows are counted) and numbers; empty cells
            are skipped, so that losses of each epoch and scores of some epochs can share a table. Columns of seconds
            are not drawn.
        title: heading.
    Raises:
        FileNotFoundError: if the CSV file is missing.
        ValueError: if there is no number to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps, series, axis_name = _read_curve(data)
    columns = min(3, len(series))
    height = math.ceil(len(series) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.7 * height + 0.4 * bool(title)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, weight="bold", size=11)
    grid = figure.subplots(height, columns, squeeze=False).ravel()
    for axes, (name, values) in zip(grid, series.items(), strict=False):
        points = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
        axes.plot(
            *zip(*points, strict=True), color="#1f6fb2", linewidth=1.4, marker="o" if len(points) < 25 else None, ms=3
        )
        axes.set_title(name, size=10, loc="left")
        axes.set_xlabel(axis_name, size=8, color="#555555")
        axes.tick_params(labelsize=8, colors="#555555")
        axes.grid(color="#e4e4e4", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(series) :]:
        axes.remove()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


@dataclass(frozen=True)
class _View:
    """A slice as it is looked at: which axes go right and up, through which voxel."""

    name: str
    horizontal: int
    vertical: int
    flipped: bool
    letters: str
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    centre: tuple[int, ...]

    @property
    def width_mm(self) -> float:
        return self.size[self.horizontal] * self.spacing[self.horizontal]

    @property
    def height_mm(self) -> float:
        return self.size[self.vertical] * self.spacing[self.vertical]

    def cut(self, volume: Tensor) -> Tensor:
        """The slice of a volume (*S), shape (vertical, horizontal)."""
        shown = (self.horizontal, self.vertical)
        index = tuple(slice(None) if axis in shown else c for axis, c in enumerate(self.centre))
        return volume[index].T  # horizontal < vertical in every view


class _Subject:
    """What the panels of one pair share: volumes (*S) by panel, label maps, phi, det J and the grey scales."""

    def __init__(self, volumes: dict[str, Tensor], labels: dict[str, Tensor], ddf: Tensor, step: int) -> None:
        self.volumes, self.labels, self.ddf, self.step = volumes, labels, ddf, step
        self.phi = identity_grid(ddf.shape[1:]) + ddf
        self.determinant = jacobian_determinant(ddf[None])[0, 0]
        self.window = _window(volumes)
        self.log_limit = _log_limit(self.determinant)


def _plain(tensor: Tensor) -> Tensor:
    return (tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor).detach().cpu()


def _first_channel(image: Tensor, ddf: Tensor, name: str) -> Tensor:
    if image.ndim != ddf.ndim or image.shape[1:] != ddf.shape[1:]:
        size = ", ".join(map(str, ddf.shape[1:]))
        raise ValueError(f"expected {name} of shape (C, {size}), the field's grid, got {tuple(image.shape)}")
    return _plain(image)[0].float()


def _views(size: Sequence[int], spacing_mm: Sequence[float], centre: Sequence[int]) -> list[_View]:
    spacing = tuple(float(s) for s in spacing_mm)
    if len(spacing) != len(size):
        raise ValueError(f"expected a spacing for each of {len(size)} axes, got {list(spacing)}")
    views = [_View(*plane, tuple(size), spacing, tuple(centre)) for plane in _PLANES[len(size)]]
    return [v for v in views if min(size[v.horizontal], size[v.vertical]) >= _MIN_SIZE] or views[:1]


def _centre(image: Tensor) -> list[int]:
    """Voxel in the middle of the foreground: of the box about what is clearly brighter than the darkest value."""
    low, high = image.min(), image.flatten().kthvalue(max(1, int(0.99 * image.numel()))).values
    inside = (image > low + 0.15 * (high - low)).nonzero()
    if len(inside) == 0:
        return [n // 2 for n in image.shape]
    return [int(v) for v in (inside.amin(0) + inside.amax(0)) // 2]


def _window(volumes: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Grey values of all images on one scale, and one symmetric scale for both differences."""
    images = torch.cat([volumes["fixed"].flatten(), volumes["moving"].flatten()])
    low, high = _percentile(images, 0.005), _percentile(images, 0.995)
    span = high - low if high > low else 1.0
    return {"intensity": (low, low + span), "difference": (-0.6 * span, 0.6 * span)}


def _log_limit(determinant: Tensor) -> float:
    """A round symmetric limit for log det J that holds 99.5% of its values."""
    logarithm = determinant.clamp_min(1e-3).log().abs().flatten()
    return min(2.0, max(0.1, math.ceil(_percentile(logarithm, 0.995) * 10) / 10))


def _percentile(values: Tensor, share: float) -> float:
    values = values[values.isfinite()]
    return float(values.kthvalue(max(1, round(share * len(values)))).values) if len(values) else 0.0


def _draw_panel(axes: Axes, name: str, view: _View, subject: _Subject) -> Any:
    if name == "grid":
        image = _draw_image(axes, subject.volumes["warped"], view, "gray", subject.window["intensity"])
        for axis in (view.horizontal, view.vertical):
            lines = view.cut(subject.phi[axis]).numpy()
            levels = range(0, subject.ddf.shape[1 + axis], subject.step)
            axes.contour(lines, levels=list(levels), colors=_GRID_COLOUR, linewidths=0.5, alpha=0.85)
        return image
    if name == "jacobian":
        limit = subject.log_limit
        logarithm = subject.determinant.clamp_min(1e-6).log()
        image = _draw_image(axes, logarithm, view, _colour_map(_JACOBIAN_COLOURS), (-limit, limit))
        folds = torch.where(subject.determinant > 0, math.nan, 1.0)
        _draw_image(axes, folds, view, _colour_map((_FOLD_COLOUR, _FOLD_COLOUR)), (0, 1))
        return image
    if name in ("before", "after"):
        colours = _colour_map(_DIFFERENCE_COLOURS)
        return _draw_image(axes, subject.volumes[name], view, colours, subject.window["difference"])
    image = _draw_image(axes, subject.volumes[name], view, "gray", subject.window["intensity"])
    for which, colour in _outlines(name):
        if which in subject.labels:
            _draw_outlines(axes, view.cut(subject.labels[which]), colour)
    return image


def _draw_image(axes: Axes, volume: Tensor, view: _View, cmap: Any, limits: tuple[float, float]) -> Any:
    pixels = view.cut(volume).numpy()
    aspect = view.spacing[view.vertical] / view.spacing[view.horizontal]
    low, high = limits
    image = axes.imshow(pixels, origin="lower", cmap=cmap, vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
    if view.flipped:
        axes.set_xlim(pixels.shape[1] - 0.5, -0.5)
    return image


def _colour_map(colours: Sequence[str]) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("morphzoo", colours)


def _outlines(panel: str) -> list[tuple[str, str]]:
    """Which label maps are outlined on a panel, in which colour."""
    return {
        "fixed": [("fixed", _FIXED_COLOUR)],
        "moving": [("moving", _MOVING_COLOUR)],
        "warped": [("fixed", _FIXED_COLOUR), ("warped", _MOVING_COLOUR)],
    }.get(panel, [])


def _draw_outlines(axes: Axes, pixels: Tensor, colour: str) -> None:
    for label in present_labels(pixels):
        region = (pixels == label).float()
        if region.min() < 1:
            axes.contour(region.numpy(), levels=[0.5], colors=colour, linewidths=0.7)


def _finish_panel(axes: Axes, view: _View, *, heading: str, letters: bool) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor("black")
    for spine in axes.spines.values():
        spine.set_visible(False)
    if heading:
        axes.set_title(heading, color=_LIGHT, size=9, pad=4)
    if letters:
        for x, align, letter in ((0.02, "left", view.letters[:1]), (0.98, "right", view.letters[1:])):
            axes.text(x, 0.5, letter, transform=axes.transAxes, color=_FAINT, size=7, ha=align, va="center")


def _add_colour_bar(figure: Figure, image: Any, *, top: float) -> None:
    width, height = figure.get_size_inches()
    length = min(2.2, height - top - _BOTTOM)
    box = (1 - 0.65 / width, (height - top - length) / height, 0.1 / width, length / height)
    bar = figure.colorbar(image, cax=figure.add_axes(box))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, colors=_FAINT, length=2)


def _caption(subject: _Subject, spacing: Sequence[float]) -> str:
    folded = 100 * float((~(subject.determinant > 0)).double().mean())
    scale = torch.tensor(spacing).view(-1, *[1] * subject.determinant.ndim)
    length = (subject.ddf * scale).norm(dim=0)
    text = f"folded voxels (red): {folded:.3g}% of the grid"
    text += f"    displacement: mean {length.mean():.2f} mm, max {length.max():.2f} mm"
    return text + ("    outlines: fixed blue, moving orange" if subject.labels else "")


def _read_curve(
    data: str | os.PathLike | Sequence[Mapping[str, Any]],
) -> tuple[list[float], dict[str, list[float]], str]:
    if isinstance(data, str | os.PathLike):
        with open(data, newline="", encoding="utf-8") as file:
            rows: Sequence[Mapping[str, Any]] = list(csv.DictReader(file))
    else:
        rows = data
    names = list(dict.fromkeys(key for row in rows for key in row if key is not None))
    axis = next((name for name in ("epoch", "iteration") if name in names), None)
    steps = [_to_float(row.get(axis)) if axis else i + 1.0 for i, row in enumerate(rows)]
    columns = {name: [_to_float(row.get(name)) for row in rows] for name in names if name not in _NOT_DRAWN}
    series = {name: values for name, values in columns.items() if any(map(math.isfinite, values))}
    if not series:
        raise ValueError(f"no number to draw in {len(rows)} rows with the columns {', '.join(names) or 'none'}")
    return steps, series, axis or "row"


def _to_float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heading)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "n/a"
    return "" if value is None else str(value)


def _link(picture: str | os.PathLike, folder: Path) -> str:
    path = Path(picture)
    return quote(Path(os.path.relpath(path, folder) if path.is_absolute() else path).as_posix())


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #1c2126; }}
body {{ margin: 2rem auto; max-width: 1500px; padding: 0 1.2rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.88rem; }}
th, td {{ padding: 0.3rem 0.8rem; border-bottom: 1px solid #dfe3e8; text-align: right; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }} th {{ background: #f3f5f7; }}
figure {{ margin: 1.6rem 0; }} figcaption {{ font-weight: 600; margin-bottom: 0.4rem; }}
img {{ max-width: 100%; border-radius: 4px; }}
</style></head><body>
{body}
</body></html>
"""
