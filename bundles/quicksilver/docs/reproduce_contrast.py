r"""T1 to T2 with momenta of T1 to T1: a network of two contrasts against one of one contrast and the optimisation.

    python bundles/quicksilver/docs/reproduce_contrast.py SLICES OUT

SLICES: a folder with a data list whose scans have `image_t1` and `image_t2` of one person on one 2-D grid, in the
sections training and validation. Each slice and its mirror image train; every ordered pair of the validation people is
measured.
The result is judged by what the network did not see: the fixed person's T1. What is there is not done again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.experiments import EPOCHS, train
from custom_components.evaluation.metrics import folding_fraction, normalized_cross_correlation
from custom_components.fields import warp
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.similarity import LNCC, MIND
from custom_components.methods.quicksilver.inference import PatchPredictor
from custom_components.methods.quicksilver.network import load_network
from custom_components.transforms.load import LoadScand

CONFIGS = REPOSITORY / "bundles" / "quicksilver" / "configs"
SEEN = {"T1 to T2": ["moving", "contrast_fixed"], "T1 to T1": None}
SETTINGS = {"size": [152, 240], "spacing": 1.0}


def run(command: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("slices", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=4000, help="of training, batches of 32 patches")
    args = parser.parse_args(command)
    torch.set_num_threads(1)
    folder = args.output.absolute()
    scans = copies(args.slices, folder / "slices")
    for name, inputs in SEEN.items():
        settings = {
            **SETTINGS,
            "inputs": inputs,
            "num_momenta": 240,
            "num_patches": args.steps * 32 // EPOCHS,
            "momenta_dir": str(folder / "momenta"),
            "num_val_pairs": 6,
        }
        train(
            "quicksilver", folder / name.replace(" ", "_"), folder / "slices", settings, steps=args.steps, batch_size=32
        )
    lines = measure(folder, scans["validation"])
    (folder / "table.md").write_text(lines)
    print(lines)


def copies(source: Path, target: Path) -> dict[str, list[dict[str, str]]]:
    """The slices and, of the training people, their mirror images, with a data list of the bundles' form."""
    target.mkdir(parents=True, exist_ok=True)
    found = json.loads((source / "datalist.json").read_text())
    sections: dict[str, list[dict[str, str]]] = {"training": [], "validation": []}
    for section, scans in sections.items():
        for item, mirror in itertools.product(found[section], (False, True)):
            if mirror and section == "validation":
                continue
            scan = {"subject": item["subject"]}
            for key, contrast in (("image", "t1"), ("contrast", "t2")):
                image = nib.load(source / item[f"image_{contrast}"])
                values = np.asarray(image.dataobj)
                name = f"{item['subject']}_{contrast}{'_mirror' if mirror else ''}.nii.gz"
                nib.save(nib.Nifti1Image(values[::-1] if mirror else values, image.affine), target / name)
                scan[key] = name
            scans.append(scan)
    (target / "datalist.json").write_text(json.dumps(sections, indent=1))
    return sections


def measure(folder: Path, scans: Sequence[Mapping[str, str]]) -> str:
    """A table: correlation with the fixed person's T1, and distance from the optimisation that saw both T1."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.json") for name in ("train", "train_2d")])
    parser.update(SETTINGS)
    optimizer, deformation = parser.get_parsed_content("train#lddmm"), parser.get_parsed_content("deformation")
    network = parser.get_parsed_content("network_def")
    load = LoadScand(spacing=1.0, size=SETTINGS["size"], center="image")
    people = [load({key: str(folder / "slices" / scan[key]) for key in ("image", "contrast")}) for scan in scans]
    pairs = [(a["image"][None], b["image"][None], b["contrast"][None]) for a, b in itertools.permutations(people, 2)]

    def optimised(moving: Tensor, fixed: Tensor, similarity: Any) -> Tensor:
        optimizer.loss.similarity = similarity
        momentum = optimizer(moving, fixed)
        with torch.no_grad():
            return deformation(momentum, fixed.shape[2:])["ddf"]

    def predicted(moving: Tensor, fixed: Tensor, name: str) -> Tensor:
        trained = load_network(network, folder / name.replace(" ", "_") / "model.pt")
        with torch.no_grad():
            return RegistrationInferer(deformation, PatchPredictor())(torch.cat([moving, fixed], 1), trained)["ddf"]

    methods: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "optimisation, T1 to T1 (the teacher)": lambda m, t1, _t2: optimised(m, t1, LNCC(9)),
        "none": lambda m, t1, _t2: torch.zeros_like(m).expand(-1, 2, -1, -1),
        "optimisation, T1 to T2, LNCC": lambda m, _t1, t2: optimised(m, t2, LNCC(9)),
        "optimisation, T1 to T2, MIND": lambda m, _t1, t2: optimised(m, t2, MIND()),
        "network of T1 to T1, shown T1 and T1": lambda m, t1, _t2: predicted(m, t1, "T1 to T1"),
        "network of T1 to T1, shown T1 and T2": lambda m, _t1, t2: predicted(m, t2, "T1 to T1"),
        "network of T1 to T2, shown T1 and T2": lambda m, _t1, t2: predicted(m, t2, "T1 to T2"),
    }
    heads = ["", "correlation", "LNCC", "median error, mm", "95 %, mm", "det J <= 0, %", "s"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    truth: list[Tensor] = []
    for name, method in methods.items():
        rows = []
        for i, (moving, t1, t2) in enumerate(pairs):
            start = time.perf_counter()
            ddf = method(moving, t1, t2)
            seconds = time.perf_counter() - start
            if "teacher" in name:
                truth.append(ddf)
            warped = warp(moving, ddf)
            scores = [float(normalized_cross_correlation(warped, t1)), 1 - float(LNCC(9)(warped, t1))]
            head = (t1 > 0.05)[0, 0]
            error = (ddf - truth[i]).norm(dim=1)[0][head]
            scores += [
                float(error.quantile(0.5)),
                float(error.quantile(0.95)),
                100 * float(folding_fraction(ddf)),
                seconds,
            ]
            rows.append(scores)
        mean = np.mean(rows, 0)
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in mean) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run()
