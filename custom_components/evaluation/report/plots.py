"""Plots of a cohort's measures as SVG to stand in a page. They need matplotlib."""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ParamSpec

import numpy as np

from ...vocabulary import Metrics
from .outliers import as_float

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

INK, FAINT = "#1c2126", "#7a828a"

_COLOURS = ("#2563c9", "#c2410c", "#15803d", "#9333ea", "#b45309", "#0e7490")  # this run, then the others

_STAGE_COLOURS = {"before": "#b9c0c7", "aligned": "#7a828a"}

_MOST_DRAWN = 1000  # dots that are vectors of their own


def _plain_texts(draw: Callable[P, Markup]) -> Callable[P, Markup]:
    """Names are shown as they are: dollars begin no formula."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **options: P.kwargs) -> Markup:
        from matplotlib import rc_context

        with rc_context({"text.parse_math": False}):
            return draw(*args, **options)

    return drawn


@_plain_texts
def box_plots(series: Mapping[str, Mapping[str, Sequence[float]]], ylabel: str) -> Markup:
    """Boxes of several series side by side in groups; whiskers reach 1.5 times the height of their box.

    Args:
        series: by its name, values by group. "before" and "aligned" are grey.
        ylabel: what the vertical axis shows.
    """
    groups = list(dict.fromkeys(group for found in series.values() for group in found))
    longest = max(map(len, groups))
    upright = len(groups) > 12 or longest > 4
    height = 3.2 + 0.065 * min(longest, 40) * upright
    figure = _figure(max(5.0, min(15.0, 1.2 + 0.19 * len(groups) * (len(series) + 1))), height)
    axes = figure.add_subplot()
    width = 0.8 / len(series)
    for k, (name, found) in enumerate(series.items()):
        colour = _STAGE_COLOURS.get(name) or _COLOURS[(k - sum(n in _STAGE_COLOURS for n in series)) % len(_COLOURS)]
        places = [i + (k - (len(series) - 1) / 2) * width for i, group in enumerate(groups) if group in found]
        values = [_finite(found[group]) for group in groups if group in found]
        _boxes(axes, values, places, 0.85 * width, colour)
        axes.plot([], [], color=colour, linewidth=6, alpha=0.75, label=name)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_xticks(range(len(groups)), groups, rotation=90 if upright else 0)
    axes.set_ylabel(ylabel)
    axes.grid(axis="y", color="#e3e7eb", linewidth=0.8)
    axes.legend(frameon=False, ncols=len(series), loc="lower left", bbox_to_anchor=(0, 1), handlelength=1)
    return _svg(figure, axes)


def _boxes(axes: Axes, values: list[list[float]], places: list[float], width: float, colour: str) -> None:
    axes.boxplot(
        values,
        positions=places,
        widths=width,
        manage_ticks=False,
        patch_artist=True,
        boxprops={"facecolor": colour, "edgecolor": colour, "alpha": 0.75},
        whiskerprops={"color": colour, "linewidth": 0.8},
        capprops={"color": colour, "linewidth": 0.8},
        medianprops={"color": "white", "linewidth": 1.2},
        flierprops={"marker": ".", "markersize": 3, "markerfacecolor": colour, "markeredgecolor": "none"},
    )


@_plain_texts
def dot_plots(runs: Mapping[str, Sequence[Metrics]], measures: Sequence[str], anchors: Sequence[str]) -> Markup:
    """A plot for each measure with a dot for each pair and a line at the median; a row for each run.

    Args:
        runs: rows of measures by the run's name. The dots of the first one lead to `anchors`.
        anchors: addresses, one for each row of the first run.
    """
    figure = _figure(3.1 * len(measures), 0.75 + 0.55 * len(runs))
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        for k, rows in enumerate(runs.values()):
            found = {i: as_float(row.get(measure)) for i, row in enumerate(rows)}
            numbers = {i: value for i, value in found.items() if math.isfinite(value)}
            _dots(axes, k, list(numbers.values()), [anchors[i] for i in numbers] if k == 0 else None)
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.set_yticks(range(len(runs)), list(runs) if axes is panels[0] and len(runs) > 1 else [""] * len(runs))
        axes.tick_params(left=False)
        axes.spines["left"].set_visible(False)
        axes.set_title(measure, size=9, color=INK, loc="left")
        axes.margins(x=0.08)
        left, right = axes.get_xlim()
        if min(axes.dataLim.intervalx) >= 0 > left:
            axes.set_xlim(left=-0.03 * right)
    return _svg(figure, *panels)


def _dots(axes: Axes, row: int, values: Sequence[float], addresses: Sequence[str] | None) -> None:
    if not values:
        return
    # A fixed scatter: dots of equal value lie apart, and each page looks the same.
    heights = row + 0.5 * (np.modf(np.arange(len(values)) * 0.618034)[0] - 0.5)
    dots = axes.scatter(values, heights, s=16, color=_COLOURS[row % len(_COLOURS)], alpha=0.65, linewidths=0)
    dots.set_rasterized(len(values) > _MOST_DRAWN)
    if addresses is not None and len(values) <= _MOST_DRAWN:
        dots.set_urls(addresses)
    axes.vlines(np.median(values), row - 0.36, row + 0.36, color=INK, linewidth=1.2)


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    FigureCanvasSVG(figure)
    return figure


def _svg(figure: Figure, *panels: Axes) -> Markup:
    """The figure as an element of a page."""
    from markupsafe import Markup
    from matplotlib import rc_context

    for axes in panels:
        axes.set_facecolor("none")
        axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#c8ced4")
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "morphzoo", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    # What an element of a page does not need: namespaces and what only says which program wrote it.
    text = re.sub(r' xmlns(:\w+)?="[^"]*"|<metadata>.*?</metadata>', "", buffer.getvalue(), flags=re.DOTALL)
    text = text[text.index("<svg") :]
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', text)[1])  # type: ignore[index]
    size = f'<svg style="max-width:{1.3 * width:.0f}px" viewBox'
    return Markup(re.sub("<svg [^>]*?viewBox", size, text, count=1))
