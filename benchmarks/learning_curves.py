"""Draw scores against hours of training, one line for each training.

    python -m benchmarks.learning_curves --output docs/learning_curves.png voxelmorph=FOLDER/voxelmorph/figures.csv ...
    python -m benchmarks.learning_curves --output docs/learning_curves.png      # of all curves that the bundles ship

A curve is a table with a column of seconds (`cpu_seconds`, or `cpu_seconds_of_stage`, or `seconds` of a GPU, which is
drawn dashed) and one of scores: mean Dice of the validation pairs. Seconds that fall begin a stage or a resumed
training: they go on from the last ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.campaign_state import read_rows, scores_of
from benchmarks.experiments import BUNDLES
from custom_components.results import replacing

SECONDS = ("cpu_seconds", "cpu_seconds_of_stage", "seconds")


@dataclass(frozen=True)
class Curve:
    """Scores over the hours of a training; `is_device` says that they are not hours of a CPU."""

    hours: Sequence[float]
    scores: Sequence[float]
    is_device: bool


def read_learning(path: Path) -> Curve | None:
    """The scores in a table over its seconds; None if it lacks either, or is of several models."""
    rows = read_rows(path)
    if len({row.get("model") for row in rows}) > 1:
        return None
    column = next((name for name in SECONDS if rows and name in rows[0]), None)
    if column is None:
        return None
    hours, scores, passed, last = list[float](), list[float](), 0.0, 0.0
    for row in rows:
        if row[column]:
            seconds = float(row[column])
            passed, last = passed + (last if seconds < last else 0.0), seconds
        if found := scores_of(row):
            hours.append((passed + last) / 3600)
            scores.append(next(iter(found.values())))
    return Curve(hours, scores, column == "seconds") if scores else None


def draw(curves: Mapping[str, Curve], path: Path) -> None:
    """Draw curves into one picture, PNG or SVG by the path's ending; the hours on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for number, (name, curve) in enumerate(curves.items()):
        style = "--" if curve.is_device else "-"
        axes.plot(curve.hours, curve.scores, style, marker=".", markersize=4, color=f"C{number % 10}", label=name)
    axes.set_xscale("log")
    axes.set_xlabel("hours of one CPU core (dashed: of a GPU)")
    axes.set_ylabel("mean Dice of the validation pairs")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)


def shipped() -> dict[str, Path]:
    """The curves that the bundles ship, by bundle and, if there are several, by what their names add."""
    files = sorted(BUNDLES.glob("*/docs/training_curve*.csv"))
    return {
        f"{path.parents[1].name}{path.stem.removeprefix('training_curve').replace('_', ' ')}": path for path in files
    }


def main(words: Sequence[str] | None = None) -> int:
    """Exit code 1, and one sentence, for what does not work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", nargs="*", metavar="NAME=FILE", help="default: those of the bundles")
    parser.add_argument("--output", type=Path, required=True, help="PNG or SVG")
    options = parser.parse_args(words)
    files = {name: Path(file) for name, _, file in (one.partition("=") for one in options.curves)} or shipped()
    missing = [str(path) for path in files.values() if not path.is_file()]
    found = {name: curve for name, path in files.items() if (curve := read_learning(path)) is not None}
    if missing or not found:
        print(f"error: {', '.join(missing) or 'no table has seconds and scores'}: nothing to draw", file=sys.stderr)
        return 1
    draw(found, options.output)
    print(f"{options.output}: {', '.join(found)}")
    if left_out := sorted(files.keys() - found.keys()):
        print(f"no curve of seconds and scores: {', '.join(left_out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
