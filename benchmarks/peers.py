"""Register labelled pairs with ANTs and greedy, from the same affine, and measure them as ours are measured.

    python -m benchmarks.peers LIST.json peers.csv --others PYTHON [--only "SyN,greedy 2"]

LIST.json is a data list whose section has pairs with `label_moving`, `label_fixed` and `affine`, an ITK file. PYTHON is
that of an environment with antspyx or picsl_greedy. Every peer runs on one thread, at the images' own resolution, in a
process of its own; peers that PYTHON cannot import are left out with a line. The table gets a row for each pair and
peer; rows that are there stay. Prints means. Our own rows: `morphzoo evaluate LIST.json --bundle NAME`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import peers_others
from benchmarks.experiments import chosen_variants, markdown
from custom_components.data.lists import load_list
from custom_components.data.names import item_name
from custom_components.evaluation.metrics import pair_metrics
from custom_components.files import write_table
from custom_components.space import load_image, load_labels, read_displacement_field
from custom_components.vocabulary import Entry

PROGRAM = Path(peers_others.__file__)
MEASURES = {"dice_before": "affine", "dice_after": "Dice", "hd95_after_mm": "HD95 mm"}
MEASURES |= {"folding_percent": "folds %", "sd_log_jacobian": "SD log J", "cpu_seconds": "CPU s", "seconds": "s"}
ONE_THREAD = {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1", "OMP_NUM_THREADS": "1"}

Row = dict[str, Any]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data_list", type=Path)
    parser.add_argument("table", type=Path, help="CSV file of the rows; finished ones are kept")
    parser.add_argument("--others", default=sys.executable, help="Python of the environment with the peers")
    parser.add_argument("--section", default="validation_pairs")
    parser.add_argument("--only", default=",".join(peers_others.PEERS), help="peers, separated by commas")
    options = parser.parse_args(words)
    chosen = chosen_variants(parser, options.only, dict.fromkeys(peers_others.PEERS))
    pairs = load_list(options.data_list, options.section)
    rows: list[Row] = []
    if options.table.exists():
        with open(options.table, newline="") as file:
            rows = list(csv.DictReader(file))
    for peer in chosen:
        for pair in pairs:
            if any(row["peer"] == peer and row["pair"] == item_name(pair) for row in rows):
                continue
            row = register(options.others, peer, pair)
            if row is None:
                break
            rows.append(row)
            write_table(options.table, rows)
            print(row["pair"], peer, {key: round(row[key], 4) for key in MEASURES}, flush=True)
    print(summary(rows))


def register(python: str, peer: str, pair: Entry) -> Row | None:
    """The row of a pair; None, and a line, if the environment lacks the peer.

    Raises:
        RuntimeError: if the peer fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = {key: str(pair[key]) for key in ("moving", "fixed", "label_moving", "affine")}
        done = subprocess.run(
            [python, str(PROGRAM)],
            input=json.dumps({**job, "peer": peer, "folder": folder}),
            env={**os.environ, **ONE_THREAD},
            capture_output=True,
            text=True,
        )
        if "ModuleNotFoundError" in done.stderr:
            print(f"{peer} is left out: {done.stderr.strip().splitlines()[-1]}", flush=True)
            return None
        if done.returncode:
            raise RuntimeError(f"{peer} failed: {done.stderr[-500:]}")
        cost = json.loads(done.stdout.strip().splitlines()[-1])
        return {"pair": item_name(pair), "peer": peer, **measured(Path(folder), pair), **cost}


def measured(folder: Path, pair: Entry) -> dict[str, float]:
    """What a peer wrote against the fixed labels, on the fixed image's grid; the field within the head."""
    batch = {"fixed": load_image(pair["fixed"]).data.float(), "label_fixed": load_labels(pair["label_fixed"]).data}
    batch["label_moving"] = load_labels(folder / "before.nii.gz").data
    field = read_displacement_field(folder / "field.nii.gz")
    pred = {"ddf": field.ddf.float(), "label_warped": load_labels(folder / "labels.nii.gz").data}
    alone = [{key: value[None] for key, value in part.items()} for part in (batch, pred)]
    return pair_metrics(*alone, spacing_mm=field.grid.spacing.tolist(), surfaces=True)


def summary(rows: Sequence[Row]) -> str:
    """Means over the pairs of each peer, in Markdown."""
    lines = []
    for peer in dict.fromkeys(row["peer"] for row in rows):
        mine = [row for row in rows if row["peer"] == peer]
        lines.append([peer, len(mine), *(sum(float(row[key]) for row in mine) / len(mine) for key in MEASURES)])
    return markdown(["peer", "pairs", *MEASURES.values()], lines)


if __name__ == "__main__":
    main()
