r"""The paper's four experiments, and the meaning of the uncertainty, at a size that two CPU cores can do in hours.

    python data_lists/build.py slices SLABS/datalist.json SLICES --pairs SLABS/pairs_validation.json \
      -o SLICES/datalist.json
    python bundles/voxelmorph_probabilistic/docs/reproduce.py SLICES OUT

SLICES: a folder of 2-D slices with a data list that has the sections training, validation and validation_pairs, labels
included; file names begin with the person and "_". Every variant is trained by the bundle's train.json and
train_2d.json on the middle of the slices, and measured on whole slices; what is there is not done again. OUT gets a
folder for each variant, with a row for each pair, and `results.json`, `tables.md` and `calibration.png`.

Variants differ from `base` (smoothed posterior, bidirectional, all people, no labels) in one setting each.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import Tensor

BUNDLE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BUNDLE.parents[1]))

from benchmarks.experiments import chosen_variants, interval, read_rows, script_parser, train
from custom_components.data.lists import load_list, subject_of
from custom_components.data.phantoms import random_velocity
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import integrate_velocity, jacobian_determinant, warp
from custom_components.files import replacing
from custom_components.inference.registration import RegistrationInferer
from custom_components.methods.voxelmorph_probabilistic.deformation import GaussianVelocity
from custom_components.methods.voxelmorph_probabilistic.gaussian import default_smoothing, prior_trace
from custom_components.methods.voxelmorph_probabilistic.inference import SamplesInferer
from custom_components.transforms.load import LoadPaird

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "diagonal": {"smoothing": 0},
    "naive": {"trace": "degree"},
    "forward": {"bidirectional": False},
    "people_2": {"people": 2},
    "people_5": {"people": 5},
    "people_10": {"people": 10},
    "people_2_others": {"people": -2},
    "people_5_others": {"people": -5},
    "segmentation": {"labels": [1, 2, 3, 4]},
}
POSTERIORS = ("base", "diagonal", "naive")  # whose uncertainty is compared with known errors


def main() -> None:
    parser = script_parser(__doc__, VARIANTS)
    parser.add_argument("--samples", type=int, default=10, help="of the posterior, for each pair")
    parser.add_argument("--size", default="[144, 176]", help="of the middle of the slices that training sees")
    parser.add_argument("--measure", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = chosen_variants(parser, args, VARIANTS)
    if args.measure:
        measure(args.measure, args.output / args.measure, args.slices, args.samples, args.pairs)
        return
    with ThreadPoolExecutor(args.workers) as pool:
        list(pool.map(lambda name: run(name, args), names))
    done = [name for name in VARIANTS if (args.output / name / "result.json").exists()]
    results = {name: json.loads((args.output / name / "result.json").read_text()) for name in done}
    rows = {name: read_rows(args.output / name / "rows.csv") for name in done}
    (args.output / "results.json").write_text(json.dumps(results, indent=1))
    table = tables(results, rows) + "\n" + prior_table()
    (args.output / "tables.md").write_text(table)
    if {"base", "diagonal"} <= set(done):
        calibration_picture(args.output / "calibration.png", results)
    print(table)


def run(name: str, args: argparse.Namespace) -> None:
    """Train and measure one variant in processes of their own, unless that was done."""
    folder = args.output / name
    settings = {"size": json.loads(args.size), **VARIANTS[name]}
    people = settings.pop("people", None)
    folder.mkdir(parents=True, exist_ok=True)
    train(
        "voxelmorph_probabilistic",
        folder,
        args.slices,
        settings,
        steps=args.steps,
        data_list=subset(args.slices, folder, people),
    )
    if not (folder / "result.json").exists():
        command = [sys.executable, __file__, str(args.slices), str(args.output), "--measure", name]
        command += ["--samples", str(args.samples), "--pairs", str(args.pairs)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, check=True)


def subset(slices: Path, folder: Path, people: int | None) -> Path:
    """The data list with the first (below 0: the last) so many training people only; None: the list itself."""
    path = slices.absolute() / "datalist.json"
    if people is None:
        return path
    content = json.loads(path.read_text())
    everybody = sorted({subject_of(scan) for scan in content["training"]})
    chosen = everybody[:people] if people > 0 else everybody[people:]
    content["training"] = [scan for scan in content["training"] if subject_of(scan) in chosen]
    (folder / "datalist.json").write_text(json.dumps(content))
    return folder / "datalist.json"


def measure(name: str, folder: Path, slices: Path, samples: int, num_pairs: int) -> None:
    """All measures of a trained variant: FOLDER/rows.csv, a line for each pair, and FOLDER/result.json."""
    torch.set_num_threads(1)
    smoothing = VARIANTS[name].get("smoothing")
    configs = [str(BUNDLE / "configs" / f"{c}.json") for c in ("train", "train_2d")]
    parser = ConfigParser(ConfigParser.load_config_files(configs))
    parser.update({"bundle_root": str(BUNDLE), "smoothing": smoothing, "device": torch.device("cpu")})
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    deformation = parser.get_parsed_content("deformation")
    inference = ConfigParser(ConfigParser.load_config_files([c.replace("train", "inference") for c in configs]))
    inference.update({"bundle_root": str(BUNDLE), "smoothing": smoothing, "optimize": 20, "refinement#progress": False})
    refinements = {"refined": inference.get_parsed_content("refinement")}
    # The training's objective in one direction, for the mean alone: its smoothness term is lambda D / 4 of ours.
    weight = parser.get_parsed_content("prior_precision") * parser.get_parsed_content("spatial_dims") / 4
    inference.update({"refinement#loss#similarity": parser["similarity"], "image_sigma": parser["image_sigma"]})
    inference.update({"refinement#loss#weight": weight, "refinement#loss#folding_weight": 0.0})
    refinements["refined_own"] = inference.get_parsed_content("refinement")
    items = load_list(slices / "datalist.json", "validation_pairs", slices)
    # In random order: the list has the levels of a brain in turn, and every so manyth pair would be of one level.
    items = [items[i] for i in np.random.default_rng(0).permutation(len(items))[:num_pairs]]
    load = LoadPaird(spacing=1.0)
    rows = []
    for i, item in enumerate(items):
        pair = load(item)
        row = {role: Path(item[role]).name.partition("_")[0] for role in ("moving", "fixed")}
        registration = RegistrationInferer(deformation, inverse=True)
        inferer = SamplesInferer(registration, deformation, samples=samples, seed=i)
        row |= measure_pair(inferer, network, pair)
        if i < num_pairs // 3:
            row["unrefined"] = row["forward"]
            for key, refinement in refinements.items():
                row |= measure_refined(RegistrationInferer(deformation, refinement=refinement), network, pair, key)
            if name == "base":
                row["white_folded"] = white_folds(network, deformation, pair, samples, seed=i)
        rows.append(row)
    columns = dict.fromkeys(key for row in rows for key in row)
    with replacing(folder / "rows.csv") as path, open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    numbers = [key for key in columns if key not in ("moving", "fixed")]
    result: dict[str, Any] = {key: float(np.mean([row[key] for row in rows if key in row])) for key in numbers}
    result |= {"pairs": len(rows), "refined_pairs": sum("refined" in row for row in rows)}
    if name in POSTERIORS:
        fixed = {item["fixed"]: item for item in items}  # each slice once
        pairs = [load(item) for item in list(fixed.values())[:48]]
        for key, refinement in (("uncertainty", None), ("uncertainty_refined", refinements["refined"])):
            result[key] = known_deformations(deformation, refinement, network, pairs, 10 * samples)
    with replacing(folder / "result.json") as path:
        path.write_text(json.dumps(result, indent=1))


def dice(ddf: Tensor, pair: dict[str, Any], source: str = "moving", target: str = "fixed") -> float:
    warped = warp(pair[f"label_{source}"][None], ddf, mode="nearest")
    return float(mean_dice(warped, pair[f"label_{target}"][None]))


def folds(ddf: Tensor, brain: Tensor) -> float:
    """Pixels of the brain with det J <= 0."""
    return float((jacobian_determinant(ddf) <= 0)[brain].sum())


@torch.no_grad()
def measure_pair(inferer: SamplesInferer, network: Any, pair: dict[str, Any]) -> dict[str, float]:
    pred = inferer(pair["image"][None], network)
    brain = pair["label_fixed"][None] > 0
    drawn = pred["ddf_samples"][0].split(1)
    row = {
        "before": float(mean_dice(pair["label_moving"][None], pair["label_fixed"][None])),
        "forward": dice(pred["ddf"], pair),
        "inverse": dice(pred["inverse_ddf"], pair, "fixed", "moving"),
        "sample": float(np.mean([dice(ddf, pair) for ddf in drawn])),
        "folded": folds(pred["ddf"], brain),
        "sample_folded": float(np.mean([folds(ddf, brain) for ddf in drawn])),
        "sd": float(spread(pred["ddf_samples"])[brain].mean()),
    }
    return {**row, "difference": abs(row["forward"] - row["inverse"])}


@torch.no_grad()
def measure_refined(inferer: RegistrationInferer, network: Any, pair: dict[str, Any], name: str) -> dict[str, float]:
    ddf = inferer(pair["image"][None], network)["ddf"]
    return {name: dice(ddf, pair), f"{name}_folded": folds(ddf, pair["label_fixed"][None] > 0)}


@torch.no_grad()
def white_folds(network: Any, deformation: Any, pair: dict[str, Any], samples: int, seed: int) -> float:
    """Folds a sample of the same mean with white noise that spreads the displacement in the brain as much."""
    white = GaussianVelocity(deformation.num_steps, smoothing=0)
    brain = pair["label_fixed"][None] > 0
    parameters = network(pair["image"][None])
    dims = parameters.shape[1] // 2

    def draw(source: GaussianVelocity) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        fields = [source.draw(parameters, brain.shape[2:], generator=generator)["ddf"] for _ in range(samples)]
        return torch.stack(fields, 1)

    wanted = spread(draw(deformation))[brain].mean()
    for _ in range(4):
        fields = draw(white)
        parameters[:, dims:] += 2 * torch.log(wanted / spread(fields)[brain].mean())
    return float(np.mean([folds(ddf, brain) for ddf in fields[0].split(1)]))


def spread(samples: Tensor) -> Tensor:
    """Root of the summed variances of the components, (B, 1, *S), of samples (B, K, D, *S)."""
    return samples.var(1).sum(1, keepdim=True).sqrt()


@torch.no_grad()
def known_deformations(
    deformation: Any, refinement: Any, network: Any, pairs: Sequence[dict[str, Any]], samples: int, noise: float = 0.03
) -> dict[str, Any]:
    """Predicted standard deviation against the actual error, on validation slices deformed by a known map.

    Each slice is deformed by a random velocity (B-splines of 16 and 32 pixels, at most 8 pixels long), with other noise
    and brightness; only the brain counts. For the calibration, pixels are sorted by the deviation of half the samples,
    and that of the other half is reported, so that the deviations' own sampling error does not sort them.
    """
    generator = torch.Generator().manual_seed(0)
    errors, before, halves, deviations = [], [], [], []
    for i, pair in enumerate(pairs):
        fixed, brain = pair["fixed"][None], pair["label_fixed"][None] > 0
        size = fixed.shape[2:]
        velocity = random_velocity(size, amplitude=8.0, spacings=(16.0, 32.0), generator=generator)
        truth, inverse = integrate_velocity(velocity), integrate_velocity(-velocity)
        moving = warp(fixed, inverse)  # so that fixed(x) = moving(truth(x))
        gain = 1 + 0.1 * (2 * torch.rand(1, generator=generator) - 1)
        moving = (gain * moving + noise * torch.randn(size, generator=generator)).clamp(0, 1)
        target = (fixed + noise * torch.randn(size, generator=generator)).clamp(0, 1)
        registration = RegistrationInferer(deformation, refinement=refinement)
        inferer = SamplesInferer(registration, deformation, samples=samples, seed=i)
        pred = inferer(torch.cat([moving, target], 1), network)
        drawn = pred["ddf_samples"]
        errors.append((pred["ddf"] - truth).norm(dim=1, keepdim=True)[brain])
        before.append(truth.norm(dim=1, keepdim=True)[brain])
        halves.append(torch.stack([spread(half)[brain] for half in drawn.chunk(2, 1)]))
        deviations.append(spread(drawn)[brain])
    both = [torch.stack(one) for one in zip(errors, deviations, strict=True)]
    error, deviation = torch.cat(both, 1)
    first, second = torch.cat(halves, 1)
    bins = first.argsort().tensor_split(10)
    return {
        "pairs": len(pairs),
        "before": float(torch.cat(before).mean()),
        "error": float(error.mean()),
        "error_rms": rms(error),
        "sd_rms": rms(deviation),
        "correlation": float(torch.corrcoef(torch.stack([error, deviation]))[0, 1]),
        "correlation_within_pair": float(np.mean([float(torch.corrcoef(one)[0, 1]) for one in both])),
        "rank_correlation_within_pair": float(np.mean([float(torch.corrcoef(ranks(one))[0, 1]) for one in both])),
        "bins_sd": [rms(second[i]) for i in bins],
        "bins_error": [rms(error[i]) for i in bins],
    }


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def ranks(values: Tensor) -> Tensor:
    return values.argsort(1).argsort(1).float()


def tables(results: dict[str, dict[str, Any]], rows: dict[str, list[dict[str, Any]]]) -> str:
    columns = {
        "before": "before",
        "forward": "forward",
        "inverse": "inverse",
        "mean \\|forward - inverse\\|": "difference",
        "a sample": "sample",
        "a third of the pairs": "unrefined",
        "refined (LNCC)": "refined",
        "refined (own)": "refined_own",
        "folds, mean": "folded",
        "folds, sample": "sample_folded",
        "folds, white noise of that SD": "white_folded",
        "SD, pixels": "sd",
    }
    lines = ["| variant | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for name, row in results.items():
        cells = [f"{row[key]:.4f}" if key in row else "" for key in columns.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if "base" in rows:
        lines += ["", "| variant - base | forward | inverse | refined (LNCC) | refined (own) |", "|" + "---|" * 5]
        keys = ("forward", "inverse", "refined", "refined_own")
        for name in [name for name in rows if name != "base"]:
            lines.append(f"| {name} | " + " | ".join(interval(rows[name], rows["base"], key) for key in keys) + " |")
    lines += ["", "| | error, mean | error, RMS | SD, RMS | correlation | within a pair | of ranks |", "|" + "---|" * 7]
    keys = ("error", "error_rms", "sd_rms", "correlation", "correlation_within_pair", "rank_correlation_within_pair")
    for name, row in results.items():
        for kind, text in (("uncertainty", name), ("uncertainty_refined", f"{name}, refined")):
            if kind in row:
                lines.append(f"| {text} | " + " | ".join(f"{row[kind][key]:.3f}" for key in keys) + " |")
    return "\n".join(lines) + "\n"


@torch.no_grad()
def prior_table(samples: int = 100) -> str:
    """What the divergence alone makes of both posteriors: zero mean, the best log variance, no image."""
    lines = ["| lambda | smoothing | SD, pixels | SD of log det J | folds a sample |", "|" + "---|" * 5]
    size, half = (144, 176), (72, 88)
    for precision in (0.5, 1.0, 2.0, 10.0):
        for smoothing in (0.0, default_smoothing(precision, 2)):
            kappa = prior_trace(half, smoothing, like=torch.zeros(1))
            log_variance = -torch.log(precision * kappa).expand(samples, 2, *half)
            parameters = torch.cat([torch.zeros_like(log_variance), log_variance], 1)
            generator = torch.Generator().manual_seed(0)
            ddf = GaussianVelocity(smoothing=smoothing).draw(parameters, size, generator=generator)["ddf"]
            determinant = jacobian_determinant(ddf)
            spread_log = float(determinant.clamp(min=1e-3).log().std())
            numbers = [rms(ddf.square().sum(1).sqrt()), spread_log, float((determinant <= 0).sum()) / samples]
            lines.append(f"| {precision} | {smoothing:.2f} | " + " | ".join(f"{x:.2f}" for x in numbers) + " |")
    return "\n".join(lines) + "\n"


def calibration_picture(path: Path, results: dict[str, dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 5))
    for name, colour in zip(POSTERIORS, ("tab:blue", "tab:orange", "tab:green"), strict=True):
        for kind, style in (("uncertainty", "o-"), ("uncertainty_refined", "s--")):
            if kind in results.get(name, {}):
                row = results[name][kind]
                label = name if kind == "uncertainty" else f"{name}, mean refined for the pair"
                axes.plot(row["bins_sd"], row["bins_error"], style, color=colour, label=label)
    top = 1.05 * max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([0, top], [0, top], "k:", label="calibrated")
    axes.set(xlim=(0, top), ylim=(0, top), xlabel="predicted SD, pixels (deciles)", ylabel="actual error, RMS, pixels")
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
