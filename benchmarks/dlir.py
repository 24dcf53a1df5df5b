"""DLIR stage by stage, beside VoxelMorph.

    python -m benchmarks.dlir LABELMAPS dlir.csv [--weights runs/model.pt]       # heads where they lie
    python -m benchmarks.dlir LABELMAPS dlir.csv --aligned DATA --cache CACHE    # aligned heads, beside VoxelMorph

LABELMAPS is a folder with a data list whose section `validation` holds label maps, and with labels.csv. The maps are
brought to the bundle's grid about their centres of mass and rendered as T1-like images, whose ordered pairs are
registered by the affine stage, and by one spline after another. DATA is the folder of the test data: the aligned
rendered pairs of `benchmarks.weights_sets`, registered by `morphzoo register --affine none --optimize 0` with DLIR and
with VoxelMorph's network alone. Both print and write means: Dice of 29 structures, folds, SD of log det J, seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.classical import measured
from benchmarks.experiments import BUNDLES, bundle_config, markdown
from benchmarks.rendered_people import STRUCTURES, load_people, rendered_pairs
from benchmarks.weights_sets import rendered
from custom_components.commands.registrar import Registrar
from custom_components.evaluation.metrics import folding_fraction, sd_log_jacobian
from custom_components.evaluation.overlap import label_overlap
from custom_components.fields import warp
from custom_components.files import write_table
from custom_components.methods.dlir.inference import StagesInferer

KEYS = ("dice", "folding_percent", "sd_log_jacobian")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--weights", type=Path, default=BUNDLES / "dlir" / "models" / "model.pt")
    parser.add_argument("--pairs", type=int, default=12, help="the first ones")
    parser.add_argument("--aligned", type=Path, help="folder of the test data")
    parser.add_argument("--cache", type=Path, default=Path("dlir_cache"), help="folder for what is made of the data")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    make = along_the_bundles(options) if options.aligned else along_the_stages(options)
    rows: list[dict[str, Any]] = []
    for row in make:
        rows.append(row)
        write_table(options.table, rows)
    methods = dict.fromkeys(row["method"] for row in rows)
    keys = [key for key in rows[-1] if key not in ("method", "pair")]
    lines = []
    for method in methods:
        some = [row for row in rows if row["method"] == method]
        lines.append([method, len(some), *[sum(row[key] for row in some) / len(some) for key in keys]])
    print(markdown(["method", "pairs", *keys], lines))


def along_the_stages(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each pair of heads and number of stages."""
    config = bundle_config("dlir", ["inference"])
    spacing, train = config.get_parsed_content("spacing"), bundle_config("dlir", ["train"])
    size = train.get_parsed_content("size")
    people = load_people(options.label_maps / "datalist.json", spacing=spacing, size=size, center="mass")
    network: nn.Module = config.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(options.weights, weights_only=True))
    inferer: StagesInferer = config.get_parsed_content("inferer")
    pairs = rendered_pairs(people, options.label_maps / "labels.csv", "t1")
    for number, (moving, fixed, batch) in enumerate(pairs):
        if number == options.pairs:
            break
        image = torch.cat([batch["moving"], batch["fixed"]], 1)
        with torch.no_grad():
            steps = inferer(image, network)["steps"]
        names = ["affine", *[f"spline of {h} voxels" for h in config.get_parsed_content("stage_spacings")]]
        zero = torch.zeros_like(steps[0]["ddf"])
        for name, ddf in zip(["before", *names], [zero, *[step["ddf"] for step in steps]], strict=True):
            yield {"method": name, "pair": f"{moving['subject']}-{fixed['subject']}", **judged(ddf, batch)}


def judged(ddf: Tensor, batch: dict[str, Tensor]) -> dict[str, float]:
    """Of one pair, on its grid; folds where the fixed image shows something."""
    labels = warp(batch["label_moving"], ddf, mode="nearest")
    inside = batch["fixed"] > 0.05
    dice = float(label_overlap(labels, batch["label_fixed"], STRUCTURES).nanmean())
    folds, spread = folding_fraction(ddf, inside), sd_log_jacobian(ddf, inside)
    return dict(zip(KEYS, (dice, 100 * float(folds), float(spread)), strict=True))


def along_the_bundles(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each aligned pair and bundle."""
    (part, *_) = rendered(options.aligned, options.cache)
    for bundle in ("dlir", "voxelmorph"):
        settings = {"weights": str(options.weights)} if bundle == "dlir" else {}
        registrar = Registrar(bundle, affine="none", optimize=0, **settings, **part.settings)
        for pair in part.pairs[: options.pairs]:
            yield {"method": bundle, "pair": pair["id"], **measured(registrar, pair)}


if __name__ == "__main__":
    main()
