r"""All learned methods with 2-D networks, trained for equal CPU time and measured on equal pairs.

    python -m benchmarks.equal_training MAPS DATA OUT --table labels.csv --cache CACHE [--seconds 40] [--only NAME ...]

MAPS is a file of `device_maps`, DATA the folder of the test data. Each network starts from random weights and trains on
one thread for so many CPU seconds, the making of its pairs included, on T1-like slices of the training people's label
maps: those of `device_training` by its loss (similarity, Dice of structures, the method's penalty),
`latent_deformation` by its own, without labels. Then each registers the real slices of `weights_sets.slabs` alone,
without refinement; rows without a network (`optimize`) and before registration stand beside them. OUT keeps the
weights, so that a second call measures alone, and gets equal_training.csv, a row for each method and pair.

Methods that need a trainer of their own are trained by the campaign, for as many CPU minutes, on axial slices that
--slices writes; --also adds them to the table:

    python -m benchmarks.equal_training MAPS DATA OUT --table labels.csv --cache CACHE --slices SLICES
    python -m benchmarks.campaign RUNS benchmarks/equal_training.json --data slices=SLICES --data labelmaps=ALIGNED \
      --data runs=RUNS
    python -m benchmarks.equal_training MAPS DATA OUT --table labels.csv --cache CACHE --also dlir=RUNS/dlir/model.pt
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import device_training, latent_training
from benchmarks.classical import measured
from benchmarks.device_methods import METHODS, Registration
from benchmarks.device_step import Recipe, Training
from benchmarks.experiments import markdown
from benchmarks.latent_training import LatentRegistration, LatentTraining
from benchmarks.weights_sets import slabs
from custom_components.commands.bundles import overlay_path
from custom_components.commands.registrar import Registrar
from custom_components.files import write_table
from custom_components.space import write_image
from data_lists.build import write_list

OWN = "latent_deformation"  # trained by a loss of its own
NAMES = (*METHODS, OWN)
RECIPE = Recipe(pairs=2, learning_rate=1e-3, ema=0.97)
COLUMNS = ("dice_before", "dice_after", "folding_percent", "sd_log_jacobian", "cpu_seconds")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--table", type=Path, required=True, help="CSV file of the labels' T1-like intensities")
    parser.add_argument("--cache", type=Path, required=True, help="folder for what is made of the data")
    parser.add_argument("--seconds", type=float, default=40.0, help="of CPU time, for each network")
    parser.add_argument("--pairs", type=int, default=24, help="the first ones")
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--also", nargs="*", default=[], metavar="BUNDLE=WEIGHTS", help="weights trained elsewhere")
    parser.add_argument("--slices", type=Path, help="folder for axial slices of the maps; nothing else is done")
    options = parser.parse_args(words)
    if options.slices:
        write_slices(options.maps, options.table, options.slices)
        return
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        if not (options.output / f"{name}.pt").exists():
            train(name, options.maps, options.table, options.output, options.seconds)
    rows: list[dict[str, Any]] = []
    for row in measure(options):
        rows.append(row)
        write_table(options.output / "equal_training.csv", rows)
    print(summary(rows))


def train(name: str, maps: Path, table: Path, output: Path, seconds: float) -> None:
    """Write `<name>.pt` and its curve, after so many CPU seconds from random weights."""
    torch.manual_seed(0)
    device = torch.device("cpu")
    training: Training
    if name == OWN:
        pairs, held_out = latent_training.read_pairs(maps, table, 2, device)
        training = LatentTraining(LatentRegistration(2, "float32"), pairs, RECIPE)
    else:
        pairs, held_out = device_training.read_pairs(maps, table, 2, None, device)
        training = Training(Registration(name, spatial_dims=2), pairs, RECIPE)
    run: Callable[..., float] = device_training.run
    # One look, after the end: it is no training.
    run(training, held_out, seconds / 60, output, name, graph=False, pause=float("inf"))


def write_slices(maps: Path, table: Path, folder: Path) -> None:
    """Axial slices of the middle half of the maps, every fourth, with a data list and the table, as scans in a list."""
    stored = np.load(maps)
    items: dict[str, list[dict[str, Any]]] = {}
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    for person, (labels, section) in enumerate(zip(stored["ids"][stored["maps"]], stored["split"], strict=True)):
        affine = np.diag([1.0, 1.0, 1.0, 1.0])
        affine[:3, 3] = [(1 - n) / 2 for n in labels.shape]
        count = labels.shape[2]
        for level in range(count // 4, 3 * count // 4, 4):
            path = Path("labels") / f"person-{person}_{level}.nii.gz"
            affine[2, 3] = level - (count - 1) / 2
            write_image(folder / path, torch.as_tensor(labels[:, :, level : level + 1]), affine)
            item = {"label": str(path), "subject": f"person-{person}", "group": level}
            items.setdefault(str(section), []).append(item)
    write_list(folder / "datalist.json", items)
    shutil.copy(table, folder / "labels.csv")


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each method and pair of real slices, networks alone; then the optimiser."""
    (part,) = slabs(options.data, options.cache)
    settings = {"affine": "none", **part.settings}
    trained = {name: str(options.output / f"{name}.pt") for name in options.only}
    trained |= dict(word.split("=", 1) for word in options.also)
    registrars = {name: Registrar(name, weights=weights, optimize=0, **settings) for name, weights in trained.items()}
    registrars["optimize (no network)"] = Registrar("voxelmorph", overlay=overlay_path("training_free"), **settings)
    for name, registrar in registrars.items():
        for pair in part.pairs[: options.pairs]:
            yield {"method": name, "pair": pair["id"], **measured(registrar, pair)}


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Means over the pairs, the best Dice first."""
    lines: list[list[Any]] = []
    for name in dict.fromkeys(row["method"] for row in rows):
        some = [row for row in rows if row["method"] == name]
        lines.append([name, *[round(sum(float(row[key]) for row in some) / len(some), 4) for key in COLUMNS]])
    return markdown(["method", *COLUMNS], sorted(lines, key=lambda line: -line[2]))


if __name__ == "__main__":
    main()
