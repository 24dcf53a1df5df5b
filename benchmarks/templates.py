r"""Templates of a group: `morphzoo template` against the mean, the classical average, the learned atlas and ANTs.

    python -m benchmarks.conditional_atlas SLICES HEADS OUT --only brains,heads
    python -m benchmarks.templates OUT [--ants FOLDER]

OUT is the folder of benchmarks.conditional_atlas, whose scans, baselines and networks are judged by the same measures.
FOLDER holds brains.npy and heads.npy, the templates that ANTs makes of OUT/templates/<data>/*.nii.gz, in an environment
of its own:

    ants.build_template(image_list=[ants.image_read(path) for path in sorted(paths)], iterations=4)
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from benchmarks.conditional_atlas_data import load, network_of
from benchmarks.conditional_atlas_templates import by_optimization, judge
from benchmarks.experiments import measure_once, write_and_print
from custom_components.commands.template import template

DATA = ("brains", "heads")
VARIANTS: dict[str, dict[str, Any]] = {
    "synthmorph": {},
    "svf": {"model": "svf"},
    "svf, median": {"model": "svf", "average": "median"},
    "svf, sharpened": {"model": "svf", "sharpen": 0.2},
    "svf, symmetric": {"model": "svf", "symmetric": True},
}
COLUMNS = ["sharpness", "sharpness_scaled", "central", "central_max", "dice_pairs", "dice_voted", "ncc_pairs"]


def main(command: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--ants", type=Path)
    parser.add_argument("--only", default=",".join(DATA))
    parser.add_argument("--variants", default=";".join(VARIANTS), help="separated by semicolons")
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args(command)
    text = ""
    for data in args.only.split(","):
        rows = measured(data, args.output, args.ants, args.rounds, args.variants.split(";"))
        text += f"{data}\n\n| template | {' | '.join(COLUMNS)} | CPU s |\n|{'---|' * (len(COLUMNS) + 2)}\n"
        for name, row in rows.items():
            cells = [f"{row[key]:.3f}" if key in row else "" for key in COLUMNS]
            text += f"| {name} | {' | '.join(cells)} | {row.get('cpu_seconds', float('nan')):.0f} |\n"
        text += "\n"
    write_and_print(args.output / "templates.md", text)


def measured(
    data: str, output: Path, ants: Path | None, rounds: int, variants: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Measures of each template, all registered to by the same optimisation."""
    training, validation = (load(data, section, output) for section in ("training", "validation"))
    folder = output / "templates"
    scans = write_scans(training["image"], folder / data)
    rows: dict[str, dict[str, Any]] = {}

    def judged(name: str, image: torch.Tensor, seconds: float = float("nan")) -> None:
        path = folder / f"{data}_{name.replace(', ', '_')}.json"
        row = measure_once(path, lambda: judge(image, by_optimization(image), training, validation))
        rows[name] = {**row, "cpu_seconds": seconds}

    for name in variants:
        place = folder / f"{data}_{name.replace(', ', '_')}"
        make = functools.partial(made, scans, place, rounds, VARIANTS[name])
        log = measure_once(place.with_suffix(".seconds.json"), make)
        judged(name, image_of(place), log["cpu_seconds"])
    judged("mean", training["image"].mean(0, keepdim=True))
    if (output / f"{data}_classical.pt").is_file():
        baselines = json.loads((output / f"{data}_baselines.json").read_text())
        judged("classical", torch.load(output / f"{data}_classical.pt"), baselines["classical_cpu_seconds"])
    if (output / data / "model.pt").is_file():
        judged("learned", network_of(output / data).template().detach())
    if ants is not None:
        judged("ANTs", torch.from_numpy(np.load(ants / f"{data}.npy"))[None, None].float())
    return rows


def write_scans(images: torch.Tensor, folder: Path) -> Path:
    """Slices as files, of voxels of 1 mm."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(images[:, 0]):
        nib.save(nib.Nifti1Image(image.numpy()[..., None], np.eye(4)), folder / f"{k:02d}.nii.gz")
    return folder


def made(scans: Path, place: Path, rounds: int, settings: dict[str, Any]) -> dict[str, float]:
    """The CPU seconds that a template took."""
    start = time.process_time()
    template(str(scans), str(place), affine="none", rounds=rounds, spacing=1.0, **settings)
    return {"cpu_seconds": time.process_time() - start}


def image_of(place: Path) -> torch.Tensor:
    """A template (1, 1, *S)."""
    return torch.from_numpy(np.asarray(nib.load(place / "template.nii.gz").dataobj)).float()[None, None, ..., 0]


if __name__ == "__main__":
    main()
