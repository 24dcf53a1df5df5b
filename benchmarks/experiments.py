"""What the experiments share: the arguments, the training of variants, measuring once, comparing, tables.

Run an experiment from the root of a clone: `python -m benchmarks.avsm --help`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser

from custom_components.files import write_metrics

REPOSITORY = Path(__file__).resolve().parents[1]
BUNDLES = REPOSITORY / "bundles"
EPOCHS = 10
PEOPLE = ("moving", "fixed")


def experiment_parser(description: str | None, variants: Mapping[str, Any]) -> argparse.ArgumentParser:
    """Arguments of an experiment: slices, output, --only, --steps, --workers, --pairs.

    Args:
        description: docstring of the module; its first line is shown.
        variants: what --only chooses from.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("slices", type=Path, help="folder of 2-D slices with a data list")
    parser.add_argument("output", type=Path, help="folder of the results; finished parts are kept")
    parser.add_argument("--only", default=",".join(variants), help="variants, separated by commas")
    parser.add_argument("--steps", type=int, default=4500, help="training steps, batches of 8 pairs")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--pairs", type=int, default=120, help="validation pairs to measure, drawn at random")
    return parser


def chosen_variants(
    parser: argparse.ArgumentParser, chosen: str, variants: Mapping[str, Any], separator: str = ","
) -> list[str]:
    """The names that --only gives; an unknown name ends the program with a line that lists the known ones."""
    names = [name.strip() for name in chosen.split(separator) if name.strip()]
    unknown = set(names) - set(variants)
    if unknown:
        parser.error(f"there is no variant {', '.join(sorted(unknown))}; there are {f'{separator} '.join(variants)}")
    return names


def at_once(workers: int, run: Callable[[str], Any], names: Iterable[str]) -> None:
    """Call `run` for each name, `workers` calls at a time; the first error is raised."""
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, names))


# Widths of the 2-D networks of `voxelmorph` and `voxelmorph_probabilistic` in experiments before those that ship.
NARROW = {
    "network_def#encoder_channels": [32, 64, 64, 64],
    "network_def#decoder_channels": [64, 64, 64, 64, 64, 32, 32],
}


def bundle_config(bundle: str, names: Sequence[str], **settings: Any) -> ConfigParser:
    """The settings of a bundle's config files `names` (without ".json"); later ones and `settings` override."""
    parser = ConfigParser()
    parser.read_config([str(path) for path in config_files(bundle, names)])
    parser.update({"bundle_root": str(BUNDLES / bundle), **settings})
    return parser


def config_files(bundle: str, names: Iterable[str]) -> list[Path]:
    """Paths of a bundle's config files; train_labelmaps.json needs the overlay that renders images before it."""
    files = []
    for name in names:
        files += [BUNDLES / "overlays" / "rendered.json"] * (name == "train_labelmaps")
        files.append(BUNDLES / bundle / "configs" / f"{name}.json")
    return files


def train(
    bundle: str,
    folder: Path,
    slices: Path,
    settings: Mapping[str, Any],
    *,
    steps: int,
    batch_size: int = 8,
    data_list: Path | None = None,
    form: str = "train_2d",
    overlays: Sequence[Path] = (),
    launcher: Sequence[str] = ("-m", "monai.bundle", "run"),
    stop: Callable[[], bool] | None = None,
) -> None:
    """Train a bundle's network in a process of its own with one thread, unless FOLDER holds its weights already.

    FOLDER gets settings.json, curve.csv, log.txt and model.pt, the weights after the last step: choosing the best ones
    would use the people they are measured on.

    Args:
        bundle: its name.
        folder: of this training.
        slices: the data folder.
        settings: values that replace those of train.json, by id.
        steps: number of training steps, in EPOCHS epochs.
        batch_size: pairs in a step.
        data_list: its file; default: datalist.json in the data folder.
        form: the overlay of train.json that says what the data are.
        overlays: further config files.
        launcher: what Python runs (torchrun for several processes).
        stop: called twice a second; the training is killed as soon as it returns True.
    Raises:
        ValueError: if the folder holds a training with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"num_pairs": steps * batch_size // EPOCHS, "batch_size": batch_size, **settings}
    record_settings(folder / "settings.json", {**settings, "data_list": str(data_list or "datalist.json")})
    if (folder / "model.pt").exists():
        return
    # A file, because MONAI ignores None on its command line.
    overlay = folder / "overlay.json"
    overlay.write_text(json.dumps(settings))
    configs = [*config_files(bundle, ("train", form)), overlay, *overlays]
    words = {"dataset_dir": slices.absolute(), "data_list": data_list or slices.absolute() / "datalist.json"}
    words |= {"output_dir": folder, "ckpt_dir": folder, "resume": True}
    words |= {"max_epochs": EPOCHS, "val_interval": EPOCHS}
    command = bundle_command(bundle, configs, words, launcher)
    options: dict[str, Any] = {"env": {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}}
    with open(folder / "log.txt", "a") as log:
        options |= {"stdout": log, "stderr": log}
        if stop is None:
            subprocess.run(command, **options, check=True)
        else:
            _run_until(stop, command, options)


def bundle_command(
    bundle: str,
    configs: Sequence[Path],
    words: Mapping[str, Any],
    launcher: Sequence[str] = ("-m", "monai.bundle", "run"),
) -> list[str]:
    """The command that runs a bundle's config files, the last one wins, with further settings by id."""
    words = {"bundle_root": BUNDLES / bundle, "config_file": [str(path) for path in configs], **words}
    return [sys.executable, *launcher, *(word for key, value in words.items() for word in (f"--{key}", str(value)))]


def record_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write a training's settings beside it.

    Raises:
        ValueError: if there are others already.
    """
    if path.exists() and json.loads(path.read_text()) != settings:
        text = f"{path.parent} holds a training with other settings, {path.read_text()}: choose another folder"
        raise ValueError(text)
    path.write_text(json.dumps(settings))


def _run_until(stop: Callable[[], bool], command: Sequence[str], options: Mapping[str, Any]) -> None:
    process = subprocess.Popen(command, **options)
    while process.poll() is None and not stop():
        time.sleep(0.5)
    process.kill()
    if process.wait() != -signal.SIGKILL:
        raise RuntimeError(f"the training ended with {process.returncode} before it could be stopped")


def measure_once(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers in a JSON file, which `make` gives if the file does not exist."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_metrics(path, make())
    return json.loads(path.read_text())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV file of pairs: "moving" and "fixed" are names, all other values numbers."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v if k in PEOPLE else float(v or "nan") for k, v in row.items()} for row in rows]


def interval(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], key: str) -> str:
    """Mean difference of the pairs from the others, with its 95 % interval by drawing people with replacement."""
    difference = np.array([a[key] - b[key] for a, b in zip(rows, others, strict=True)])
    names, indices = np.unique([[row[role] for role in PEOPLE] for row in rows], return_inverse=True)
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


def shuffled(items: Sequence[Any], number: int) -> list[Any]:
    """`number` of the items in a fixed random order.

    Lists of slices hold the levels of one brain in turn, so that every n-th pair would be of one level.
    """
    return [items[i] for i in np.random.default_rng(0).permutation(len(items))[:number]]


def markdown(heads: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown; floats get three digits, None an empty cell."""

    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(map(cell, line)) + " |\n" for line in lines)


def write_and_print(path: Path, text: str) -> None:
    path.write_text(text)
    print(text)
