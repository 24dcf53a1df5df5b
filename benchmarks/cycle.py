"""VoxelMorph with and without cycles and identities (Kim et al., 2019), on 2-D slices.

    python -m benchmarks.cycle SLICES OUT [--seeds 0,1,2] [--steps 120] [--jobs 2]

SLICES is a folder with 2-D slices, as `data_lists/build.py slices` cuts them. The same small network is trained for as
many steps of the same pairs, with the weights of CycleMorph and without, and without but for as many runs of the
network (six to one). Then it registers pairs of people nobody trained on, both ways. OUT receives the trainings, the
measures of each pair, and table.md: Dice, folds, SD of log det J, inverse consistency |phi_BA o phi_AB - id|. Finished
trainings are kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.experiments import bundle_config, markdown, shuffled, train, write_and_print
from custom_components.data.lists import load_list
from custom_components.evaluation.metrics import folding_fraction, inverse_consistency_mm, sd_log_jacobian
from custom_components.evaluation.overlap import label_overlap
from custom_components.fields import warp
from custom_components.files import write_table
from custom_components.inference.both_ways import BothWaysInferer
from custom_components.transforms.scan import LoadScand

SETTINGS: dict[str, Any] = {"spacing": 2.0, "size": [91, 109], "num_val_pairs": 2, "learning_rate": 0.002}
SETTINGS |= {"network_def#encoder_channels": [16, 32, 32, 32], "weight": 0.1, "folding_weight": 0.0}
SETTINGS |= {"network_def#decoder_channels": [32, 32, 32, 32, 32, 16, 16]}
# Name: weights, and steps for one step of the cycles.
ARMS = {
    "without": ({"cycle_weight": 0.0, "identity_weight": 0.0}, 1),
    "with": ({"cycle_weight": 0.1, "identity_weight": 0.5}, 1),
    "without, as many runs of the network": ({"cycle_weight": 0.0, "identity_weight": 0.0}, 6),
}
BATCH, LABELS = 4, [1, 2, 3, 4]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("slices", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", default="0,1,2", help="separated by commas")
    parser.add_argument("--steps", type=int, default=120, help="of the training with cycles")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    options = parser.parse_args(words)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    runs = [(name, seed) for seed in seeds for name in ARMS]

    def teach(run: tuple[str, int]) -> None:
        weights, times = ARMS[run[0]]
        settings = {**SETTINGS, **weights, "seed": run[1]}
        steps = options.steps * times
        train("voxelmorph", folder_of(options.output, *run), options.slices, settings, steps=steps, batch_size=BATCH)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(teach, runs))
    pairs = shuffled(load_list(options.slices / "datalist.json", "validation_pairs"), options.pairs)
    rows = [row for run in runs for row in measured(folder_of(options.output, *run), run, pairs)]
    write_table(options.output / "pairs.csv", rows)
    write_and_print(options.output / "table.md", table(rows))


def folder_of(output: Path, name: str, seed: int) -> Path:
    return output / f"{name.replace(', ', ' ').replace(' ', '_')}-{seed}"


@torch.no_grad()
def measured(folder: Path, run: tuple[str, int], pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each pair, registered by the network in a folder both ways."""
    config = bundle_config("voxelmorph", ["train", "train_2d"], **SETTINGS)
    network = config.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    inferer = BothWaysInferer(config.get_parsed_content("inferer"))
    load = LoadScand(spacing=SETTINGS["spacing"], size=SETTINGS["size"], center="image")
    rows = []
    for pair in pairs:
        moving, fixed = (load({"image": pair[r], "label": pair[f"label_{r}"]}) for r in ("moving", "fixed"))
        pred = inferer(torch.cat([moving["image"], fixed["image"]])[None].float(), network)
        rows.append({"arm": run[0], "seed": run[1], "pair": pair["id"], **judged(pred, moving, fixed)})
    return rows


def judged(pred: dict[str, Any], moving: dict[str, Tensor], fixed: dict[str, Tensor]) -> dict[str, float]:
    """Measures on the grid of 2 mm; of the maps where the fixed image shows something."""
    ddf, back, inside = pred["ddf"], pred["back"]["ddf"], fixed["image"][None] > 0.05
    target = fixed["label"][None]
    before, after = (
        label_overlap(x, target, LABELS)
        for x in (moving["label"][None], warp(moving["label"][None], ddf, mode="nearest"))
    )
    apart, _ = inverse_consistency_mm(ddf, back, spacing_mm=[SETTINGS["spacing"]] * 2, mask=inside)
    return {
        "dice_before": float(before.nanmean()),
        "dice": float(after.nanmean()),
        "folding_percent": 100 * float(folding_fraction(ddf, inside)),
        "sd_log_jacobian": float(sd_log_jacobian(ddf, inside)),
        "inverse_consistency_mm": float(apart),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over pairs, of each seed and of all."""
    keys = list(rows[0])[3:]
    lines = []
    for name in ARMS:
        own = [row for row in rows if row["arm"] == name]
        for seed in [*dict.fromkeys(row["seed"] for row in own), None]:
            some = [row for row in own if seed in (None, row["seed"])]
            means = [sum(row[key] for row in some) / len(some) for key in keys]
            lines.append([name, "all" if seed is None else seed, *means])
    return markdown(["", "seed", *keys], lines)


if __name__ == "__main__":
    main()
