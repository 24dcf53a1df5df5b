r"""One HyperMorph against networks trained for one lambda each, at a size that two CPU cores can do in an hour.

    python data_lists/build.py slices SLABS/datalist.json SLICES --pairs SLABS/pairs_validation.json \
      -o SLICES/datalist.json
    python bundles/hypermorph/docs/reproduce.py SLICES OUT

SLICES: a folder of 2-D slices with a data list that has the sections training, validation and validation_pairs, labels
included; file names begin with the person and "_". Every variant is trained by its bundle's train.json and
train_2d.json, with the published small network, on the middle of the slices, all for equally many steps, and measured
on whole slices; what is there is not done again. OUT gets a folder for each variant and the tables and pictures of
docs/README.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.experiments import interval, read_rows, train  # noqa: E402
from custom_components.data.lists import load_list  # noqa: E402
from custom_components.deformations import StationaryVelocity  # noqa: E402
from custom_components.fields import jacobian_determinant, warp  # noqa: E402
from custom_components.losses.hyper import LabelCriterion, RegularityCriterion  # noqa: E402
from custom_components.losses.similarity import LNCC  # noqa: E402
from custom_components.metrics import mean_dice, sd_log_jacobian, write_metrics, write_table  # noqa: E402
from custom_components.transforms.pairs import LoadPaird  # noqa: E402
from custom_components.tuning import tune_hyper  # noqa: E402

SIZES = {
    "size": [144, 176],
    "network_def#encoder_channels": [16, 32, 32, 32],
    "network_def#decoder_channels": [32, 32, 32, 32, 32, 16, 16],
}
SIMILARITY_WEIGHT = 5.0  # of the bundle's objective
GRID = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9)
PLAIN = (0.1, 0.2, 0.4, 0.8)
GAMMAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def plain(weight: float) -> tuple[str, dict[str, Any]]:
    """The voxelmorph bundle with the same objective at fixed lambda; Adam does not see its scale."""
    return "voxelmorph", {"weight": weight / (1 - weight) / SIMILARITY_WEIGHT, "folding_weight": 0}


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "hyper": ("hypermorph", {}),
    **{f"plain_{weight}": plain(weight) for weight in PLAIN},
    "gamma": (
        "hypermorph",
        {"hyper_names": ["lambda", "gamma"], "labels": [1, 2, 3, 4], "hyper_validation": [[0.3, 0.5]]},
    ),
    "all_layers": ("hypermorph", {"network_def#hyper_encoder": True}),
    "kernels": ("hypermorph", {"network_def#generated": "kernels", "network_def#hyper_encoder": True}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slices", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--only", default=",".join(VARIANTS), help="variants, separated by commas")
    parser.add_argument("--steps", type=int, default=4500, help="of training, batches of 8 pairs")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--pairs", type=int, default=120, help="validation pairs to measure, drawn at random")
    args = parser.parse_args()
    names = args.only.split(",")
    unknown = set(names) - set(VARIANTS)
    if unknown:
        parser.error(f"there is no variant {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")

    def run(name: str) -> None:
        bundle, settings = VARIANTS[name]
        train(bundle, args.output / name, args.slices, {**SIZES, **settings}, steps=args.steps)

    with ThreadPoolExecutor(args.workers) as pool:
        list(pool.map(run, names))
    items = load_list(args.slices / "datalist.json", "validation_pairs", args.slices)
    # In random order: the list has the levels of a brain in turn, and every so manyth pair would be of one level.
    pairs = load_pairs([items[i] for i in np.random.default_rng(0).permutation(len(items))[: args.pairs]])
    for name in names:
        measure(name, args.output / name, pairs)
    if "hyper" in names:
        tune(args.output / "hyper", load_pairs(items))
    print(summary(args.output))


def load_pairs(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each pair of the list on its own grid, with the names of its people as "people"."""
    load = LoadPaird(spacing=1.0)
    people = [tuple(Path(item[role]).name.partition("_")[0] for role in ("moving", "fixed")) for item in items]
    return [{**load(item), "people": names} for item, names in zip(items, people, strict=True)]


def network_of(name: str, folder: Path) -> Any:
    bundle, settings = VARIANTS[name]
    configs = [str(REPOSITORY / "bundles" / bundle / "configs" / f"{c}.json") for c in ("train", "train_2d")]
    parser = ConfigParser(ConfigParser.load_config_files(configs))
    parser.update({"bundle_root": ".", **SIZES, **settings})
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return network


