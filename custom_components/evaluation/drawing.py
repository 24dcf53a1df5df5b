"""Parts of pictures: views of a volume, grey-value windows, panels, outlines. Needs matplotlib.

Convention: as in `pictures`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..fields import identity_grid, jacobian_determinant, plain
from .overlap import present_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# Name, horizontal axis, vertical axis, is the horizontal axis shown from high to low, letters left and right.
_PLANES = {
    3: (("axial", 0, 1, True, "RL"), ("coronal", 0, 2, True, "RL"), ("sagittal", 1, 2, True, "AP")),
    2: (("", 0, 1, True, ""),),
}


DARK, LIGHT, FAINT = "#101418", "#e8eaed", "#9aa0a6"


FIXED_COLOUR, MOVING_COLOUR, _GRID_COLOUR, _FOLD_COLOUR = "#35c4dc", "#ffb347", "#7fd6a0", "#ff1f1f"


# Dark in the middle: what did not change recedes.
_DIFFERENCE_COLOURS = ("#7cc4ff", "#1f6fd0", "#000000", "#d0431f", "#ffb199")


_JACOBIAN_COLOURS = ("#b9f2e6", "#159a86", "#0b0b0b", "#b8860b", "#ffe9a8")


PANEL, GAP, LEFT, RIGHT, BOTTOM = 2.1, 0.06, 0.3, 0.75, 0.3  # inches


_MIN_SIZE = 12  # a plane with a shorter side is not shown if there is another one


@dataclass(frozen=True)
class View:
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


class Subject:
    """What the panels of one pair share: volumes (*S) by panel, label maps, phi, det J and the grey scales."""

    def __init__(self, volumes: dict[str, Tensor], labels: dict[str, Tensor], ddf: Tensor, step: int) -> None:
        self.volumes, self.labels, self.ddf, self.step = volumes, labels, ddf, step
        self.phi = identity_grid(ddf.shape[1:]) + ddf
        self.determinant = jacobian_determinant(ddf[None])[0, 0]
        self.window = grey_window(volumes)
        self.log_limit = _log_limit(self.determinant)


def on_cpu(tensor: Tensor) -> Tensor:
    """An ordinary tensor in the memory of the CPU, without history."""
    return plain(tensor).detach().cpu()


def first_channel(image: Tensor, ddf: Tensor, name: str) -> Tensor:
    """The first channel (*S) of an image (C, *S). Raises ValueError: if it is not on the grid of a field (D, *S)."""
    if image.ndim != ddf.ndim or image.shape[1:] != ddf.shape[1:]:
        size = ", ".join(map(str, ddf.shape[1:]))
        raise ValueError(f"expected {name} of shape (C, {size}), the field's grid, got {tuple(image.shape)}")
    return on_cpu(image)[0].float()


def views_of(size: Sequence[int], spacing_mm: Sequence[float], centre: Sequence[int]) -> list[View]:
    """The slices of a volume through a voxel, without those of a thin slab; in 2-D the image itself.

    Raises:
        ValueError: if there is not one spacing for each axis.
    """
    spacing = tuple(float(s) for s in spacing_mm)
    if len(spacing) != len(size):
        raise ValueError(f"expected a spacing for each of {len(size)} axes, got {list(spacing)}")
    views = [View(*plane, tuple(size), spacing, tuple(centre)) for plane in _PLANES[len(size)]]
    return [v for v in views if min(size[v.horizontal], size[v.vertical]) >= _MIN_SIZE] or views[:1]


def centre_of(image: Tensor) -> list[int]:
    """Voxel in the middle of the foreground: of the box about what is clearly brighter than the darkest value."""
    low, high = image.min(), image.flatten().kthvalue(max(1, int(0.99 * image.numel()))).values
    inside = (image > low + 0.15 * (high - low)).nonzero()
    if len(inside) == 0:
        return [n // 2 for n in image.shape]
    return [int(v) for v in (inside.amin(0) + inside.amax(0)) // 2]


def grey_window(volumes: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Grey values of all images on one scale, and one symmetric scale for both differences."""
    images = torch.cat([volumes["fixed"].flatten(), volumes["moving"].flatten()])
    low, high = percentile(images, 0.005), percentile(images, 0.995)
    span = high - low if high > low else 1.0
    return {"intensity": (low, low + span), "difference": (-0.6 * span, 0.6 * span)}


def _log_limit(determinant: Tensor) -> float:
    """A round symmetric limit for log det J that holds 99.5% of its values."""
    logarithm = determinant.clamp_min(1e-3).log().abs().flatten()
    return min(2.0, max(0.1, math.ceil(percentile(logarithm, 0.995) * 10) / 10))


