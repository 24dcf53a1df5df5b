"""Capture curves of `learned_similarity` as a picture.

python -m benchmarks.learned_similarity_picture CSV [CSV ...] --output PNG
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

COLORS = {"volumes": "C3", "volumes, then mi": "C1", "patches": "C5", "features": "C6", "brain_features": "C8"}
COLORS |= {"mi": "C0", "nmi": "C9", "mind": "C2", "ngf": "C4", "lncc": "C7"}


def read(paths: Sequence[Path]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Captured shares by contrast, similarity and TRE at the start."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for path in paths:
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                curve = found.setdefault(row["contrast"], {}).setdefault(row["similarity"], [])
                curve.append((float(row["start_mm"]), 100 * float(row["captured"])))
    return found


def draw(curves: dict[str, dict[str, list[tuple[float, float]]]], output: Path) -> None:
    """A panel for each contrast, a line for each similarity."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(3.6 * len(curves), 3.4), sharey=True, squeeze=False)
    shown = {}
    for axis, (contrast, lines) in zip(axes[0], curves.items(), strict=True):
        for name, points in lines.items():
            if name in COLORS:
                style = (
                    "-" if name in ("volumes", "volumes, then mi", "patches", "features", "brain_features") else "--"
                )
                shown[name] = axis.plot(*zip(*sorted(points), strict=True), style, color=COLORS[name], marker=".")[0]
        axis.set_title(contrast, fontsize=10)
        axis.set_xlabel("TRE at the start, mm")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("ends below 3 mm, %")
    figure.legend(shown.values(), shown, loc="center right", fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1 - 1.5 / (3.6 * len(curves)), 1))
    figure.savefig(output, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    draw(read(options.tables), options.output)


if __name__ == "__main__":
    main()
