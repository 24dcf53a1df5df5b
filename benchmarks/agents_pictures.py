"""Pictures of `benchmarks.agents`: from how far each method comes back, and an agent's walk.

python -m benchmarks.agents_pictures OUTPUT.csv [OUTPUT.csv ...] --picture CURVES.png
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.animation import FuncAnimation, PillowWriter

from benchmarks.agents import CAPTURED_MM, agent, error_mm, from_headers, pairs
from custom_components.space.resampling import resample

LINES = {
    "agent": ("C3", "-"),
    "agent, then ITK alone": ("C1", "-"),
    "affine network": ("C5", "-"),
    "affine network, then ITK alone": ("C6", "-"),
    "centres of mass, then ITK alone": ("C0", "--"),
    "ITK alone from the headers": ("C9", "--"),
    "ITK with its search": ("C2", ":"),
    "torch with its search": ("C7", ":"),
}


def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The rows of tables of `benchmarks.agents`."""
    rows = []
    for path in paths:
        with open(path, newline="") as file:
            rows += [{**row, **{k: float(row[k]) for k in ("start", "error")}} for row in csv.DictReader(file)]
    return rows


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The share of starts that are captured, and the median error at the end, by the size of the start."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
    for name, (color, style) in LINES.items():
        mine = [row for row in rows if row["method"] == name]
        sizes = sorted({row["start"] for row in mine})
        if not sizes:
            continue
        ends = [np.array([row["error"] for row in mine if row["start"] == size]) for size in sizes]
        look = {"color": color, "linestyle": style, "marker": ".", "label": name}
        left.plot(sizes, [100 * (one < CAPTURED_MM).mean() for one in ends], **look)
        right.plot(sizes, [np.median(one) for one in ends], **look)
    left.set_ylabel(f"ends below {CAPTURED_MM:g} mm, %")
    right.set_ylabel("median error at the end, mm")
    right.set_yscale("log")
    for axis in (left, right):
        axis.set_xlabel("start, degrees and mm")
        axis.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="center right", fontsize=7, frameon=False)
    figure.tight_layout(rect=(0, 0, 0.76, 1))
    figure.savefig(path, dpi=70)
    plt.close(figure)


def animation(weights: Path | None, data_list: Path, path: Path) -> None:
    """The walk of a pair of 30 degrees and 30 mm, T1 to T2: the warped moving image beside the fixed one."""
    network, walk = agent(weights)
    case = next(one for one in pairs(data_list, [30.0], 1) if one.facts["contrast"] == "t1-t2")
    worlds, grid = from_headers(network, walk, case.fixed, case.moving)
    image = torch.cat([resample(one.data, one.affine, grid, antialias=True) for one in (case.moving, case.fixed)])[None]
    way = walk(image, network)[0]
    figure, axes = plt.subplots(1, 2, figsize=(5, 3))
    middle = grid.size[2] // 2

    def frame(number: int) -> None:
        shown = walk.moves.seen(image, way[number][None])[0]
        for axis, one, title in zip(axes, shown, ("moving", "fixed"), strict=True):
            axis.clear()
            axis.imshow(one[:, :, middle].T, cmap="gray", origin="lower", vmin=0, vmax=1)
            axis.set_title(title, fontsize=9)
            axis.axis("off")
        figure.suptitle(f"action {number} of {len(way) - 1}: {error_mm(worlds[number], case.truth):.1f} mm", fontsize=9)

    FuncAnimation(figure, frame, frames=len(way)).save(path, PillowWriter(fps=5), dpi=70)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--picture", type=Path, required=True)
    options = parser.parse_args()
    draw(read(options.tables), options.picture)


if __name__ == "__main__":
    main()
