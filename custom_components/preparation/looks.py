"""What a prepared session looks like: measures, what is doubtful about it, and a picture. Pictures need matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..evaluation.drawing import DARK, FAINT, LIGHT, View, draw_image, draw_outlines, percentile, views_of
from ..space.grids import Grid
from ..space.planes import plane_affine
from ..space.resampling import resample
from ..vocabulary import Item, Row
from .steps import MASK, present
from .template import Template

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MASK_COLOUR, TEMPLATE_COLOUR = "#35c4dc", "#ffb347"

_PLACES = {"axial": (0.3, 0.5, 0.7), "coronal": (0.35, 0.6), "sagittal": (0.3, 0.5), "": (0.5,)}  # shares of the head

_LEAST_DICE, _LEAST_NCC, _MOST_STRETCH = 0.85, 0.5, 2.0  # of masks; of a T1w scan and its template; of volume


def describe(path: Path, item: Item, contrasts: Sequence[str], steps: Sequence[Row]) -> Row:
    """Measures and flags of a session on its last grid; its picture goes to a path.

    Args:
        path: of the picture.
        item: as the last step left it.
        contrasts: the reference first.
        steps: the log, of which "size_ratio" and "determinant" are taken.
    """
    names = present(item, contrasts)
    images = {name: item[name].as_tensor()[0].float() for name in names}
    affine = item[names[0]].affine.numpy()
    template: Template | None = item["template"]
    inside = item[MASK].as_tensor()[0] > 0 if MASK in item else None
    head, brain = (None, None) if template is None else _on_grid(template, affine, tuple(images[names[0]].shape))
    measures: Row = {k: float(one[k]) for one in steps for k in ("size_ratio", "determinant") if k in one}
    if inside is not None:
        native = measures.get("determinant", 1.0) * float(np.prod(np.linalg.norm(affine[:3, :3], axis=0)))
        measures["brain_ml"] = float(inside.sum()) * native / 1000
    if inside is not None and brain is not None:
        measures["dice_template"] = float(2 * (inside & brain).sum() / (inside.sum() + brain.sum()).clamp_min(1))
    if head is not None:
        measures["ncc_template"] = _correlation(images[names[0]], head, brain)
    _picture(path, images, np.linalg.norm(affine[:3, :3], axis=0).tolist(), inside, brain)
    return {"measures": measures, "flags": _flags(measures, names[0], inside, brain)}


def _on_grid(template: Template, affine: np.ndarray, size: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """The template (*S) and its mask, if it has one, on a grid whose third axis may have one voxel."""
    d = len(template.image.affine) - 1
    grid = Grid(affine if d == 3 else plane_affine(affine), size[:d])
    head = resample(template.image.data, template.image.affine, grid)[0].reshape(size)
    if template.mask is None:
        return head, None
    return head, resample((template.mask.data > 0).float(), template.mask.affine, grid)[0].reshape(size) > 0.5


def _correlation(image: Tensor, template: Tensor, inside: Tensor | None) -> float:
    where = inside if inside is not None else template > 0
    pair = torch.stack([image[where], template[where]])
    return float(torch.corrcoef(pair)[0, 1]) if pair.shape[1] > 1 else 0.0


def _faces(inside: Tensor | None) -> set[tuple[int, int]]:
    """The faces (axis, 0 or -1) of the grid that a mask touches; a slice has none along its third axis."""
    places = [(axis, end) for axis in range(3) for end in (0, -1)] if inside is not None else []
    return {p for p in places if inside is not None and inside.shape[p[0]] > 1 and bool(inside.select(*p).any())}


def _flags(measures: Row, reference: str, inside: Tensor | None, brain: Tensor | None) -> list[str]:
    flags = []
    if measures.get("dice_template", 1) < _LEAST_DICE:
        flags.append(f"brain and template overlap little (Dice {measures['dice_template']:.2f})")
    if reference == "T1w" and measures.get("ncc_template", 1) < _LEAST_NCC:
        flags.append(f"looks little like the template (correlation {measures['ncc_template']:.2f})")
    stretch = measures.get("determinant", 1)
    if not 1 / _MOST_STRETCH < stretch < _MOST_STRETCH:
        flags.append(f"the alignment changes volumes by a factor of {1 / stretch:.2g}")
    if _faces(inside) - _faces(brain):  # MNI152 itself ends in the brain stem
        flags.append("the brain mask reaches the edge of the grid")
    return flags


def _picture(
    path: str | os.PathLike[str],
    images: dict[str, Tensor],
    spacing: Sequence[float],
    inside: Tensor | None,
    brain: Tensor | None,
) -> None:
    """A row of slices for each contrast, with the outlines of the mask and of the template's brain."""
    first = next(iter(images.values()))
    shape = first.shape if first.shape[-1] > 1 else first.shape[:2]  # a slice is shown in 2-D
    flat = {name: image.reshape(shape) for name, image in images.items()}
    masks = [
        (mask.reshape(shape), colour)
        for mask, colour in ((brain, TEMPLATE_COLOUR), (inside, MASK_COLOUR))
        if mask is not None
    ]
    shown = inside if inside is not None else brain if brain is not None else first > first.mean()
    views = _slices(shown.reshape(shape), list(spacing)[: len(shape)])
    figure = _draw(flat, views, masks)
    figure.savefig(path, format="png", facecolor=DARK)


def _slices(inside: Tensor, spacing: Sequence[float]) -> list[View]:
    """Views through some places of what is inside."""
    places = inside.nonzero()
    low, high = (
        (places.amin(0), places.amax(0)) if len(places) else (torch.zeros(inside.ndim), torch.tensor(inside.shape) - 1)
    )
    found = []
    for share in sorted(set().union(*_PLACES.values())):
        centre = [round(float(a + share * (b - a))) for a, b in zip(low, high, strict=True)]
        found += [view for view in views_of(inside.shape, spacing, centre) if share in _PLACES[view.name]]
    return sorted(found, key=lambda view: list(_PLACES).index(view.name))


def _draw(images: dict[str, Tensor], views: Sequence[View], masks: Sequence[tuple[Tensor, str]]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tall = 1.6  # inches of a row
    scale = tall / max(view.height_mm for view in views)
    widths = [view.width_mm * scale for view in views]
    left, gap = 0.25, 0.04
    size = (left + sum(widths) + gap * len(views), len(images) * (tall + gap))
    figure = Figure(figsize=size, dpi=110, facecolor=DARK)
    FigureCanvasAgg(figure)
    for row, (name, image) in enumerate(images.items()):
        bottom = size[1] - (row + 1) * (tall + gap)
        figure.text(
            0.35 * left / size[0], (bottom + tall / 2) / size[1], name, color=LIGHT, size=8, rotation=90, va="center"
        )
        limits = (percentile(image.flatten(), 0.01), percentile(image.flatten(), 0.998))
        x = left
        for view, wide in zip(views, widths, strict=True):
            high = view.height_mm * scale
            axes = figure.add_axes(
                (x / size[0], (bottom + (tall - high) / 2) / size[1], wide / size[0], high / size[1])
            )
            draw_image(axes, image, view, "gray", limits)
            for mask, colour in masks:
                draw_outlines(axes, view.cut(mask.int()), colour)
            axes.set_axis_off()
            for place, align, letter in ((0.02, "left", view.letters[:1]), (0.98, "right", view.letters[1:])):
                axes.text(place, 0.04, letter, transform=axes.transAxes, color=FAINT, size=6, ha=align)
            x += wide + gap
    return figure
