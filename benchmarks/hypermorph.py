r"""One HyperMorph against networks trained for one lambda each, at a size that two CPU cores can do in an hour.

    python -m data_lists.build slices SLABS/datalist.json SLICES --pairs SLABS/pairs_validation.json \
      -o SLICES/datalist.json
    python -m benchmarks.hypermorph SLICES OUT

SLICES is a folder of 2-D slices with a data list that has the sections training, validation and validation_pairs, with
labels; file names begin with the person and "_". Every variant is trained by its bundle's train.json and train_2d.json
for equally many steps, with the published small network, on the middle of the slices, and measured on whole slices.
Finished parts are kept. OUT receives a folder for each variant, and the tables and pictures of the bundle's page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.experiments import (
    PEOPLE,
    at_once,
    bundle_config,
    chosen_variants,
    experiment_parser,
    interval,
    measure_once,
    read_rows,
    shuffled,
    train,
    write_and_print,
)
from custom_components.data.lists import load_list
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.evaluation.metrics import sd_log_jacobian
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import jacobian_determinant, warp
from custom_components.files import write_table
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.similarity import LNCC
from custom_components.methods.hypermorph.inference import HyperInferer
from custom_components.methods.hypermorph.objective import LabelCriterion, RegularityCriterion
from custom_components.methods.hypermorph.tuning import tune_hyper
from custom_components.transforms.load import LoadPaird

SIZES = {
    "size": [144, 176],
    "network_def#encoder_channels": [16, 32, 32, 32],
    "network_def#decoder_channels": [32, 32, 32, 32, 32, 16, 16],
}
SIMILARITY_WEIGHT = 5.0  # of the bundle's objective
GRID = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9)
PLAIN = (0.1, 0.2, 0.4, 0.8, 0.9)
GAMMAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def plain(weight: float) -> tuple[str, dict[str, Any]]:
    """The voxelmorph bundle with the same objective at fixed lambda; Adam does not see its scale."""
    return "voxelmorph", {"weight": weight / (1 - weight) / SIMILARITY_WEIGHT, "folding_weight": 0}


def hyper(**settings: Any) -> tuple[str, dict[str, Any]]:
    """The hypermorph bundle, with no motion at lambda = 1 learned instead of given."""
    names = {name: f"network_def#{name}" for name in ("generated", "hyper_encoder")}
    return "hypermorph", {"network_def#zero_at_one": None, **{names.get(k, k): v for k, v in settings.items()}}


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "hyper": hyper(),
    **{f"plain_{weight}": plain(weight) for weight in PLAIN},
    "gamma": hyper(hyper_names=["lambda", "gamma"], labels=[1, 2, 3, 4], hyper_validation=[[0.3, 0.5]]),
    "zero_at_one": ("hypermorph", {}),  # as shipped
    "kernels": hyper(generated="kernels", hyper_encoder=True),
}


def main(command: Sequence[str] | None = None) -> None:
    parser = experiment_parser(__doc__, VARIANTS)
    args = parser.parse_args(command)
    names = chosen_variants(parser, args.only, VARIANTS)

    def run(name: str) -> None:
        bundle, settings = VARIANTS[name]
        train(bundle, args.output / name, args.slices, {**SIZES, **settings}, steps=args.steps)

    at_once(args.workers, run, names)
    items = load_list(args.slices / "datalist.json", "validation_pairs", args.slices)
    pairs = load_pairs(shuffled(items, args.pairs))
    for name in names:
        measure(name, args.output / name, pairs)
    if "hyper" in names:
        measure_once(args.output / "hyper" / "tuned.json", lambda: tuned(args.output / "hyper", load_pairs(items)))
    write_and_print(args.output / "tables.md", tables(args.output))
    pictures(args.output)


def load_pairs(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each pair of the list on its own grid, with the names of its people as "people"."""
    load = LoadPaird(spacing=1.0)
    people = [tuple(Path(item[role]).name.partition("_")[0] for role in ("moving", "fixed")) for item in items]
    return [{**load(item), "people": names} for item, names in zip(items, people, strict=True)]


def network_of(name: str, folder: Path) -> Any:
    bundle, settings = VARIANTS[name]
    config = bundle_config(bundle, ["train", "train_2d"], **SIZES, **settings)
    network = config.get_parsed_content("network_def").eval()
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
        row = dict(zip(PEOPLE, pair["people"], strict=True))
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