def percentile(values: Tensor, share: float) -> float:
    """The finite value below which a share of them lies; 0 if none is finite."""
    values = values[values.isfinite()]
    return float(values.kthvalue(max(1, round(share * len(values)))).values) if len(values) else 0.0


def draw_panel(axes: Axes, name: str, view: View, subject: Subject) -> AxesImage:
    """A slice of what a panel shows, by its name, with folds, lines of the grid, or outlines of labels over it."""
    if name == "grid":
        image = draw_image(axes, subject.volumes["warped"], view, "gray", subject.window["intensity"])
        for axis in (view.horizontal, view.vertical):
            lines = view.cut(subject.phi[axis]).numpy()
            levels = range(0, subject.ddf.shape[1 + axis], subject.step)
            axes.contour(lines, levels=list(levels), colors=_GRID_COLOUR, linewidths=0.5, alpha=0.85)
        return image
    if name == "jacobian":
        limit = subject.log_limit
        logarithm = subject.determinant.clamp_min(1e-6).log()
        image = draw_image(axes, logarithm, view, _colour_map(_JACOBIAN_COLOURS), (-limit, limit))
        folds = torch.where(subject.determinant > 0, math.nan, 1.0)
        draw_image(axes, folds, view, _colour_map((_FOLD_COLOUR, _FOLD_COLOUR)), (0, 1))
        return image
    if name in ("before", "after"):
        colours = _colour_map(_DIFFERENCE_COLOURS)
        return draw_image(axes, subject.volumes[name], view, colours, subject.window["difference"])
    image = draw_image(axes, subject.volumes[name], view, "gray", subject.window["intensity"])
    for which, colour in _outlines(name):
        if which in subject.labels:
            draw_outlines(axes, view.cut(subject.labels[which]), colour)
    return image


def draw_image(axes: Axes, volume: Tensor, view: View, cmap: str | Colormap, limits: tuple[float, float]) -> AxesImage:
    """A slice of a volume (*S), in the proportions of its voxels."""
    pixels = view.cut(volume).numpy()
    aspect = view.spacing[view.vertical] / view.spacing[view.horizontal]
    low, high = limits
    image = axes.imshow(pixels, origin="lower", cmap=cmap, vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
    if view.flipped:
        axes.set_xlim(pixels.shape[1] - 0.5, -0.5)
    return image


def _colour_map(colours: Sequence[str]) -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("morphzoo", colours)


def _outlines(panel: str) -> list[tuple[str, str]]:
    """Which label maps are outlined on a panel, in which colour."""
    return {
        "fixed": [("fixed", FIXED_COLOUR)],
        "moving": [("moving", MOVING_COLOUR)],
        "warped": [("fixed", FIXED_COLOUR), ("warped", MOVING_COLOUR)],
    }.get(panel, [])


def draw_outlines(axes: Axes, pixels: Tensor, colour: str) -> None:
    """Lines about each label of a slice."""
    for label in present_labels(pixels):
        region = (pixels == label).float()
        if region.min() < 1:
            axes.contour(region.numpy(), levels=[0.5], colors=colour, linewidths=0.7)


def finish_panel(axes: Axes, view: View, *, heading: str, letters: bool) -> None:
    """Take away the axes; add a heading, if there is one, and the letters of the sides."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor("black")
    for spine in axes.spines.values():
        spine.set_visible(False)
    if heading:
        axes.set_title(heading, color=LIGHT, size=9, pad=4)
    if letters:
        for x, align, letter in ((0.02, "left", view.letters[:1]), (0.98, "right", view.letters[1:])):
            axes.text(x, 0.5, letter, transform=axes.transAxes, color=FAINT, size=7, ha=align, va="center")


def add_colour_bar(figure: Figure, image: AxesImage, *, top: float) -> None:
    """The scale of an image at the right of a figure, `top` inches below its edge."""
    width, height = figure.get_size_inches()
    length = min(2.2, height - top - BOTTOM)
    box = (1 - 0.65 / width, (height - top - length) / height, 0.1 / width, length / height)
    bar = figure.colorbar(image, cax=figure.add_axes(box))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, colors=FAINT, length=2)


def caption_of(subject: Subject, spacing: Sequence[float]) -> str:
    """A line with the share of folds and the lengths of the displacement, by voxels of a spacing in mm."""
    folded = 100 * float((~(subject.determinant > 0)).double().mean())
    scale = torch.tensor(spacing).view(-1, *[1] * subject.determinant.ndim)
    length = (subject.ddf * scale).norm(dim=0)
    text = f"folded voxels (red): {folded:.3g}% of the grid"
    text += f"    displacement: mean {length.mean():.2f} mm, max {length.max():.2f} mm"
    return text + ("    outlines: fixed blue, moving orange" if subject.labels else "")
