"""The pictures of docs/concepts.md, drawn with the functions that they are about.

python -m benchmarks.concept_pictures docs
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from custom_components.data.phantoms import random_velocity
from custom_components.fields import compose, integrate_velocity, warp

SIZE = (48, 48)
LINES = 4  # voxels between the lines of a grid
BLUE, RED, GREY = "#0b6e99", "#c1440e", "#9a9a9a"
START = (36.0, 27.0)  # the point that the pictures follow


def blob() -> Tensor:
    """An image (1, 1, *SIZE): a soft ring with a dot in it."""
    x, y = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in SIZE], indexing="ij")
    radius = ((x - 24) ** 2 / 1.3 + (y - 22) ** 2).sqrt()
    return (torch.exp(-((radius - 13) ** 2) / 8) + torch.exp(-((x - 24) ** 2 + (y - 22) ** 2) / 10))[None, None]


def velocity(seed: int, amplitude: float) -> Tensor:
    """A smooth velocity (1, 2, *SIZE)."""
    return random_velocity(SIZE, amplitude=amplitude, spacings=(16.0,), generator=torch.Generator().manual_seed(seed))


def at(ddf: Tensor, point: Sequence[float]) -> np.ndarray:
    """Where phi = id + ddf takes a point (2,)."""
    x, y = (round(value) for value in point)
    return np.asarray(point) + ddf[0, :, x, y].numpy()


def grid(axes: Axes, ddf: Tensor | None, colour: str) -> None:
    """Lines of the voxel grid, as phi moves them."""
    places = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in SIZE], indexing="ij"))
    places = places if ddf is None else places + ddf[0].numpy()
    for k in range(0, SIZE[0], LINES):
        axes.plot(places[0, k], places[1, k], color=colour, lw=0.5)
        axes.plot(places[0, :, k], places[1, :, k], color=colour, lw=0.5)


def panel(axes: Axes, image: Tensor | None, title: str) -> None:
    """A panel whose first axis goes right, the second up."""
    if image is not None:
        axes.imshow(image[0, 0].T.numpy(), origin="lower", cmap="Greys", vmin=0, vmax=1.6)
    axes.set(title=title, xlim=(-2, SIZE[0] + 1), ylim=(-2, SIZE[1] + 1), aspect="equal", xticks=[], yticks=[])
    axes.title.set_fontsize(9)


def arrow(axes: Axes, start: Sequence[float], end: Sequence[float], text: str = "") -> None:
    axes.annotate("", tuple(end), tuple(start), arrowprops={"arrowstyle": "->", "color": RED, "lw": 1.6})
    if text:
        axes.text(end[0] + 1, end[1] + 1, text, color=RED, fontsize=9)


def pull_back() -> Figure:
    """The fixed grid, where phi takes it in the moving image, and the warped image."""
    figure = Figure(figsize=(8, 2.9))
    fixed, moving, warped = figure.subplots(1, 3)
    ddf, image = integrate_velocity(velocity(3, 9.0)), blob()
    panel(fixed, None, "the fixed image's grid: a voxel x")
    grid(fixed, None, GREY)
    panel(moving, image, "the moving image: x + ddf(x)")
    grid(moving, ddf, GREY)
    panel(warped, warp(image, ddf), "warped(x) = moving(x + ddf(x))")
    fixed.plot(*START, "o", color=BLUE)
    warped.plot(*START, "o", color=BLUE)
    moving.plot(*START, "o", color=BLUE)
    arrow(moving, START, at(ddf, START))
    return figure


def composition() -> Figure:
    """A point that goes through two maps, and through their composition at once."""
    figure = Figure(figsize=(8, 2.9))
    first, second, both = figure.subplots(1, 3)
    inner, outer = (integrate_velocity(velocity(seed, 9.0)) for seed in (3, 20))
    middle = at(inner, START)
    end = START + compose(outer, inner)[0, :, int(START[0]), int(START[1])].numpy()
    panel(first, None, "inner: applied first")
    grid(first, inner, GREY)
    arrow(first, START, middle)
    panel(second, None, "outer: from where inner ended")
    grid(second, outer, GREY)
    arrow(second, middle, end)
    panel(both, None, "compose(outer, inner)")
    grid(both, compose(outer, inner), GREY)
    arrow(both, START, end)
    first.plot(*START, "o", color=BLUE)
    second.plot(*middle, "o", color=BLUE)
    both.plot(*START, "o", color=BLUE)
    return figure


def flow() -> Figure:
    """A stationary velocity, the way of a point along it, and the map and its inverse."""
    figure = Figure(figsize=(8, 2.9))
    field, there, back = figure.subplots(1, 3)
    svf = velocity(3, 9.0)
    x, y = np.meshgrid(*[np.arange(2, n, 5) for n in SIZE], indexing="ij")
    panel(field, None, "svf: a velocity that does not change")
    field.quiver(x, y, *svf[0, :, x, y].numpy(), color=GREY, angles="xy", scale_units="xy", scale=2)
    way = np.array([at(integrate_velocity(svf * t), START) for t in np.linspace(0, 1, 11)])
    field.plot(*way.T, "-", color=RED)
    field.plot(*START, "o", color=BLUE)
    for axes, sign, title in ((there, 1, "exp(svf): all ways from 0 to 1"), (back, -1, "exp(-svf): the inverse")):
        panel(axes, None, title)
        grid(axes, integrate_velocity(sign * svf), GREY)
    arrow(there, START, way[-1])
    there.plot(*START, "o", color=BLUE)
    arrow(back, way[-1], START)
    return figure


def main(command: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(command).folder
    for draw in (pull_back, composition, flow):
        figure = draw()
        figure.tight_layout()
        with matplotlib.rc_context({"svg.hashsalt": "concepts"}):
            figure.savefig(folder / f"concepts_{draw.__name__}.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