def rows_of_hyper(name: str) -> Tensor:
    """The hyper-parameters at which a variant is measured, (K, H)."""
    fine = [k / 20 for k in range(21)]
    if name == "gamma":
        return torch.tensor([[weight, share] for share in GAMMAS for weight in fine[::2]])
    return torch.tensor(fine)[:, None]


@torch.no_grad()
def measure(name: str, folder: Path, pairs: Sequence[dict[str, Any]]) -> None:
    """Dice, folded pixels and SD of log det J in the brain: FOLDER/rows.csv, a line for each pair."""
    if (folder / "rows.csv").exists():
        return
    network, deformation = network_of(name, folder), StationaryVelocity(7)
    plain_network = name.startswith("plain")
    keys = [""] if plain_network else ["@" + ",".join(f"{v:g}" for v in h) for h in rows_of_hyper(name).tolist()]
    rows = []
    for pair in pairs:
        image, brain = pair["image"][None], pair["label_fixed"][None] > 0
        row = dict(zip(("moving", "fixed"), pair["people"], strict=True))
        row["before"] = float(mean_dice(pair["label_moving"][None], pair["label_fixed"][None]))
        fields = [network(image)] if plain_network else network.each(image, rows_of_hyper(name))
        for key, parameters in zip(keys, fields, strict=True):
            ddf = deformation(parameters, image.shape[2:])["ddf"]
            row[f"dice{key}"] = dice(ddf, pair)
            row[f"folded{key}"] = float((jacobian_determinant(ddf) <= 0)[brain].sum())
            row[f"sd{key}"] = float(sd_log_jacobian(ddf, brain))
        rows.append(row)
    write_table(folder / "rows.csv", rows)


def dice(ddf: Tensor, pair: dict[str, Any]) -> float:
    warped = warp(pair["label_moving"][None], ddf, mode="nearest")
    return float(mean_dice(warped, pair["label_fixed"][None]))


def tune(folder: Path, pairs: Sequence[dict[str, Any]]) -> None:
    """Lambda chosen on the pairs of three people, judged on those of the three others: FOLDER/tuned.json."""
    if (folder / "tuned.json").exists():
        return
    network, deformation = network_of("hyper", folder), StationaryVelocity(7)
    people = sorted({name for pair in pairs for name in pair["people"]})
    sets = {key: [p for p in pairs if set(p["people"]) <= set(chosen)] for key, chosen in halves(people).items()}
    batches = {
        key: [(p["image"][None], {k: v[None] for k, v in p.items() if isinstance(v, Tensor)}) for p in some]
        for key, some in sets.items()
    }

    @torch.no_grad()
    def score(hyper: Tensor) -> list[float]:
        sums = np.zeros(len(hyper))
        for pair in sets["judge"]:
            for k, parameters in enumerate(network.each(pair["image"][None], hyper)):
                sums[k] += dice(deformation(parameters, pair["image"].shape[1:])["ddf"], pair)
        return (sums / len(sets["judge"])).tolist()

    fine = torch.linspace(0, 1, 51)[:, None]
    curve = score(fine)
    result: dict[str, Any] = {"pairs": {k: len(v) for k, v in sets.items()}, "best": [curve.index(max(curve)) / 50, max(curve)]}
    by_labels, history = tune_hyper(network, deformation, batches["tune"], LabelCriterion([1, 2, 3, 4]), iterations=30)
    result["labels"] = [by_labels[0], score(torch.tensor([by_labels]))[0]]
    result["history"] = [[h["hyper"][0], h["criterion"]] for h in history]
    for limit in (0.2, 0.25, 0.3, 0.35, 0.4):
        criterion = RegularityCriterion(LNCC(9), limit)
        found, _ = tune_hyper(network, deformation, batches["tune"], criterion, iterations=30)
        result[f"regularity {limit}"] = [found[0], score(torch.tensor([found]))[0]]
    write_metrics(folder / "tuned.json", result)


def halves(people: Sequence[str]) -> dict[str, Sequence[str]]:
    middle = len(people) // 2
    return {"tune": people[:middle], "judge": people[middle:]}


def summary(output: Path) -> str:
    lines = []
    for path in sorted(output.glob("*/rows.csv")):
        rows = read_rows(path)
        means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key not in ("moving", "fixed")}
        for key in [key for key in means if key.startswith("dice")]:
            rest = key.removeprefix("dice")
            lines.append(
                f"{path.parent.name:12s} {rest:10s} dice {means[key]:.4f} folded {means['folded' + rest]:.2f} sd {means['sd' + rest]:.3f}"
            )
    if (output / "hyper" / "tuned.json").exists():
        lines.append((output / "hyper" / "tuned.json").read_text())
    return "\n".join(lines)


if __name__ == "__main__":
    main()