def tuned(folder: Path, pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Lambda chosen on the pairs of three people, and its Dice on those of the three others."""
    network, deformation = network_of("hyper", folder), StationaryVelocity(7)
    people = sorted({name for pair in pairs for name in pair["people"]})
    sets = {key: [p for p in pairs if set(p["people"]) <= set(chosen)] for key, chosen in halves(people).items()}
    batches = [(p["image"][None], {k: v[None] for k, v in p.items() if isinstance(v, Tensor)}) for p in sets["tune"]]
    curve = score(network, torch.linspace(0, 1, 51)[:, None], sets["judge"])
    result: dict[str, Any] = {
        "pairs": {k: len(v) for k, v in sets.items()},
        "best": [curve.index(max(curve)) / 50, max(curve)],
    }
    by_labels, history = tune_hyper(network, deformation, batches, LabelCriterion([1, 2, 3, 4]), iterations=30)
    result["labels"] = [by_labels[0], score(network, torch.tensor([by_labels]), sets["judge"])[0]]
    result["history"] = [[h["hyper"][0], h["criterion"]] for h in history]
    for limit in (0.4, 0.5, 0.6, 0.7):
        criterion = RegularityCriterion(LNCC(9), limit)
        found, _ = tune_hyper(network, deformation, batches, criterion, iterations=30)
        result[f"regularity {limit}"] = [found[0], score(network, torch.tensor([found]), sets["judge"])[0]]
        inferer = HyperInferer(RegistrationInferer(deformation), deformation, "auto", criterion=criterion)
        chosen = []
        for pair in sets["judge"]:
            pred = inferer(pair["image"][None], network)
            chosen.append([float(pred["hyper"]), dice(pred["ddf"], pair)])
        result[f"each pair, regularity {limit}"] = np.mean(chosen, 0).tolist()
    return result


@torch.no_grad()
def score(network: Any, hyper: Tensor, pairs: Sequence[dict[str, Any]]) -> list[float]:
    """Mean Dice of the pairs for each row of hyper-parameters."""
    deformation, sums = StationaryVelocity(7), np.zeros(len(hyper))
    for pair in pairs:
        for k, parameters in enumerate(network.each(pair["image"][None], hyper)):
            sums[k] += dice(deformation(parameters, pair["image"].shape[1:])["ddf"], pair)
    return (sums / len(pairs)).tolist()


def halves(people: Sequence[str]) -> dict[str, Sequence[str]]:
    middle = len(people) // 2
    return {"tune": people[:middle], "judge": people[middle:]}


def tables(output: Path) -> str:
    """What the bundle's page shows, of all variants measured so far."""
    rows = {path.parent.name: read_rows(path) for path in sorted(output.glob("*/rows.csv"))}
    means = {name: {key: mean(some, key) for key in some[0] if key not in PEOPLE} for name, some in rows.items()}
    lines = ["| lambda | variant | Dice | folded pixels | SD of log det J |", "|" + "---|" * 5]
    for weight in GRID:
        for name in ("hyper", f"plain_{weight}", "zero_at_one", "kernels"):
            key = "" if name.startswith("plain") else f"@{weight:g}"
            if name in rows:
                found = [means[name][f"{kind}{key}"] for kind in ("dice", "folded", "sd")]
                lines.append(f"| {weight} | {name} | {found[0]:.4f} | {found[1]:.2f} | {found[2]:.3f} |")
    lines += ["", "| lambda | Dice, variant - plain | |", "|---|---|---|"]
    for name in ("hyper", "zero_at_one", "kernels"):
        for weight in [w for w in PLAIN if name in rows and f"plain_{w}" in rows]:
            both = [{**a, "dice": a[f"dice@{weight:g}"]} for a in rows[name]]
            lines.append(f"| {weight} | {name} | {interval(both, rows[f'plain_{weight}'], 'dice')} |")
    if "gamma" in rows:
        fine = rows_of_hyper("gamma")[:, 0].unique().tolist()
        lines += ["", "| gamma | " + " | ".join(f"lambda {w:g}" for w in fine) + " |", "|" + "---|" * (len(fine) + 1)]
        for share in GAMMAS:
            cells = [f"{means['gamma'][f'dice@{w:g},{share:g}']:.4f}" for w in fine]
            lines.append(f"| {share} | " + " | ".join(cells) + " |")
        best = max(fine, key=lambda w: means["gamma"][f"dice@{w:g},0"])
        for share in GAMMAS[1:]:
            one = [{**a, "dice": a[f"dice@{best:g},{share:g}"]} for a in rows["gamma"]]
            other = [{**a, "dice": a[f"dice@{best:g},0"]} for a in rows["gamma"]]
            lines.append(f"gamma {share} - gamma 0 at lambda {best:g}: {interval(one, other, 'dice')}  ")
    lines += ["", "| variant | training, CPU s |", "|---|---|"]
    for path in sorted(output.glob("*/curve.csv")):
        lines.append(f"| {path.parent.name} | {path.read_text().splitlines()[-1].split(',')[3]} |")
    if (output / "hyper" / "tuned.json").exists():
        tuned = json.loads((output / "hyper" / "tuned.json").read_text())
        lines += ["", "| chosen by | lambda | Dice | loss |", "|---|---|---|---|"]
        for key, value in tuned.items():
            if key not in ("pairs", "history"):
                lines.append(f"| {key} | {value[0]:.3f} | {value[1]:.4f} | {tuned['best'][1] - value[1]:.4f} |")
    return "\n".join(lines) + "\n"


def mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def pictures(output: Path) -> None:
    """Dice over lambda, and over lambda and gamma, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = {path.parent.name: read_rows(path) for path in output.glob("*/rows.csv")}
    if "hyper" in rows:
        figure, axes = pyplot.subplots(figsize=(6, 4))
        fine = rows_of_hyper("hyper")[:, 0].tolist()
        for name in [name for name in ("hyper", "zero_at_one", "kernels") if name in rows]:
            axes.plot(fine, [mean(rows[name], f"dice@{w:g}") for w in fine], ".-", label=name)
        there = [w for w in PLAIN if f"plain_{w}" in rows]
        axes.plot(there, [mean(rows[f"plain_{w}"], "dice") for w in there], "ks", label="a network for each lambda")
        axes.set(xlabel="lambda", ylabel="Dice, mean of 4 tissues")
        axes.legend()
        figure.savefig(output / "lambda.png", dpi=110, bbox_inches="tight")
    if "gamma" in rows:
        fine = rows_of_hyper("gamma")[:, 0].unique().tolist()
        surface = [[mean(rows["gamma"], f"dice@{w:g},{g:g}") for w in fine] for g in GAMMAS]
        figure, axes = pyplot.subplots(figsize=(6, 3.6))
        mesh = axes.pcolormesh(fine, GAMMAS, surface, shading="nearest", vmin=np.max(surface) - 0.06)
        axes.set(xlabel="lambda", ylabel="gamma")
        figure.colorbar(mesh, label="Dice")
        figure.savefig(output / "gamma.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
