r"""Learned templates against the mean and a classical average, and templates that follow attributes; 2-D, on a CPU.

    python -m data_lists.build slices SLABS/datalist.json SLICES --pairs SLABS/pairs_validation.json \
      -o SLICES/datalist.json
    python -m benchmarks.conditional_atlas SLICES HEADS OUT [--maps ALIGNED/datalist.json]

SLICES is a folder of 2-D slices with a data list that has the sections training and validation, with labels and group
(level); the middle level of each person's first scan is used. HEADS is a folder of 2-D skull-stripped T1 slices, one
for a person, 128 x 128, with a data list. The shapes are made here. Every variant is trained by the bundle's train.json
and train_2d.json; finished parts are kept. OUT receives a folder for each variant, tables.md with the tables of the
bundle's page, and the pictures. ALIGNED: label maps with the attribute `ventricles`, like those that the shipped
weights were trained on; with --maps the shipped weights are measured, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.conditional_atlas_attributes import shapes, ventricles
from benchmarks.conditional_atlas_data import HEADS, SHAPES, load, make_lists, network_of
from benchmarks.conditional_atlas_shipped import shipped
from benchmarks.conditional_atlas_tables import pictures, tables
from benchmarks.conditional_atlas_templates import LABELS, baselines, by_network, by_optimization, judge
from benchmarks.experiments import BUNDLES, at_once, chosen_variants, measure_once, train, write_and_print
from custom_components.evaluation.overlap import mean_dice

INTENSITY = {
    "similarity": {"_target_": "custom_components.losses.similarity.MSE", "sigma": 0.05},
    "forward_weight": 1.0,
}
SHAPES_SETTINGS = {"size": SHAPES, "conditions": {"size": "numeric", "elongation": "numeric"}, **INTENSITY}
VENTRICLES_SETTINGS = {"size": HEADS, "conditions": {"ventricles": "numeric"}, **INTENSITY}
# Folder of the data, steps, batch, settings.
VARIANTS: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "brains": ("brains", 2000, 4, {}),
    "brains_mse": ("brains", 2000, 4, INTENSITY),
    "brains_backward": ("brains", 2000, 4, {"forward_weight": 2.5, "backward_weight": 2.5}),
    "brains_gamma_0": ("brains", 2000, 4, {"mean_weight": 0.0}),
    "brains_labels": ("brains", 2000, 4, {"template_labels": [0, 1, 2, 3, 4]}),
    "brains_seed_1": ("brains", 2000, 4, {"seed": 1}),
    "brains_seed_2": ("brains", 2000, 4, {"seed": 2}),
    "brains_batch_1": ("brains", 2000, 1, {}),
    "brains_stopped": ("brains", 2000, 4, {}),
    "brains_processes": ("brains", 2000, 4, {}),
    "heads": ("heads", 2000, 4, {"size": HEADS}),
    "shapes": ("shapes", 2500, 8, SHAPES_SETTINGS),
    "shapes_shuffled": ("shapes_shuffled", 2500, 8, SHAPES_SETTINGS),
    "ventricles": ("ventricles", 3000, 4, VENTRICLES_SETTINGS),
    "ventricles_paper": ("ventricles", 3000, 4, {**VENTRICLES_SETTINGS, "network_def#template#paper": True}),
    **{
        f"ventricles_{smoothness:g}_{size:g}": (
            "ventricles",
            3000,
            4,
            {**VENTRICLES_SETTINGS, "smoothness_weight": smoothness, "size_weight": size},
        )
        for smoothness, size in ((1.0, 0.01), (5.0, 0.1), (5.0, 1.0), (20.0, 1.0))
    },
}


def main(command: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("slices", type=Path)
    parser.add_argument("heads", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--maps", type=Path, help="data list of label maps, for the shipped 3-D weights")
    parser.add_argument("--only", default=",".join(VARIANTS), help="variants, separated by commas")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, one thread each")
    args = parser.parse_args(command)
    names = chosen_variants(parser, args.only, VARIANTS)
    make_lists(args.slices, args.heads, args.output)
    at_once(args.workers, lambda name: run(name, args.output), names)
    torch.set_num_threads(args.workers)
    for data in ("brains", "heads"):
        measure_once(args.output / f"{data}_baselines.json", lambda data=data: baselines(data, args.output))
    for name in names:
        measure_once(args.output / name / "measures.json", lambda name=name: measure(name, args.output))
    if args.maps is not None:
        measure_once(args.output / "shipped.json", lambda: shipped(args.maps))
    write_and_print(args.output / "tables.md", tables(args.output, {name: row[0] for name, row in VARIANTS.items()}))
    pictures(args.output)


def run(name: str, output: Path) -> None:
    """Train a variant."""
    data, steps, batch, settings = VARIANTS[name]
    settings = {"num_val_pairs": 12, **settings}
    if "conditions" not in settings:
        settings = {"conditions": {}, "size_weight": 0.01, **settings}  # as train_unconditional.json
    options: dict[str, Any] = {"steps": steps, "batch_size": batch, "data_list": output / "data" / f"{data}.json"}
    folder = output / name
    if name == "brains_processes":
        # Two processes share the pairs: half the batch in each.
        settings |= {"batch_size": batch // 2}
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle", "run"]
        options |= {"launcher": launcher, "overlays": [BUNDLES / "overlays" / "multi_gpu.json"]}
    if name == "brains_stopped" and not (folder / "model.pt").exists():
        train("conditional_atlas", folder, output, settings, **options, stop=lambda: epochs_done(folder) > 4)
    train("conditional_atlas", folder, output, settings, **options)


def epochs_done(folder: Path) -> int:
    """Rows of the training's curve, below its heading."""
    curve = folder / "curve.csv"
    return len(curve.read_text().splitlines()) - 1 if curve.exists() else 0


def measure(name: str, output: Path) -> dict[str, Any]:
    """The measures of a trained variant."""
    network, data = network_of(output / name), VARIANTS[name][0]
    if data == "ventricles":
        return ventricles(network, load("ventricles", "validation", output))
    if data not in ("brains", "heads"):
        return shapes(network)
    training, validation = (load(data, section, output) for section in ("training", "validation"))
    template = network.template().detach()
    result: dict[str, Any] = {"network": judge(template, by_network(network), training, validation)}
    if name in ("brains", "heads", "brains_mse"):
        result["optimized"] = judge(template, by_optimization(template), training, validation)
    if name == "brains_labels":
        pred = by_network(network)(validation["image"])
        score = mean_dice(pred["warped_template_label"], validation["label"], LABELS)
        result["network"]["dice_template_labels"] = float(score.mean())
    return result


if __name__ == "__main__":
    main()
