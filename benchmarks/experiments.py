"""What the scripts of the bundles' experiments (docs/reproduce.py) share: train variants, compare them."""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
EPOCHS = 10


def script_parser(description: str, variants: Mapping[str, Any]) -> argparse.ArgumentParser:
    """Arguments of a script of experiments: slices, output, --only, --steps, --workers, --pairs."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("slices", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--only", default=",".join(variants), help="variants, separated by commas")
    parser.add_argument("--steps", type=int, default=4500, help="of training, batches of 8 pairs")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--pairs", type=int, default=120, help="validation pairs to measure, drawn at random")
    return parser


def chosen_variants(
    parser: argparse.ArgumentParser, args: argparse.Namespace, variants: Mapping[str, Any]
) -> list[str]:
    """The names given by --only; an unknown one ends the script with a line that lists the known ones."""
    names: list[str] = args.only.split(",")
    unknown = set(names) - set(variants)
    if unknown:
        parser.error(f"there is no variant {', '.join(sorted(unknown))}; there are {', '.join(variants)}")
    return names


def train(
    bundle: str,
    folder: Path,
    slices: Path,
    settings: Mapping[str, Any],
    *,
    steps: int,
    batch_size: int = 8,
    data_list: Path | None = None,
    launcher: Sequence[str] = ("-m", "monai.bundle", "run"),
    overlays: Sequence[Path] = (),
    form: str = "train_2d",
) -> None:
    """Train a bundle's network in a process of its own, one thread; what is there is not done again.

    FOLDER gets settings.json, curve.csv, log.txt and model.pt, the weights after the last step: they are not chosen by
    the people they are measured on.

    Args:
        launcher: what Python runs (torchrun, for several processes).
        overlays: further config files.
        form: the overlay that makes train.json one of these data, 2-D slices if nothing else is said.
    Raises:
        ValueError: if the folder holds a training with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"num_pairs": steps * batch_size // EPOCHS, "batch_size": batch_size, **settings}
    record, recorded = folder / "settings.json", {**settings, "data_list": str(data_list or "datalist.json")}
    if record.exists() and json.loads(record.read_text()) != recorded:
        raise ValueError(f"{folder} holds a training with other settings, {record.read_text()}: take another folder")
    record.write_text(json.dumps(recorded))
    if (folder / "model.pt").exists():
        return
    root = REPOSITORY / "bundles" / bundle
    # A file, for MONAI leaves out what is None on its command line.
    overlay = folder / "overlay.json"
    overlay.write_text(json.dumps(settings))
    configs = [*[str(root / "configs" / f"{c}.json") for c in ("train", form)], str(overlay), *map(str, overlays)]
    command = [sys.executable, *launcher, "--bundle_root", str(root), "--config_file", str(configs)]
    command += [
        "--dataset_dir",
        str(slices.absolute()),
        "--data_list",
        str(data_list or slices.absolute() / "datalist.json"),
    ]
    command += ["--output_dir", str(folder), "--ckpt_dir", str(folder), "--resume", "True"]
    command += ["--max_epochs", str(EPOCHS), "--val_interval", str(EPOCHS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    with open(folder / "log.txt", "a") as log:
        subprocess.run(command, env=environment, stdout=log, stderr=log, check=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV file of pairs: "moving" and "fixed" are names, all else numbers."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v if k in ("moving", "fixed") else float(v or "nan") for k, v in row.items()} for row in rows]


def interval(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], key: str) -> str:
    """Mean of the pairs' differences from the others, and its 95 % interval by drawing people with replacement."""
    difference = np.array([a[key] - b[key] for a, b in zip(rows, others, strict=True)])
    names, indices = np.unique([[row["moving"], row["fixed"]] for row in rows], return_inverse=True)
    moving, fixed = indices.reshape(-1, 2).T
    there = np.isfinite(difference)
    rng, means = np.random.default_rng(0), []
    for _ in range(2000):
        count = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        weight = (count[moving] * count[fixed])[there]
        if weight.sum():
            means.append(np.average(difference[there], weights=weight))
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{difference[there].mean():+.4f} ({low:+.4f} to {high:+.4f})"
