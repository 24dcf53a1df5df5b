"""Register labelled pairs with ANTs, greedy, FireANTs and ours, from the same affine, and measure them alike.

    python -m benchmarks.peers LIST.json peers.csv --install FOLDER [--only "SyN,greedy 2,default (1)"]

LIST.json is a data list whose section has pairs with `label_moving`, `label_fixed` and, unless they are aligned,
`affine`, an ITK file; they may be 2-D. FOLDER gets environments of their own for the peers: one for antspyx and
picsl_greedy, one for fireants, which wants another SimpleITK. Every peer runs on one thread, at the images' own
resolution, in a process of its own. `peers_settings` lists them, and the points of the curves. The table gets a row for
each pair and peer; rows that are there stay. Measures of the field are those of the whole deformable part at the fixed
image's voxels, in its foreground and where it has labels; an affine part would change neither folds nor SD of log J.
Stages of measures are those of `morphzoo evaluate`: before, as the headers lie; aligned, by the affine alone; after.
Prints means. `peers_curves` draws.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks import peers_others
from benchmarks.experiments import chosen_variants, markdown
from benchmarks.peers_ours import with_morphzoo
from benchmarks.peers_settings import CURVES, PEERS, Peer
from custom_components.data.lists import load_list
from custom_components.data.names import item_name
from custom_components.evaluation.metrics import field_metrics, foreground_mask, image_metrics
from custom_components.evaluation.overlap import hausdorff95, label_overlap, present_labels
from custom_components.evaluation.result import MEASURED
from custom_components.files import write_table
from custom_components.space import (
    load_grid,
    load_image,
    load_labels,
    read_displacement_field,
    resample,
    write_affine_transform,
)
from custom_components.vocabulary import Entry

PROGRAM = Path(peers_others.__file__)
MEASURES = {"dice_before": "before", "dice_aligned": "aligned", "dice_after": "Dice", "hd95_after_mm": "HD95 mm"}
MEASURES |= {"folding_percent": "folds %", "sd_log_jacobian": "SD log J", "cpu_seconds": "CPU s", "seconds": "s"}
PACKAGES = dict.fromkeys(("ants", "greedy"), ("antspyx", "picsl_greedy", "SimpleITK")) | {"fireants": ("fireants",)}
ONE_THREAD = {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1", "OMP_NUM_THREADS": "1"}

Row = dict[str, Any]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data_list", type=Path)
    parser.add_argument("table", type=Path, help="CSV file of the rows; finished ones are kept")
    parser.add_argument("--install", type=Path, default=Path("peers"), help="folder of the peers' environments")
    parser.add_argument("--section", default="validation_pairs")
    parser.add_argument("--only", default=",".join(PEERS), help="peers, separated by commas")
    options = parser.parse_args(words)
    known = PEERS | CURVES
    chosen = chosen_variants(parser, options.only, known)
    pairs = load_list(options.data_list, options.section)
    rows: list[Row] = []
    if options.table.exists():
        with open(options.table, newline="") as file:
            rows = list(csv.DictReader(file))
        if any("dice_aligned" not in row for row in rows):
            parser.error(f"{options.table}: an earlier version measured this; its dice_before is dice_aligned now")
    for peer in chosen:
        for pair in pairs:
            if any(row["peer"] == peer and row["pair"] == item_name(pair) for row in rows):
                continue
            rows.append(row := register(options.install, peer, known[peer], pair))
            write_table(options.table, rows)
            print(row["pair"], peer, {key: round(row[key], 4) for key in MEASURES}, flush=True)
    print(summary(rows))


def register(environments: Path, name: str, peer: Peer, pair: Entry) -> Row:
    """The row of a pair. Raises RuntimeError: if the peer fails or cannot be installed."""
    with tempfile.TemporaryDirectory() as folder:
        job = {key: str(pair[key]) for key in ("moving", "fixed", "label_moving")}
        d = len(load_grid(pair["fixed"]).grid.size)
        affine = str(pair.get("affine") or Path(folder) / "identity.tfm")
        if "affine" not in pair:
            write_affine_transform(affine, np.eye(d + 1))
        job |= {"affine": affine, "dimension": d, "folder": folder, **asdict(peer)}
        cost = with_morphzoo(job) if peer.tool == "morphzoo" else elsewhere(environments, job)
        return {"pair": item_name(pair), "peer": name, **measured(Path(folder), pair), **cost}


def elsewhere(environments: Path, job: dict[str, Any]) -> dict[str, Any]:
    """What a registration in an environment of its own cost; it writes into the job's folder."""
    done = subprocess.run(
        [environment(environments, PACKAGES[job["tool"]]), str(PROGRAM)],
        input=json.dumps(job),
        env={**os.environ, **ONE_THREAD},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{job['tool']} failed: {done.stderr[-500:]}")
    cost: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return cost


def environment(folder: Path, packages: Sequence[str]) -> str:
    """The Python of an environment with some packages, which is made at the first time."""
    home = folder / packages[0]
    if not (home / "installed").exists():
        print(f"installing {', '.join(packages)} into {home} ...", flush=True)
        venv.create(home, with_pip=True, clear=True)
        installed = subprocess.run(
            [home / "bin" / "pip", "install", "--quiet", *packages], capture_output=True, text=True
        )
        if installed.returncode:
            raise RuntimeError(f"pip cannot install {', '.join(packages)}: {installed.stderr[-500:]}")
        (home / "installed").touch()
    return str(home / "bin" / "python")


def measured(folder: Path, pair: Entry) -> dict[str, float]:
    """What a peer wrote, on the fixed image's grid: labels against labels; the field in the head and in the labels."""
    batch = {"fixed": load_image(pair["fixed"]).data.float(), "label_fixed": load_labels(pair["label_fixed"]).data}
    batch["label_moving"] = load_labels(folder / "aligned.nii.gz").data
    field = read_displacement_field(folder / "field.nii.gz")
    pred = {"ddf": field.ddf.float(), "label_warped": load_labels(folder / "labels.nii.gz").data}
    alone = [{key: value[None] for key, value in part.items()} for part in (batch, pred)]
    spacing, ddf = field.grid.spacing.tolist(), alone[1]["ddf"]
    labels = present_labels(alone[0]["label_moving"], alone[0]["label_fixed"])
    found = before_all(pair, alone[0]["label_fixed"], labels, spacing)
    found |= image_metrics(*alone, spacing_mm=spacing, labels=labels, surfaces=True, stages=MEASURED[1:])
    found |= field_metrics(ddf, foreground_mask(alone[0]), spacing_mm=spacing)
    within = field_metrics(ddf, alone[0]["label_fixed"] > 0, spacing_mm=spacing)
    return found | {f"{key}_in_labels": within[key] for key in ("folding_percent", "sd_log_jacobian")}


def before_all(pair: Entry, fixed: Tensor, labels: Sequence[int], spacing: Sequence[float]) -> dict[str, float]:
    """Overlap and distance of the labels as the headers lie."""
    moving, grid = load_labels(pair["label_moving"]), load_grid(pair["fixed"]).grid
    there = resample(moving.data, moving.affine, grid, mode="nearest")[None]
    dice = label_overlap(there, fixed, labels)[0]
    found = {"dice_before": float(dice.nanmean())}
    found["hd95_before_mm"] = float(hausdorff95(there, fixed, labels, spacing_mm=spacing).nanmean())
    return found | {f"dice_before_{label}": float(one) for label, one in zip(labels, dice, strict=True)}


def summary(rows: Sequence[Row]) -> str:
    """Means over the pairs of each peer, in Markdown."""
    lines = []
    for peer in dict.fromkeys(row["peer"] for row in rows):
        mine = [row for row in rows if row["peer"] == peer]
        lines.append([peer, len(mine), *(sum(float(row[key]) for row in mine) / len(mine) for key in MEASURES)])
    return markdown(["peer", "pairs", *MEASURES.values()], lines)


if __name__ == "__main__":
    main()
