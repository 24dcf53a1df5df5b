"""Registration without a network: every model of `morphzoo optimize` on the same pairs.

    python -m benchmarks.classical DATA classical.csv [--models svf,demons] [--sets slabs,rendered] [--pairs 6]

DATA is the folder of the test data. `slabs` are 2-D slices of heads of different people (1 mm, four tissues),
`rendered` T1-like 3-D images of label maps of different people (2 mm). Pairs are aligned, so nothing but the models
moves them. The table gets a row for each pair and model: Dice, folds, SD of log J, CPU seconds of the optimisation,
inverse error in voxels. Rows that are there stay. Prints means.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiments import markdown
from benchmarks.weights_sets import rendered, slabs
from custom_components.commands.bundles import DEFAULT_BUNDLE
from custom_components.commands.optimize import MODELS, training_free
from custom_components.commands.registrar import Registrar
from custom_components.files import write_table

SETS = {"slabs": (slabs, {"spacing": 1.0}), "rendered": (rendered, {})}
KEYS = ("dice_before", "dice_after", "folding_percent", "sd_log_jacobian", "inverse_error_mean", "cpu_seconds")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--models", default=",".join(MODELS), help="separated by commas")
    parser.add_argument("--sets", default=",".join(SETS), help="separated by commas")
    parser.add_argument("--pairs", type=int, default=6, help="of each set, the first ones")
    parser.add_argument(
        "--cache", type=Path, default=Path("classical_cache"), help="folder for what is made of the data"
    )
    parser.add_argument("--settings", type=json.loads, default={}, help="of the overlays, as JSON")
    options = parser.parse_args(words)
    rows: list[dict[str, Any]] = []
    if options.table.exists():
        with open(options.table, newline="") as file:
            rows = list(csv.DictReader(file))
    for name in options.sets.split(","):
        make, settings = SETS[name]
        part = make(options.data, options.cache)[0]
        for model in options.models.split(","):
            registrar = Registrar(
                DEFAULT_BUNDLE,
                overlay=training_free(model),
                affine="none",
                **settings,
                **part.settings,
                **options.settings,
            )
            for pair in part.pairs[: options.pairs]:
                if any((row["set"], row["model"], row["pair"]) == (name, model, pair["id"]) for row in rows):
                    continue
                rows.append({"set": name, "model": model, "pair": pair["id"], **measured(registrar, pair)})
                write_table(options.table, rows)
    print(summary(rows))


def measured(registrar: Registrar, pair: dict[str, Any]) -> dict[str, float]:
    """One registration, in this process."""
    begin = time.process_time()
    labels = {key: str(pair[key]) for key in ("label_moving", "label_fixed")}
    found = registrar(str(pair["moving"]), str(pair["fixed"]), None, **labels)
    cost = time.process_time() - begin
    metrics = dict(found.metrics)
    return {"cpu_seconds": cost} | {key: metrics[key] for key in (*KEYS[:-1], "seconds") if key in metrics}


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Means over the pairs, for each set and model."""
    groups = dict.fromkeys((row["set"], row["model"]) for row in rows)
    lines = []
    for name, model in groups:
        some = [row for row in rows if (row["set"], row["model"]) == (name, model)]
        means = [sum(float(row[key]) for row in some) / len(some) if key in some[0] else float("nan") for key in KEYS]
        lines.append([name, model, str(len(some)), *[f"{mean:.3f}" for mean in means]])
    return markdown(["set", "model", "pairs", *KEYS], lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
