r"""The paper's four experiments, and what the uncertainty means, at a size that two CPU cores can do in hours.

    python -m data_lists.build slices SLABS/datalist.json SLICES --pairs SLABS/pairs_validation.json \
      -o SLICES/datalist.json
    python -m benchmarks.voxelmorph_probabilistic SLICES OUT

SLICES is a folder of 2-D slices with a data list that has the sections training, validation and validation_pairs, with
labels; file names begin with the person and "_". Every variant is trained by the bundle's train.json and train_2d.json
on the middle of the slices, and measured on whole slices. Finished parts are kept. OUT receives a folder for each
variant, with a row for each pair, and `results.json`, `tables.md` and `calibration.png`.

Each variant differs in one setting from `base` (smoothed posterior, bidirectional, all people, no labels).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiments import (
    NARROW,
    at_once,
    chosen_variants,
    experiment_parser,
    interval,
    markdown,
    read_rows,
    train,
    write_and_print,
)
from benchmarks.voxelmorph_probabilistic_measures import measure, rms
from custom_components.data.lists import subject_of
from custom_components.fields import jacobian_determinant
from custom_components.methods.voxelmorph_probabilistic.deformation import GaussianVelocity
from custom_components.methods.voxelmorph_probabilistic.gaussian import default_smoothing, prior_trace

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "diagonal": {"smoothing": 0},
    "naive": {"kl_trace": "degree"},
    "forward": {"bidirectional": False},
    "people_2": {"people": 2},
    "people_5": {"people": 5},
    "people_10": {"people": 10},
    "people_2_others": {"people": -2},
    "people_5_others": {"people": -5},
    "segmentation": {"labels": [1, 2, 3, 4]},
}
POSTERIORS = ("base", "diagonal", "naive")  # their uncertainty is compared with known errors


def main(command: Sequence[str] | None = None) -> None:
    parser = experiment_parser(__doc__, VARIANTS)
    parser.add_argument("--samples", type=int, default=10, help="of the posterior, for each pair")
    parser.add_argument("--size", default="[144, 176]", help="of the middle of the slices, for training")
    parser.add_argument("--measure", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args(command)
    names = chosen_variants(parser, args.only, VARIANTS)
    if args.measure:
        torch.set_num_threads(1)
        measure_variant(args.measure, args.output / args.measure, args.slices, args.samples, args.pairs)
        return
    at_once(args.workers, lambda name: run(name, args), names)
    done = [name for name in VARIANTS if (args.output / name / "result.json").exists()]
    results = {name: json.loads((args.output / name / "result.json").read_text()) for name in done}
    rows = {name: read_rows(args.output / name / "rows.csv") for name in done}
    (args.output / "results.json").write_text(json.dumps(results, indent=1))
    if {"base", "diagonal"} <= set(done):
        calibration_picture(args.output / "calibration.png", results)
    write_and_print(args.output / "tables.md", tables(results, rows) + "\n" + prior_table())


def run(name: str, args: argparse.Namespace) -> None:
    """Train and measure one variant in processes of their own, unless that was done."""
    folder = args.output / name
    settings = {"size": json.loads(args.size), **NARROW, **VARIANTS[name]}
    people = settings.pop("people", None)
    folder.mkdir(parents=True, exist_ok=True)
    data_list = subset(args.slices, folder, people)
    train("voxelmorph_probabilistic", folder, args.slices, settings, steps=args.steps, data_list=data_list)
    if not (folder / "result.json").exists():
        command = [sys.executable, "-m", "benchmarks.voxelmorph_probabilistic", str(args.slices), str(args.output)]
        command += ["--measure", name, "--samples", str(args.samples), "--pairs", str(args.pairs)]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)


def measure_variant(name: str, folder: Path, slices: Path, samples: int, num_pairs: int) -> None:
    measure(
        folder,
        slices,
        smoothing=VARIANTS[name].get("smoothing"),
        samples=samples,
        num_pairs=num_pairs,
        white_noise=name == "base",
        known=name in POSTERIORS,
    )


def subset(slices: Path, folder: Path, people: int | None) -> Path:
    """The data list with the first `people` training people (the last, if negative); None: the list itself."""
    path = slices.absolute() / "datalist.json"
    if people is None:
        return path
    content = json.loads(path.read_text())
    everybody = sorted({subject_of(scan) for scan in content["training"]})
    chosen = everybody[:people] if people > 0 else everybody[people:]
    content["training"] = [scan for scan in content["training"] if subject_of(scan) in chosen]
    (folder / "datalist.json").write_text(json.dumps(content))
    return folder / "datalist.json"


def tables(results: dict[str, dict[str, Any]], rows: dict[str, list[dict[str, Any]]]) -> str:
    return "\n".join([measures_table(results), differences_table(rows), uncertainty_table(results)])


def measures_table(results: dict[str, dict[str, Any]]) -> str:
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
    lines = [
        [name, *(f"{row[key]:.4f}" if key in row else "" for key in columns.values())] for name, row in results.items()
    ]
    return markdown(["variant", *columns], lines)


def differences_table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Each variant less the base."""
    if "base" not in rows:
        return ""
    keys = ("forward", "inverse", "refined", "refined_own")
    lines = [
        [name, *(interval(some, rows["base"], key) for key in keys)] for name, some in rows.items() if name != "base"
    ]
    return markdown(["variant - base", "forward", "inverse", "refined (LNCC)", "refined (own)"], lines)


def uncertainty_table(results: dict[str, dict[str, Any]]) -> str:
    keys = ("error", "error_rms", "sd_rms", "correlation", "correlation_within_pair", "rank_correlation_within_pair")
    lines = []
    for name, row in results.items():
        for kind, text in (("uncertainty", name), ("uncertainty_refined", f"{name}, refined")):
            if kind in row:
                lines.append([text, *(float(row[kind][key]) for key in keys)])
    return markdown(["", "error, mean", "error, RMS", "SD, RMS", "correlation", "within a pair", "of ranks"], lines)


@torch.no_grad()
def prior_table(samples: int = 100) -> str:
    """What the divergence alone makes of both posteriors: zero mean, the best log variance, no image."""
    lines = []
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
            lines.append([str(precision), f"{smoothing:.2f}", *(f"{x:.2f}" for x in numbers)])
    return markdown(["lambda", "smoothing", "SD, pixels", "SD of log det J", "folds a sample"], lines)


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
