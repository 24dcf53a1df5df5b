"""The gate for weights: do these beat the shipped ones, and do they add to the training-free optimiser?

    python -m benchmarks.weights --bundle voxelmorph --output runs/weights NEW.pt [OTHER.pt ...]
    python -m benchmarks.weights --bundle voxelmorph --sets heads --iterations 0 --no-free NEW.pt

Measures every checkpoint and the one it is compared with on the same pairs, as `morphzoo evaluate` does, by the network
alone and after some iterations of refinement; beside them the training-free optimiser, in full and in equal time. Every
pair is a file in the output folder and is measured once. Prints one table, and one line for each checkpoint.

Two checkpoints are compared by paired t intervals of the score (Dice; correlation where there are no labels) over pairs
of people, both directions of a pair averaged; people who occur in several pairs make them narrower than they should be.
A checkpoint beats another one if by the network alone it is better in a part (95 % over all parts, after Bonferroni)
and at no number of iterations worse in any (95 %, and by more than --loss), nor folds more (--folds percent).
Parts across contrasts count for bundles whose shipped weights are for any contrast. The interval does not know that
another seed of the same training gives other weights.

Exit code: 0 if all checkpoints beat the other one, 1 if not, 2 for errors.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser

from benchmarks.experiments import REPOSITORY, markdown
from benchmarks.weights_measures import Contestant, Measurements, Rows, affordable
from benchmarks.weights_sets import SETS, Part
from benchmarks.weights_verdict import paired_interval, verdict
from custom_components.commands.bundles import DEFAULT_BUNDLE, find_bundle, overlay_path, takes_scans
from custom_components.commands.workflow import check_settings
from custom_components.evaluation.summary import summarize
from custom_components.files import read_state, save_tensors, write_table
from custom_components.runs import sentence
from custom_components.vocabulary import Config
from custom_components.weights import digest, read_sidecar

FREE = "training-free"
DATA = os.environ.get("MORPHZOO_TEST_DATA", str(REPOSITORY.parent / "shared" / "data"))


COLUMNS = {"hd95_after_mm": "HD95 mm", "sd_log_jacobian": "SD log J", "folding_percent": "folds %"}
COLUMNS |= {"inverse_consistency_mm": "inverse mm", "seconds": "s", "cpu_seconds": "CPU s"}


def table(parts: Sequence[Part], found: Measurements, against: str) -> str:
    """Means over the pairs (medians of the seconds) in Markdown; the difference is that from `against`."""
    heads = ["pairs", "", "iterations", "n", "score before", "after", f"less {against}", *COLUMNS.values()]
    lines = []
    for part in parts:
        for (name, contestant, label), rows in found.rows.items():
            if name == part.name:
                means = {key: column["mean"] for key, column in summarize(rows).items()}
                means |= {k: float(np.median([row[k] for row in rows])) for k in ("seconds", "cpu_seconds")}
                base = found.rows.get((name, against, label))
                difference = str(paired_interval(rows, base, part.score)) if base and contestant != against else None
                before = (means.get(part.score.replace("after", word)) for word in ("before", "aligned"))
                score = [next((value for value in before if value is not None), None), means[part.score]]
                measures = [_rounded(means.get(key)) for key in COLUMNS]
                lines.append([name, contestant, label, len(rows), *score, difference, *measures])
    return markdown(heads, lines)


def _rounded(value: float | None) -> str | None:
    return None if value is None or not np.isfinite(value) else f"{value:.3g}" if value < 0.1 else f"{value:.3f}"


def main(command: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(command)
    torch.set_num_threads(1)
    try:
        return _run(args)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoints", nargs="*", type=Path, help="files of weights; none: measure --against alone")
    parser.add_argument("--bundle", default=DEFAULT_BUNDLE, help="that the weights are for")
    parser.add_argument("--against", default="shipped", help="shipped, untrained, or a file of weights")
    parser.add_argument("--overlay", action="append", default=[], help="further config files, for all checkpoints")
    parser.add_argument("--data", type=Path, default=Path(DATA), help="the folder of test data")
    parser.add_argument("--cache", type=Path, help="what is made of the data once; default: OUTPUT/cache")
    parser.add_argument("--output", type=Path, default=Path("runs/weights"), help="measures, a file for each pair")
    parser.add_argument("--sets", help=f"of {','.join(SETS)}, those of the weights' dimension; default: all")
    parser.add_argument("--iterations", default="0,5,10,default", help="of refinement, with commas; also auto")
    parser.add_argument("--free", action=argparse.BooleanOptionalAction, default=True, help="the optimiser, too")
    parser.add_argument("--pairs", type=int, help="measure the first so many pairs of each part")
    parser.add_argument("--loss", type=float, default=0.002, help="a score that falls by no more is no loss")
    parser.add_argument("--folds", type=float, default=0.01, help="percent by which folding may grow")
    return parser


def _run(args: argparse.Namespace) -> int:
    if takes_scans(find_bundle(args.bundle)):
        raise ValueError(f"{args.bundle} registers single scans to its template, and the gate measures pairs")
    dims = _dimension(args)
    files, _ = check_settings(find_bundle(args.bundle), args.overlay, {}, dims)
    config = ConfigParser()
    config.read_config(files)
    config["bundle_root"] = str(find_bundle(args.bundle))
    against = _against(args, config, dims)
    new = [_checkpoint(str(path), path, args.overlay) for path in args.checkpoints]
    parts = list(_parts(args, dims))
    iterations = _iterations(args.iterations, config)
    free = Contestant(FREE, FREE, {}, [*args.overlay, overlay_path("training_free")])
    runs = len(iterations) * (1 + len(new) + args.free) + args.free
    found = Measurements(args.output, args.bundle, runs * sum(len(part.pairs) for part in parts))
    for part in parts:
        for label, settings in iterations.items():
            for contestant in (against, *new):
                found.add(part, contestant, label, settings)
    for part in parts if args.free else ():
        full = ConfigParser.load_config_files([*files, overlay_path("training_free")])
        _add_free(part, free, found, against, list(iterations), full)
    return _report(args, parts, found, against, new, config)


def _dimension(args: argparse.Namespace) -> int:
    """Of the images that the weights are for: 2 or 3, by the kernels of the first file."""
    files = [*args.checkpoints, *([] if args.against in ("shipped", "untrained") else [args.against])]
    if files:
        return _dimension_of(files[0])
    dims = {SETS[name][0] for name in _names(args.sets)}
    return dims.pop() if len(dims) == 1 else 3


def _dimension_of(weights: str | Path) -> int:
    return max(value.ndim for value in read_state(weights).values() if isinstance(value, torch.Tensor)) - 2


def _names(sets: str | None) -> list[str]:
    names = list(SETS) if sets is None else sets.split(",")
    if unknown := set(names) - set(SETS):
        raise ValueError(f"there is no set {', '.join(sorted(unknown))}; there are {', '.join(SETS)}")
    return names


def _parts(args: argparse.Namespace, dims: int) -> Iterator[Part]:
    asked = _names(args.sets)
    names = [name for name in asked if SETS[name][0] == dims]
    if not names:
        raise ValueError(f"the weights are for {dims}-D images, and those of {', '.join(asked)} are not")
    for name in names:
        for part in SETS[name][1](args.data, args.cache or args.output / "cache"):
            yield replace(part, pairs=part.pairs[: args.pairs])


def _against(args: argparse.Namespace, config: ConfigParser, dims: int) -> Contestant:
    shipped = Path(str(config.get_parsed_content("weights")))
    if args.against == "shipped" and shipped.is_file() and _dimension_of(shipped) == dims:
        return _checkpoint("shipped", shipped, args.overlay)
    if args.against == "shipped":
        print(f"{args.bundle} ships no {dims}-D weights: compared with an untrained network", flush=True)
    if args.against in ("shipped", "untrained"):
        torch.manual_seed(0)
        path = args.output / args.bundle / f"untrained_{dims}d.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, config.get_parsed_content("network_def").state_dict())
        return _checkpoint("untrained", path, args.overlay)
    return _checkpoint(args.against, Path(args.against), args.overlay)


def _checkpoint(name: str, path: Path, overlays: Sequence[str]) -> Contestant:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file of weights")
    return Contestant(name, f"{path.stem}-{digest(path)[:12]}", {"weights": str(path)}, tuple(overlays))


def _iterations(words: str, config: ConfigParser) -> dict[str, dict[str, object]]:
    """Settings by label; a bundle that always optimises has its default alone."""
    if "optimize" not in config.config:
        return {"default": {}}
    given = {"default": config["optimize"], "auto": "auto"}
    values = [given[word] if word in given else int(word) for word in words.split(",")]
    return {str(value): {"optimize": value} for value in values}


def _add_free(
    part: Part, free: Contestant, found: Measurements, against: Contestant, labels: Sequence[str], config: Config
) -> None:
    """The training-free optimiser as its config says, and as long as the network with each number of iterations."""

    def seconds(rows: Rows) -> float:
        return float(np.median([row["cpu_seconds"] for row in rows]))

    levels, full, dims = config["levels"], config["iterations"], config["spatial_dims"]
    full_seconds = seconds(found.add(part, free, "-".join(map(str, full)), {}))
    for label in labels:
        time_of_network = seconds(found.rows[part.name, against.name, label])
        iterations = affordable(time_of_network, full_seconds, levels, full, dims)
        if any(iterations) and iterations != full:
            text = f"{'-'.join(map(str, iterations))}, the time of {label}"
            found.add(part, free, text, {"iterations": iterations})


def _report(
    args: argparse.Namespace,
    parts: Sequence[Part],
    found: Measurements,
    against: Contestant,
    new: Sequence[Contestant],
    config: ConfigParser,
) -> int:
    """Print the table and a line for each checkpoint, write rows.csv; the exit code."""
    rows = [
        {"part": part, "weights": name, "iterations": label, **row}
        for (part, name, label), all_rows in found.rows.items()
        for row in all_rows
    ]
    write_table(args.output / args.bundle / "rows.csv", rows)
    print("\n" + table(parts, found, against.name))
    across = read_sidecar(str(config.get_parsed_content("weights"))).get("contrasts") == ["any"]
    judged = [part for part in parts if across or not part.across_contrasts]
    verdicts = []
    for contestant in new:
        a, b = (
            {(part, label): r for (part, name, label), r in found.rows.items() if name == one.name}
            for one in (contestant, against)
        )
        verdicts.append(verdict(judged, a, b, loss=args.loss, folds=args.folds))
        word = "beats" if verdicts[-1].beats else "does not beat"
        print(f"{contestant.name} {word} {against.name}: {'; '.join(verdicts[-1].reasons)}")
    return int(not all(one.beats for one in verdicts))


if __name__ == "__main__":
    sys.exit(main())
