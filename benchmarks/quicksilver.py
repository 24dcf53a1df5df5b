r"""What is best predicted, a momentum, a velocity or a displacement? Networks against their teacher, the optimisation.

    python -m data_lists.build slices SLABS/datalist.json SLICES --pairs SLABS/pairs_validation.json \
      -o SLICES/datalist.json
    python -m benchmarks.quicksilver SLICES OUT [--momenta FOLDER] [--only momentum,correction] [--pairs 40]
    python -m benchmarks.quicksilver LABELMAPS OUT --form train_labelmaps --batch 16 [--weights FOLDER]

SLICES or LABELMAPS is a folder with a data list that has the sections training and validation. Each variant is trained
by the bundle's train.json and the overlay `--form`; finished parts are kept. `--weights` adds model.pt, correction.pt
and model_dropout.pt of a folder to the table. OUT receives a folder for each variant, the optimised pairs, and
tables.md with the tables of the bundle's page.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import list_data_collate
from torch import Tensor
from tqdm import tqdm

from benchmarks.experiments import (
    EPOCHS,
    bundle_config,
    chosen_variants,
    experiment_parser,
    markdown,
    train,
    write_and_print,
)
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import jacobian_determinant, warp
from custom_components.inference.registration import RegistrationInferer
from custom_components.methods.quicksilver.inference import DropoutSamplesInferer, PatchPredictor
from custom_components.methods.quicksilver.network import load_network

Network = tuple[str, Path, Path | None]  # name, weights, weights of its correction
REFINEMENT = 10
PERCENTILES = (0.3, 5, 25, 50, 75, 95, 99.7)
SHOT = {
    "_target_": "custom_components.deformations.momentum.VectorMomentum",
    "kernel": "@kernel",
    "spacing": "@spacing",
}
SHOT |= {"num_steps": "@integration_steps", "stride": "@stride", "quantity": "velocity"}
FREE = {"_target_": "custom_components.deformations.velocity.Displacement", "stride": "@stride"}
PLAIN = {"_target_": "custom_components.methods.quicksilver.objective.MomentumLoss", "penalty": "l2"}
# What differs from train.json and train_2d.json. Velocities and displacements are smooth and compared as they are.
VARIANTS: dict[str, dict[str, Any]] = {
    "momentum": {},
    "correction": {},
    "velocity": {"inferer#deformation": SHOT, "loss": PLAIN},
    "displacement": {"inferer#deformation": FREE, "loss": PLAIN},
    "probabilistic": {"dropout": 0.2},
}
for _name in ("velocity", "displacement"):
    VARIANTS[_name] |= {"train#dataset#quantity": _name, "network_def#target#quantity": _name}


def main(command: Sequence[str] | None = None) -> None:
    parser = experiment_parser(__doc__, VARIANTS)
    parser.set_defaults(steps=5000, pairs=40)
    parser.add_argument("--momenta", type=Path, help="folder of the training pairs' momenta; default OUT/momenta")
    parser.add_argument("--form", default="train_2d", help="the overlay that says what the data are")
    parser.add_argument("--batch", type=int, default=32, help="patches in a step")
    parser.add_argument("--samples", type=int, default=20, help="of the probabilistic form")
    parser.add_argument("--weights", type=Path, help="folder of further weights to measure")
    args = parser.parse_args(command)
    names = chosen_variants(parser, args.only, VARIANTS)
    torch.set_num_threads(1)
    for name in names:
        train_variant(name, args)
    config = bundle_config("quicksilver", ["train", args.form], dataset_dir=str(args.slices), num_val_pairs=args.pairs)
    pairs = validation_pairs(config)
    truth, seconds = optimised(config, pairs, args.output / "optimised.pt")
    rows = measure(config, networks_of(names, args), pairs, truth, args.samples)
    (args.output / "rows.json").write_text(json.dumps(rows))
    write_and_print(args.output / "tables.md", tables(rows, pairs, seconds))


def train_variant(name: str, args: argparse.Namespace) -> None:
    momenta = (args.momenta or args.output / "momenta").absolute()
    settings = {**VARIANTS[name], "momenta_dir": str(momenta), "num_patches": args.steps * args.batch // EPOCHS}
    if name == "correction":
        settings["predictor_weights"] = str((args.output / "momentum" / "model.pt").absolute())
    options = {"steps": args.steps, "batch_size": args.batch, "form": args.form}
    train("quicksilver", args.output / name, args.slices, settings, **options)


def networks_of(names: Sequence[str], args: argparse.Namespace) -> list[Network]:
    """The networks to measure: those trained here, and those of --weights."""
    found: list[Network] = [(name, args.output / name / "model.pt", None) for name in names if name != "correction"]
    if "correction" in names:
        found.append(("correction", args.output / "momentum" / "model.pt", args.output / "correction" / "model.pt"))
    if args.weights is not None:
        found.append(("given", args.weights / "model.pt", None))
        if (args.weights / "correction.pt").exists():
            found.append(("given, correction", args.weights / "model.pt", args.weights / "correction.pt"))
        if (args.weights / "model_dropout.pt").exists():
            found.append(("given, dropout", args.weights / "model_dropout.pt", None))
    return found


def validation_pairs(config: ConfigParser) -> list[dict[str, Tensor]]:
    """Pairs of people who were not trained on, the same in each run, as batches of one: image and labels."""
    dataset, prepare = (config.get_parsed_content(f"validate#{name}") for name in ("dataset", "prepare_batch"))
    monai.utils.set_determinism(0)
    pairs = []
    for i in range(len(dataset)):
        torch.manual_seed(i)
        image, targets, *_ = prepare(list_data_collate([dataset[i]]))
        pairs.append({"image": image.float(), **{key: targets[key] for key in ("label_moving", "label_fixed")}})
    return pairs


def optimised(config: ConfigParser, pairs: Sequence[Mapping[str, Any]], path: Path) -> tuple[Tensor, float]:
    """Displacements (N, D, *S) of the optimisation that made the training data, and its seconds for one pair alone."""
    if path.exists():
        stored = torch.load(path, weights_only=True)
        if len(stored["ddf"]) == len(pairs):
            return stored["ddf"], stored["seconds"]
    optimizer = config.get_parsed_content("lddmm")
    fields, times = [], []
    for pair in tqdm(pairs, desc="optimisation"):
        start = time.perf_counter()
        momentum = optimizer(*pair["image"].chunk(2, 1))
        times.append(time.perf_counter() - start)
        with torch.no_grad():
            fields.append(optimizer.deformation(momentum, pair["image"].shape[2:])["ddf"])
    ddf, seconds = torch.cat(fields), float(np.median(times))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"ddf": ddf, "seconds": seconds}, path)
    return ddf, seconds


def measure(
    config: ConfigParser, networks: Sequence[Network], pairs: Sequence[Mapping[str, Any]], truth: Tensor, samples: int
) -> list[dict[str, Any]]:
    """A row for each network and each way to use it."""
    spacing = float(config["spacing"])
    rows = [row("none", torch.zeros_like(truth), truth, pairs, spacing)]
    rows.append(row("optimisation", truth, truth, pairs, spacing))
    network = config.get_parsed_content("network_def")
    network.quantity = ""  # accepts weights that predict any quantity
    for name, weights, correction in networks:
        first = load_network(network, weights)
        assert first is not None
        special = VARIANTS.get(name, {}).get("inferer#deformation", config["deformation"])
        deformation = ConfigParser({**config.get(), "special": special}).get_parsed_content("special")
        predictor = PatchPredictor(correction=load_network(first, correction))
        if correction is not None:
            ways = ways_with_correction(config, deformation, predictor)
        elif first.dropout:
            inferer = RegistrationInferer(deformation, predictor)
            ways = {f"{samples} samples": DropoutSamplesInferer(inferer, samples=samples)}
        else:
            ways = {
                "step 14": RegistrationInferer(deformation, predictor),
                "step 5": RegistrationInferer(deformation, PatchPredictor(step=5)),
            }
        for way, inferer in ways.items():
            found, times, deviations = predictions(inferer, first, pairs, f"{name}, {way}")
            line = row(f"{name}, {way}", found, truth, pairs, spacing)
            line["seconds"] = float(np.median(times))
            if deviations:
                line |= correlations(torch.stack(deviations), (found - truth).norm(dim=1), pairs)
            rows.append(line)
    return rows


def ways_with_correction(config: ConfigParser, deformation: Any, predictor: PatchPredictor) -> dict[str, Any]:
    """Inferers that use a correction network, alone and followed by a few iterations."""
    refinement = config.get_parsed_content("lddmm", instantiate=True)
    refinement.levels, refinement.iterations = (1,), (REFINEMENT,)
    refined = RegistrationInferer(deformation, predictor, refinement=refinement)
    return {"step 14": RegistrationInferer(deformation, predictor), f"step 14, {REFINEMENT} iterations": refined}


@torch.no_grad()
def predictions(
    inferer: Any, network: Any, pairs: Sequence[Mapping[str, Any]], name: str
) -> tuple[Tensor, list[float], list[Tensor]]:
    """Displacements (N, D, *S), seconds, and the samples' standard deviations, if there are samples."""
    found, times, deviations = [], [], []
    for pair in tqdm(pairs, desc=name):
        pred = inferer(pair["image"], network)
        found.append(pred["ddf"])
        times.append(float(pred["seconds"][0]))
        if "ddf_samples" in pred:
            deviations.append(pred["ddf_samples"][0].var(0).sum(0).sqrt())
    return torch.cat(found), times, deviations


