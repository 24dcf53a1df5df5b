r"""What does a metric that differs from place to place bring, optimised, learned or given by a network?

    python -m benchmarks.rdmm SLICES OUT [--pairs 20] [--steps 1000] [--only "LDDMM, 0.001;RDMM, optimised, 0.003"]
    python -m benchmarks.rdmm SLICES OUT --trained RDMM=runs/x/model.pt ...

SLICES is a folder of 2-D slices (`python -m data_lists.build slices`). The networks that the chosen methods need are
trained first, each in OUT, unless --trained names their weights: RDMM and, for comparison, the same momentum network in
the constant metric (LDDMM) for --steps batches of 4; metric learning, with a network and with one metric for all
places, for a tenth of that in batches of 8. Then each method registers the same --pairs pairs, drawn at random from the
section `validation_pairs`. OUT receives measures/ and table.md. Finished parts are kept.

All methods share the Gaussians, the similarity and, where they are optimised, the levels and iterations. The numbers in
their names are the weights of the energy.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments import BUNDLES, EPOCHS, chosen_variants, experiment_parser, markdown, train, write_and_print
from custom_components.commands.evaluate import evaluate
from custom_components.data.lists import load_list

OVERLAYS = BUNDLES / "overlays"
KERNEL = {"_target_": "custom_components.deformations.kernels.MultiGaussianKernel", "sigmas": [2.0, 4.0, 8.0, 16.0]}
CONSTANT_RATE = {"_target_": "torch.optim.lr_scheduler.ConstantLR", "optimizer": "@optimizer", "factor": 1.0}
SEARCH = {"levels": [4, 2, 1], "iterations": [20, 20, 15]}
NETWORK = {"learning_rate": 0.001, "integration_steps": 5}
# Network: bundle, share of the steps, batch size, settings of its training.
NETWORKS: dict[str, tuple[str, float, int, dict[str, Any]]] = {
    "RDMM": ("rdmm", 1.0, 4, {**NETWORK, "static_epochs": 2, "falling_rate": 2.0, "folding_weight": 10.0}),
    "LDDMM": ("avsm", 1.0, 4, {**NETWORK, "deformation#stationary": False}),
    "local": ("metric_learning", 0.1, 8, {"visit_iterations": 3, "record#objects#lr_scheduler": CONSTANT_RATE}),
    "global": (
        "metric_learning",
        0.1,
        8,
        {"visit_iterations": 3, "record#objects#lr_scheduler": CONSTANT_RATE, "global_epochs": EPOCHS},
    ),
}


def optimised(bundle: str, *overlays: str, **settings: Any) -> tuple[str, str | None, dict[str, Any]]:
    files = [str(OVERLAYS / f"{name}.json") for name in ("training_free", *overlays)]
    return bundle, None, {"overlay": files, **SEARCH, **settings}


def constant(*overlays: str, **settings: Any) -> tuple[str, str | None, dict[str, Any]]:
    return optimised("voxelmorph", "lddmm", *overlays, kernel=KERNEL, integration_steps=5, **settings)


# Method: bundle, network, settings of its inference.
METHODS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    **{f"vSVF, {weight}": constant("vsvf", weight=weight) for weight in (0.003, 0.001)},
    **{f"LDDMM, {weight}": constant(weight=weight) for weight in (0.003, 0.001, 0.0003)},
    **{f"RDMM, optimised, {weight}": optimised("rdmm", weight=weight) for weight in (0.003, 0.001)},
    "LDDMM, learned": (
        "avsm",
        "LDDMM",
        {"deformation#stationary": False, "integration_steps": 5, "num_steps": 1, "optimize": 0},
    ),
    "RDMM, learned": ("rdmm", "RDMM", {"optimize": 0}),
    "RDMM, learned, refined": ("rdmm", "RDMM", {"optimize": [0, 15]}),
    "metric learning, base metric, 0.003": ("metric_learning", "local", {**SEARCH, "metric_stage": 0}),
    "metric learning, global, 0.003": ("metric_learning", "global", {**SEARCH, "metric_stage": 1}),
    "metric learning, local, 0.003": ("metric_learning", "local", SEARCH),
}
COLUMNS = {"dice_after": "Dice", "folding_percent": "det J <= 0, %", "sd_log_jacobian": "sd log det J"}
COLUMNS |= {"ncc_after": "correlation", "sigma_mm": "sigma, mm", "sigma_sd_mm": "its sd"}


def main(command: Sequence[str] | None = None) -> None:
    parser = arguments()
    args = parser.parse_args(command)
    names = chosen_variants(parser, args.only, METHODS, ";")
    trained = dict(entry.split("=", 1) for entry in args.trained if "=" in entry)
    if len(trained) < len(args.trained) or set(trained) - set(NETWORKS):
        parser.error(f"expected NETWORK=FILE with one of {', '.join(NETWORKS)}, got {' '.join(args.trained)}")
    args.output.mkdir(parents=True, exist_ok=True)
    pairs = load_list(args.slices / "datalist.json", "validation_pairs", args.slices)
    chosen = random.Random(0).sample(pairs, min(args.pairs, len(pairs)))
    (args.output / "pairs.json").write_text(json.dumps({"validation_pairs": chosen}))
    rows = {name: measure(name, args, trained) for name in names}
    write_and_print(args.output / "table.md", table(rows))


def arguments() -> argparse.ArgumentParser:
    parser = experiment_parser(__doc__, METHODS)
    parser.set_defaults(only=";".join(METHODS), steps=1000, pairs=20)
    parser.add_argument("--trained", nargs="*", default=[], metavar="NETWORK=FILE", help=", ".join(NETWORKS))
    return parser


def measure(name: str, args: argparse.Namespace, trained: Mapping[str, str]) -> list[dict[str, Any]]:
    """The measures of each pair by one method; its network is trained first if it has to be."""
    bundle, network, settings = METHODS[name]
    folder = args.output / "measures" / name.replace(", ", "_").replace(" ", "_")
    if not (folder / "metrics.json").exists():
        options = dict(settings)
        if network is not None:
            options["weights"] = trained.get(network) or str(trained_here(network, args))
        # Components are parts of a configuration, not settings.
        parts = {key: options.pop(key) for key, value in settings.items() if isinstance(value, dict)}
        overlay = folder.with_suffix(".json")
        overlay.parent.mkdir(parents=True, exist_ok=True)
        overlay.write_text(json.dumps(parts))
        options["overlay"] = [*options.get("overlay", []), str(overlay)]
        evaluate(str(args.output / "pairs.json"), str(folder), bundle=bundle, affine="none", **options)
    return json.loads((folder / "metrics.json").read_text())["pairs"]


def trained_here(network: str, args: argparse.Namespace) -> Path:
    bundle, share, batch_size, settings = NETWORKS[network]
    folder = args.output / "networks" / network
    train(bundle, folder, args.slices, settings, steps=round(share * args.steps), batch_size=batch_size)
    return folder / "model.pt"


def table(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    first = next(iter(rows.values()))
    before = float(np.mean([row["dice_before"] for row in first]))
    lines: list[list[Any]] = [["unregistered", before, *[None] * (len(COLUMNS) + 1)]]
    digits = {"folding_percent": 4, "sigma_mm": 1, "sigma_sd_mm": 1, "seconds": 1}
    for name, pairs in rows.items():
        values = {key: float(np.mean([row[key] for row in pairs])) if key in pairs[0] else None for key in COLUMNS}
        values |= {"worst": min(row["dice_after"] for row in pairs)}
        values |= {"seconds": float(np.median([row["seconds"] for row in pairs]))}
        lines.append([name, *(v if v is None else f"{v:.{digits.get(k, 3)}f}" for k, v in values.items())])
    return markdown(["method", *COLUMNS.values(), "worst pair", "seconds"], lines) + f"\n{len(first)} pairs\n"


if __name__ == "__main__":
    main()
