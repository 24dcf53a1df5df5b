"""Draw the curves of overlap against regularity from tables of `peers`, one picture of a panel for each set of pairs.

    python -m benchmarks.peers_curves docs/smoothness_curves.png "3-D heads=heads.csv,more.csv" "2-D slices=slices.csv"

A curve is a peer of `peers_settings.CURVES` over its smoothing; a point is the mean over the pairs that every peer of
the panel has. SD of log J is that of the field within the labelled structures: a larger one is a rougher field.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers_settings import CURVES

Point = tuple[float, float]
MEASURES = ("sd_log_jacobian_in_labels", "dice_after")
OURS = ("default", "optimize", "best", "fast")


def main(words: Sequence[str] | None = None) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("panels", nargs="+", help="TITLE=TABLE,TABLE,...")
    options = parser.parse_args(words)
    order = list(dict.fromkeys(setting.rpartition(" (")[0] for setting in CURVES))
    figure, axes = pyplot.subplots(1, len(options.panels), figsize=(5.2 * len(options.panels), 4.2), squeeze=False)
    for axis, panel in zip(axes[0], options.panels, strict=True):
        title, _, tables = panel.partition("=")
        found = curves([Path(table) for table in tables.split(",")])
        for name, points in found.items():
            ours = name in OURS
            label = f"ours, {name}" if ours else name
            style, width, color = (
                ("o-", 2, f"{0.2 * OURS.index(name)}") if ours else ("s--", 1, f"C{order.index(name)}")
            )
            axis.plot(*zip(*points, strict=True), style, label=label, color=color, markersize=4, lw=width)
        axis.set(title=title, xlabel="SD of log J within the structures", ylabel="mean Dice")
        axis.set_xlim(right=0.75)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(options.picture, dpi=100)


def curves(tables: Sequence[Path]) -> dict[str, list[Point]]:
    """For each peer the points (SD of log J, Dice), sorted, means over the pairs that all settings have."""
    rows = [row for table in tables for row in csv.DictReader(table.read_text().splitlines()) if row["peer"] in CURVES]
    by_setting: dict[str, dict[str, Point]] = {}
    for row in rows:
        first, second = (float(row[name]) for name in MEASURES)
        by_setting.setdefault(row["peer"], {})[row["pair"]] = (first, second)
    shared = set.intersection(*(set(pairs) for pairs in by_setting.values()))
    if not shared:
        raise ValueError(f"no pair is there for every peer in {', '.join(map(str, tables))}")
    result: dict[str, list[Point]] = {}
    for setting, pairs in by_setting.items():
        x, y = (sum(pairs[pair][i] for pair in shared) / len(shared) for i in (0, 1))
        result.setdefault(setting.rpartition(" (")[0], []).append((x, y))
    return {name: sorted(points) for name, points in result.items()}


if __name__ == "__main__":
    main()
