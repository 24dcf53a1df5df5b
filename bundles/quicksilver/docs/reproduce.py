r"""What is best predicted, a momentum, a velocity or a displacement? Networks against their teacher, the optimisation.

    python data_lists/build.py slices SLABS/datalist.json SLICES --pairs SLABS/pairs_validation.json \
      -o SLICES/datalist.json
    python bundles/quicksilver/docs/reproduce.py SLICES OUT [--momenta FOLDER] [--only momentum,correction] [--pairs 40]

SLICES: a folder of 2-D slices with a data list that has the sections training, validation and validation_pairs, labels
and group (level) included. Every variant is trained by the bundle's train.json and train_2d.json; what is there is not
done again. OUT gets a folder for each variant, the optimised pairs, and tables.md with the tables of docs/README.md.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.experiments import chosen_variants, script_parser, train  # noqa: E402
from custom_components.data.lists import load_list  # noqa: E402
from custom_components.fields import jacobian_determinant, warp  # noqa: E402
from custom_components.inferers import PatchMomentumInferer  # noqa: E402
from custom_components.metrics import mean_dice  # noqa: E402
from custom_components.networks.quicksilver import load_network  # noqa: E402
from custom_components.transforms.pairs import LoadPaird  # noqa: E402

BUNDLE = REPOSITORY / "bundles" / "quicksilver"
PERCENTILES = (0.3, 5, 25, 50, 75, 95, 99.7)
SHOT = {"_target_": "custom_components.deformations.VectorMomentum", "kernel": "@kernel", "spacing": "@spacing"}
SHOT |= {"num_steps": "@num_steps", "stride": "@stride", "quantity": "velocity"}
FREE = {"_target_": "custom_components.deformations.Displacement", "stride": "@stride"}
PLAIN = {"_target_": "custom_components.losses.patches.MomentumLoss", "penalty": "l2"}
# What differs from train.json and train_2d.json. Velocities and displacements are smooth and compared as they are.
VARIANTS: dict[str, dict[str, Any]] = {
    "momentum": {},
    "correction": {},
    "velocity": {"inferer#deformation": SHOT, "loss": PLAIN},
    "displacement": {"inferer#deformation": FREE, "loss": PLAIN},
    "probabilistic": {"dropout": 0.2},
}
for _name in ("velocity", "displacement"):
    VARIANTS[_name] |= {"train#dataset#quantity": _name, "network_def#quantity": _name}


def run(command: Sequence[str] | None = None) -> None:
    parser = script_parser(__doc__ or "", VARIANTS)
    parser.set_defaults(steps=8000, pairs=40)
    parser.add_argument("--momenta", type=Path, help="folder of the training pairs' momenta; default OUT/momenta")
    parser.add_argument("--samples", type=int, default=20)
    args = parser.parse_args(command)
    names = chosen_variants(parser, args, VARIANTS)
    torch.set_num_threads(1)
    momenta = (args.momenta or args.output / "momenta").absolute()
    for name in names:
        settings = {**VARIANTS[name], "momenta_dir": str(momenta), "num_patches": args.steps * 32 // 10}
        if name == "correction":
            settings["predictor"] = str((args.output / "momentum" / "model.pt").absolute())
        train("quicksilver", args.output / name, args.slices, settings, steps=args.steps, batch_size=32)
    pairs = validation_pairs(args.slices, args.pairs)
    truth, seconds = optimised(pairs, args.output / "optimised.pt")
    rows = measure(args.output, names, pairs, truth, args.samples)
    text = tables(rows, truth, pairs, seconds)
    (args.output / "tables.md").write_text(text)
    (args.output / "rows.json").write_text(json.dumps(rows))
    print(text)


def validation_pairs(slices: Path, number: int) -> list[dict[str, Any]]:
    """Pairs of people not trained on, drawn at random, loaded."""
    items = load_list(slices / "datalist.json", "validation_pairs")
    chosen = np.random.default_rng(0).permutation(len(items))[:number]
    load = LoadPaird(spacing=1.0)
    return [load(items[i]) for i in sorted(chosen)]


def objects() -> ConfigParser:
    """The bundle's 2-D settings for training, with objects to be asked for."""
    config: dict[str, Any] = {}
    for name in ("train", "train_2d"):
        config |= json.loads((BUNDLE / "configs" / f"{name}.json").read_text())
    return ConfigParser(config)


def optimised(pairs: Sequence[Mapping[str, Any]], path: Path) -> tuple[Tensor, float]:
    """Displacements (N, D, *S) of the optimisation that made the training data, and its seconds for one pair alone."""
    if path.exists():
        stored = torch.load(path, weights_only=True)
        if len(stored["ddf"]) == len(pairs):
            return stored["ddf"], stored["seconds"]
    optimizer = objects().get_parsed_content("train#lddmm")
    fields, times = [], []
    for pair in pairs:
        start = time.perf_counter()
        momentum = optimizer(pair["moving"][None], pair["fixed"][None])
        times.append(time.perf_counter() - start)
        with torch.no_grad():
            fields.append(optimizer.deformation(momentum, pair["fixed"].shape[1:])["ddf"])
    ddf, seconds = torch.cat(fields), float(np.median(times))
    torch.save({"ddf": ddf, "seconds": seconds}, path)
    return ddf, seconds


