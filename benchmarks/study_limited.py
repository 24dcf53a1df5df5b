"""How many people a network needs: `voxelmorph` on slices of 2, 5, 10 and 19 people, three times each.

    python -m benchmarks.study_limited SLICES OUT [--people 2,5,10,19] [--seeds 3] [--steps 1200] [--spacing 2]

SLICES is a folder of slices with label maps and a data list of `training` and `validation_pairs` (docs/data.md). For
each number and seed other people of the training section are drawn; everything else is alike: steps, pairs in a step,
the 2-D form of train.json at the given spacing. The networks register validation pairs of other people alone. OUT keeps
what is done. Writes `results.csv`, a row for each training, and `tables.md`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import custom_components as mz
from benchmarks.experiments import at_once, markdown, measure_once, shuffled, train, write_and_print
from custom_components.data.lists import load_list, subject_of
from custom_components.files import write_table
from custom_components.vocabulary import Entry

EXTENT = 224.0  # mm, that a network sees along each axis
MEASURES = ("dice_after", "sd_log_jacobian", "folding_percent")


def people_of(scans: Sequence[Entry], number: int, seed: int) -> list[Entry]:
    """The scans of so many people, drawn at random."""
    names = sorted({subject_of(scan) for scan in scans})
    if number > len(names):
        raise ValueError(f"expected at most {len(names)} people, as there are, got {number}")
    chosen = set(np.random.default_rng(seed).permutation(names)[:number].tolist())
    return [scan for scan in scans if subject_of(scan) in chosen]


def evaluate(folder: Path, pairs: Sequence[Entry], spacing: float) -> dict[str, Any]:
    """Means over the pairs, by the network alone."""
    registrar = mz.Registrar(
        "voxelmorph", optimize=0, affine="none", weights=str(folder / "model.pt"), spacing=spacing, average=[]
    )
    keys = ("moving", "fixed", "label_moving", "label_fixed")
    rows = [registrar(**{key: pair[key] for key in keys}).metrics for pair in pairs]  # type: ignore[arg-type]
    before = float(np.mean([row["dice_before"] for row in rows]))
    return {"dice_before": before} | {key: float(np.mean([row[key] for row in rows])) for key in MEASURES}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("slices", type=Path, help="folder of 2-D slices with a data list")
    parser.add_argument("output", type=Path, help="folder of the results; finished parts are kept")
    parser.add_argument("--people", default="2,5,10,19")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200, help="training steps, batches of 8 pairs")
    parser.add_argument("--spacing", type=float, default=2.0, help="mm")
    parser.add_argument("--pairs", type=int, default=60, help="validation pairs to measure, drawn at random")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time, one thread each")
    args = parser.parse_args(words)
    datalist = args.slices / "datalist.json"
    scans = load_list(datalist, "training", args.slices)
    variants = {f"{n}_{seed}": (n, seed) for seed in range(args.seeds) for n in map(int, args.people.split(","))}
    size = 16 * round(EXTENT / args.spacing / 16)
    for name, (number, seed) in variants.items():
        folder = args.output / name
        folder.mkdir(parents=True, exist_ok=True)
        chosen = people_of(scans, number, seed)
        (folder / "datalist.json").write_text(json.dumps({"training": chosen, "validation": chosen}))
    at_once(
        args.workers,
        lambda name: train(
            "voxelmorph",
            args.output / name,
            args.slices,
            {"spacing": args.spacing, "size": [size, size], "seed": variants[name][1], "num_val_pairs": 8},
            steps=args.steps,
            data_list=args.output / name / "datalist.json",
        ),
        variants,
    )
    pairs = shuffled(load_list(datalist, "validation_pairs", args.slices), args.pairs)
    rows: list[dict[str, Any]] = []
    for name, (number, seed) in variants.items():
        folder = args.output / name
        found = measure_once(folder / "measures.json", partial(evaluate, folder, pairs, args.spacing))
        rows.append({"people": number, "seed": seed, **found})
    write_table(args.output / "results.csv", rows)
    write_and_print(args.output / "tables.md", table(rows))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each number of people: mean Dice, its range over the seeds, and roughness."""
    lines: list[list[Any]] = [["nothing moved", None, rows[0]["dice_before"], "", None, None]]
    for number in dict.fromkeys(row["people"] for row in rows):
        own = [row for row in rows if row["people"] == number]
        scores = [row["dice_after"] for row in own]
        rest = [float(np.mean([row[key] for row in own])) for key in MEASURES[1:]]
        lines.append([number, len(own), float(np.mean(scores)), f"{min(scores):.3f} to {max(scores):.3f}", *rest])
    return markdown(["people", "trainings", "Dice", "of the trainings", "SD log J", "folds, %"], lines)


if __name__ == "__main__":
    main()
