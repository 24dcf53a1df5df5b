r"""The paper's four experiments, and the meaning of the uncertainty, at a size that two CPU cores can do in hours.

    python data_lists/build.py slices SLABS/datalist.json SLICES --pairs SLABS/pairs_validation.json \
      -o SLICES/datalist.json
    python bundles/voxelmorph_probabilistic/docs/reproduce.py SLICES OUT

SLICES: a folder of 2-D slices with a data list that has the sections training, validation and validation_pairs, labels
included. Every variant is trained by the bundle's train.json and train_2d.json; what is there is not done again. OUT
gets a folder for each variant, `results.json`, `tables.md` and `calibration.png`.

Variants differ from `base` (smoothed posterior, bidirectional, all people, no labels) in one setting each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import Tensor

BUNDLE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BUNDLE.parents[1]))

from custom_components.data.lists import load_list, subject_of  # noqa: E402
from custom_components.data.synthetic import random_velocity  # noqa: E402
from custom_components.fields import (  # noqa: E402
    integrate_velocity,
    jacobian_determinant,
    warp,
)
from custom_components.inferers import RegistrationInferer  # noqa: E402
from custom_components.metrics import mean_dice, replacing  # noqa: E402
from custom_components.transforms.pairs import LoadPaird  # noqa: E402

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "diagonal": {"smoothing": 0},
    "naive": {"trace": "degree"},
    "forward": {"bidirectional": False},
    "people_2": {"people": 2},
    "people_5": {"people": 5},
    "people_10": {"people": 10},
    "segmentation": {"labels": [1, 2, 3, 4]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slices", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--only", default=",".join(VARIANTS), help="variants, separated by commas")
    parser.add_argument("--steps", type=int, default=4500, help="of training, batches of 8 pairs")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--samples", type=int, default=10, help="of the posterior, for each pair")
    parser.add_argument("--pairs", type=int, default=None, help="measure every so manyth validation pair")
    parser.add_argument("--set", nargs="*", default=[], help="settings of train.json for all variants, name=value")
    args = parser.parse_args()
    names = args.only.split(",")
    unknown = set(names) - set(VARIANTS)
    if unknown:
        parser.error(f"there is no variant {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")
    common = dict(item.split("=", 1) for item in args.set)
    with ThreadPoolExecutor(args.workers) as pool:
        list(pool.map(lambda name: run(name, args, common), names))
    results = {name: json.loads((args.output / name / "result.json").read_text()) for name in names}
    (args.output / "results.json").write_text(json.dumps(results, indent=1))
    table = tables(results)
    (args.output / "tables.md").write_text(table)
    if all("uncertainty" in results.get(name, {}) for name in ("base", "diagonal")):
        calibration_picture(args.output / "calibration.png", results)
    print(table)


def run(name: str, args: argparse.Namespace, common: dict[str, str]) -> None:
    """Train and measure one variant in processes of their own, unless that was done."""
    folder = args.output / name
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BUNDLE.parents[1])}
    if not (folder / "model.pt").exists():
        settings = {**common, **VARIANTS[name]}
        data_list = subset(args.slices, folder, settings.pop("people", None))
        epochs = 10
        command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(BUNDLE)]
        command += ["--config_file", str([str(BUNDLE / "configs" / f"{c}.json") for c in ("train", "train_2d")])]
        command += ["--dataset_dir", str(args.slices.absolute()), "--data_list", str(data_list)]
        command += ["--output_dir", str(folder), "--ckpt_dir", str(folder), "--max_epochs", str(epochs)]
        # One validation, at the end: the weights are not chosen by the people they are measured on.
        command += ["--val_interval", str(epochs), "--num_pairs", str(args.steps * 8 // epochs), "--resume", "True"]
        for key, value in settings.items():
            command += [f"--{key}", str(value)]
        with open(folder / "log.txt", "a") as log:
            subprocess.run(command, env=environment, stdout=log, stderr=log, check=True)
    if not (folder / "result.json").exists():
        code = f"import reproduce; reproduce.measure({name!r}, {str(folder)!r}, {str(args.slices)!r}, "
        code += f"{args.samples}, {args.pairs or 1})"
        environment["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def subset(slices: Path, folder: Path, people: int | None) -> Path:
    """The data list with the first so many training people only; all of them: the list itself."""
    path = slices.absolute() / "datalist.json"
    if people is None:
        return path
    content = json.loads(path.read_text())
    chosen = sorted({subject_of(scan) for scan in content["training"]})[:people]
    content["training"] = [scan for scan in content["training"] if subject_of(scan) in chosen]
    (folder / "datalist.json").write_text(json.dumps(content))
    return folder / "datalist.json"


def measure(name: str, folder: str, slices: str, samples: int, every: int) -> None:
    """All measures of a trained variant, over the validation pairs, into FOLDER/result.json."""
    torch.set_num_threads(1)
    smoothing = VARIANTS[name].get("smoothing")
    configs = [str(BUNDLE / "configs" / f"{c}.json") for c in ("train", "train_2d")]
    parser = ConfigParser(ConfigParser.load_config_files(configs))
    parser.update({"bundle_root": str(BUNDLE), "smoothing": smoothing, "device": torch.device("cpu")})
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(Path(folder) / "model.pt", weights_only=True))
    deformation = parser.get_parsed_content("deformation")
    inference = ConfigParser(ConfigParser.load_config_files([c.replace("train", "inference") for c in configs]))
    inference.update({"bundle_root": str(BUNDLE), "smoothing": smoothing, "optimize": 20, "refinement#progress": False})
    refinements = {"refined": inference.get_parsed_content("refinement")}
    # The objective of the training, for the mean alone: the reference's smoothness term is lambda D / 4 of ours.
    weight = parser.get_parsed_content("prior_precision") * parser.get_parsed_content("spatial_dims") / 4
    inference.update({"refinement#loss#similarity": parser["similarity"], "image_sigma": parser["image_sigma"]})
    inference.update({"refinement#loss#weight": weight, "refinement#loss#folding_weight": 0.0})
    refinements["refined_own"] = inference.get_parsed_content("refinement")
    load = LoadPaird(spacing=1.0)
    pairs = [load(pair) for pair in load_list(Path(slices) / "datalist.json", "validation_pairs", slices)[::every]]
    rows = []
    for i, pair in enumerate(pairs):
        inferer = RegistrationInferer(deformation, inverse=True, samples=samples)
        rows.append(measure_pair(inferer, network, pair))
        for key, refinement in refinements.items() if i % 4 == 0 else ():
            inferer = RegistrationInferer(deformation, refinement=refinement)
            rows[-1] |= {"unrefined": rows[-1]["forward"], **measure_refined(inferer, network, pair, key)}
    keys = dict.fromkeys(key for row in rows for key in row)
    result: dict[str, Any] = {key: float(np.mean([row[key] for row in rows if key in row])) for key in keys}
    result["pairs"] = len(pairs)
    for key, refinement in (("uncertainty", None), ("uncertainty_refined", refinements["refined"])):
        inferer = RegistrationInferer(deformation, refinement=refinement, samples=4 * samples)
        result[key] = known_deformations(inferer, network, pairs)
    with replacing(Path(folder) / "result.json") as path:
        path.write_text(json.dumps(result, indent=1))


def dice(ddf: Tensor, pair: dict[str, Any], source: str = "moving", target: str = "fixed") -> float:
    warped = warp(pair[f"label_{source}"][None], ddf, mode="nearest")
    return float(mean_dice(warped, pair[f"label_{target}"][None]))


@torch.no_grad()
def measure_pair(inferer: RegistrationInferer, network: Any, pair: dict[str, Any]) -> dict[str, float]:
    pred = inferer(pair["image"][None], network)
    brain = pair["label_fixed"][None] > 0
    drawn = pred["ddf_samples"][0].split(1)
    folded = [jacobian_determinant(ddf) <= 0 for ddf in drawn]
    return {
        "before": float(mean_dice(pair["label_moving"][None], pair["label_fixed"][None])),
        "forward": dice(pred["ddf"], pair),
        "inverse": dice(pred["inverse_ddf"], pair, "fixed", "moving"),
        "sample": float(np.mean([dice(ddf, pair) for ddf in drawn])),
        "folded": float((jacobian_determinant(pred["ddf"]) <= 0)[brain].sum()),
        "sample_folded": float(np.mean([float(f[brain].sum()) for f in folded])),
        "sample_folded_anywhere": float(np.mean([float(f.sum()) for f in folded])),
        "sd": float(spread(pred["ddf_samples"])[brain].mean()),
    }


@torch.no_grad()
def measure_refined(inferer: RegistrationInferer, network: Any, pair: dict[str, Any], name: str) -> dict[str, float]:
    ddf = inferer(pair["image"][None], network)["ddf"]
    folded = (jacobian_determinant(ddf) <= 0)[pair["label_fixed"][None] > 0].sum()
    return {name: dice(ddf, pair), f"{name}_folded": float(folded)}


def spread(samples: Tensor) -> Tensor:
    """Root of the summed variances of the components, (B, 1, *S), of samples (B, K, D, *S)."""
    return samples.var(1).sum(1, keepdim=True).sqrt()


@torch.no_grad()
def known_deformations(inferer: RegistrationInferer, network: Any, pairs: list[dict], noise: float = 0.03) -> dict:
    """Predicted standard deviation against the actual error, on validation slices deformed by a known map.

    Each fixed slice is deformed by a random velocity, other noise and brightness; both count inside the brain only.
    """
    generator = torch.Generator().manual_seed(0)
    errors, deviations, before = [], [], []
    for pair in pairs[:: max(1, len(pairs) // 48)]:
        fixed, brain = pair["fixed"][None], pair["label_fixed"][None] > 0
        size = fixed.shape[2:]
        velocity = random_velocity(size, amplitude=8.0, spacings=(16.0, 32.0), generator=generator)
        truth, inverse = integrate_velocity(velocity), integrate_velocity(-velocity)
        moving = warp(fixed, inverse)  # so that fixed(x) = moving(truth(x))
        gain = 1 + 0.1 * (2 * torch.rand(1, generator=generator) - 1)
        moving = (gain * moving + noise * torch.randn(size, generator=generator)).clamp(0, 1)
        target = (fixed + noise * torch.randn(size, generator=generator)).clamp(0, 1)
        pred = inferer(torch.cat([moving, target], 1), network)
        errors.append((pred["ddf"] - truth).norm(dim=1, keepdim=True)[brain])
        before.append(truth.norm(dim=1, keepdim=True)[brain])
        deviations.append(spread(pred["ddf_samples"])[brain])
    within = [float(torch.corrcoef(torch.stack([e, d]))[0, 1]) for e, d in zip(errors, deviations, strict=True)]
    ranks = [
        float(torch.corrcoef(torch.stack([e, d]).argsort(1).argsort(1).float())[0, 1])
        for e, d in zip(errors, deviations, strict=True)
    ]
    error, deviation = torch.cat(errors), torch.cat(deviations)
    order = deviation.argsort()
    bins = order.tensor_split(10)
    return {
        "pairs": len(errors),
        "before": float(torch.cat(before).mean()),
        "error": float(error.mean()),
        "error_rms": float(error.square().mean().sqrt()),
        "sd_rms": float(deviation.square().mean().sqrt()),
        "correlation": float(torch.corrcoef(torch.stack([error, deviation]))[0, 1]),
        "correlation_within_pair": float(np.mean(within)),
        "rank_correlation_within_pair": float(np.mean(ranks)),
        "bins_sd": [float(deviation[i].square().mean().sqrt()) for i in bins],
        "bins_error": [float(error[i].square().mean().sqrt()) for i in bins],
    }


def tables(results: dict[str, dict[str, Any]]) -> str:
    columns = {
        "forward Dice": "forward",
        "inverse Dice": "inverse",
        "sample Dice": "sample",
        "of every fourth pair": "unrefined",
        "refined (LNCC)": "refined",
        "refined (own)": "refined_own",
        "folds, mean": "folded",
        "folds, sample": "sample_folded",
        "folds, sample, anywhere": "sample_folded_anywhere",
        "SD, pixels": "sd",
    }
    lines = ["| variant | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for name, row in results.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[key]:.4f}" for key in columns.values()) + " |")
    lines += [
        "",
        "| variant | error, mean | error, RMS | SD, RMS | correlation | within a pair | ranks |",
        "|" + "---|" * 7,
    ]
    keys = ("error", "error_rms", "sd_rms", "correlation", "correlation_within_pair", "rank_correlation_within_pair")
    for name, row in results.items():
        for kind, text in (("uncertainty", name), ("uncertainty_refined", f"{name}, refined")):
            lines.append(f"| {text} | " + " | ".join(f"{row[kind][key]:.3f}" for key in keys) + " |")
    return "\n".join(lines) + "\n"


def calibration_picture(path: Path, results: dict[str, dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 5))
    for name, colour in (("base", "tab:blue"), ("diagonal", "tab:orange"), ("naive", "tab:green")):
        if name in results:
            for kind, style in (("uncertainty", "o-"), ("uncertainty_refined", "s--")):
                row = results[name][kind]
                label = name if kind == "uncertainty" else f"{name}, mean refined for the pair"
                axes.plot(row["bins_sd"], row["bins_error"], style, color=colour, label=label)
    top = 1.05 * max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([0, top], [0, top], "k:", label="calibrated")
    axes.set(xlim=(0, top), ylim=(0, top), xlabel="predicted SD, pixels (deciles)", ylabel="actual error, RMS, pixels")
    axes.legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