def measure(
    output: Path, names: Sequence[str], pairs: Sequence[Mapping[str, Any]], truth: Tensor, samples: int
) -> list[dict[str, Any]]:
    """A row for each variant and step of the patches."""
    parser = objects()
    size = truth.shape[2:]
    rows = [row("none", torch.zeros_like(truth), truth, pairs), row("optimisation", truth, truth, pairs)]
    base = parser.get_parsed_content("deformation")
    base_network = parser.get_parsed_content("network_def")
    base_network.quantity = ""
    for name in names:
        folder = output / ("momentum" if name == "correction" else name)
        network = load_network(base_network, folder / "model.pt")
        assert network is not None
        correction = load_network(network, output / name / "model.pt") if name == "correction" else None
        special = VARIANTS[name].get("inferer#deformation")
        if special is not None:
            config = {**parser.get(), "special": special}
            deformation = ConfigParser(config).get_parsed_content("special")
        else:
            deformation = base
        options = {"correction": correction, "samples": samples if name == "probabilistic" else 0}
        for step in (14,) if name in ("correction", "probabilistic") else (14, 5):
            inferer = PatchMomentumInferer(deformation, step=step, **options)
            found, times, deviations = [], [], []
            for pair in pairs:
                with torch.no_grad():
                    pred = inferer(pair["image"][None], network)
                found.append(pred["ddf"])
                times.append(float(pred["seconds"][0]))
                if "ddf_samples" in pred:
                    deviations.append(pred["ddf_samples"][0].var(0).sum(0).sqrt())
            line = row(f"{name}, step {step}", torch.cat(found), truth, pairs)
            line["seconds"] = float(np.median(times))
            if deviations:
                error = (torch.cat(found) - truth).norm(dim=1)
                line |= correlations(torch.stack(deviations), error, pairs)
            rows.append(line)
    assert all(r["size"] == list(size) for r in rows)
    return rows


def row(name: str, ddf: Tensor, truth: Tensor, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Percentiles of the error against the optimisation, in mm of pixels of 1 mm; Dice; cases without any fold."""
    brain = torch.stack([pair["label_fixed"][0] > 0 for pair in pairs])
    error = (ddf - truth).norm(dim=1)
    dice = []
    for pair, field in zip(pairs, ddf, strict=True):
        warped = warp(pair["label_moving"][None], field[None], mode="nearest")
        dice.append(float(torch.as_tensor(mean_dice(warped, pair["label_fixed"][None])).float().nanmean()))
    positive = (jacobian_determinant(ddf).flatten(1) > 0).all(1).float().mean()
    return {
        "name": name,
        "all": np.percentile(error.numpy(), PERCENTILES).tolist(),
        "brain": np.percentile(error[brain].numpy(), PERCENTILES).tolist(),
        "dice": dice,
        "positive": float(positive),
        "size": list(ddf.shape[2:]),
    }


def correlations(deviation: Tensor, error: Tensor, pairs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of the predicted deviation with the actual error in the brain, mean over the pairs; and the ratio of the two."""
    values, ratio = [], []
    for sd, e, pair in zip(deviation, error, pairs, strict=True):
        inside = pair["label_fixed"][0] > 0
        ranks = [torch.argsort(torch.argsort(x[inside])).float() for x in (sd, e)]
        values.append(float(torch.corrcoef(torch.stack(ranks))[0, 1]))
        ratio.append(float(sd[inside].mean() / e[inside].mean()))
    return {"correlation": float(np.mean(values)), "deviation": float(np.mean(ratio))}


def tables(rows: Sequence[Mapping[str, Any]], truth: Tensor, pairs: Sequence[Mapping[str, Any]], seconds: float) -> str:
    lines = [f"{len(pairs)} pairs; optimisation {seconds:.2f} s a pair", ""]
    for region in ("all", "brain"):
        heads = ["error, mm, " + region, *[f"{p} %" for p in PERCENTILES], "all det J > 0, %", "Dice", "s", "speed-up"]
        lines += ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
        for r in rows:
            cells = [
                r["name"],
                *[f"{v:.3f}" for v in r[region]],
                f"{100 * r['positive']:.0f}",
                f"{np.mean(r['dice']):.4f}",
            ]
            cells += [f"{r['seconds']:.3f}", f"{seconds / r['seconds']:.0f}"] if "seconds" in r else ["", ""]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    for r in rows:
        if "correlation" in r:
            text = f"{r['name']}: rank correlation of deviation and error {r['correlation']:.3f}, ratio of their means"
            lines.append(f"{text} {r['deviation']:.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    run()