def row(
    name: str, ddf: Tensor, truth: Tensor, pairs: Sequence[Mapping[str, Any]], spacing: float = 1.0
) -> dict[str, Any]:
    """Percentiles of the error against the optimisation, in mm; Dice; cases without any fold."""
    brain = torch.cat([pair["label_fixed"][:, 0] > 0 for pair in pairs])
    error = spacing * (ddf - truth).norm(dim=1)
    dice = []
    for pair, field in zip(pairs, ddf, strict=True):
        warped = warp(pair["label_moving"], field[None], mode="nearest")
        dice.append(float(torch.as_tensor(mean_dice(warped, pair["label_fixed"])).float().nanmean()))
    positive = (jacobian_determinant(ddf).flatten(1) > 0).all(1).float().mean()
    return {
        "name": name,
        "all": np.percentile(error.numpy(), PERCENTILES).tolist(),
        "brain": np.percentile(error[brain].numpy(), PERCENTILES).tolist(),
        "dice": dice,
        "positive": float(positive),
    }


def correlations(deviation: Tensor, error: Tensor, pairs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of the predicted deviation with the actual error in the brain, mean over the pairs; and the ratio of the two."""
    values, ratio = [], []
    for sd, e, pair in zip(deviation, error, pairs, strict=True):
        inside = pair["label_fixed"][0, 0] > 0
        ranks = [torch.argsort(torch.argsort(x[inside])).float() for x in (sd, e)]
        values.append(float(torch.corrcoef(torch.stack(ranks))[0, 1]))
        ratio.append(float(sd[inside].mean() / e[inside].mean()))
    return {"correlation": float(np.mean(values)), "deviation": float(np.mean(ratio))}


def tables(rows: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]], seconds: float) -> str:
    text = f"{len(pairs)} pairs; optimisation {seconds:.2f} s a pair\n\n"
    for region in ("all", "brain"):
        heads = ["error, mm, " + region, *[f"{p} %" for p in PERCENTILES], "all det J > 0, %", "Dice", "s", "speed-up"]
        lines = []
        for r in rows:
            cells = [r["name"], *r[region], f"{100 * r['positive']:.0f}", f"{np.mean(r['dice']):.4f}"]
            cells += [r["seconds"], f"{seconds / r['seconds']:.0f}"] if "seconds" in r else ["", ""]
            lines.append(cells)
        text += markdown(heads, lines) + "\n"
    for r in rows:
        if "correlation" in r:
            text += f"{r['name']}: rank correlation of deviation and error {r['correlation']:.3f}, ratio of their means"
            text += f" {r['deviation']:.2f}\n"
    return text


if __name__ == "__main__":
    main()
