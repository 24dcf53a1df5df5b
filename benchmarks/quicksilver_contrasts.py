"""T1 to T2 with momenta of T1 to T1: a network of two contrasts against one of one contrast and the optimisation.

    python -m benchmarks.quicksilver_contrasts SLICES OUT

SLICES is a folder with a data list whose scans have `image_t1` and `image_t2` of one person on one 2-D grid, in the
sections training and validation. Each slice and its mirror image are trained on; every ordered pair of the validation
people is measured. The result is judged by an image the network did not see: the fixed person's T1. Finished parts are
kept.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from benchmarks.experiments import EPOCHS, bundle_config, markdown, train, write_and_print
from custom_components.evaluation.metrics import folding_fraction, normalized_cross_correlation
from custom_components.fields import warp
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.similarity import LNCC, MIND
from custom_components.methods.quicksilver.inference import PatchPredictor
from custom_components.methods.quicksilver.network import load_network
from custom_components.transforms.scan import LoadScand

SEEN = {"T1 to T2": ["moving", "contrast_fixed"], "T1 to T1": None}
SETTINGS = {"size": [152, 240], "spacing": 1.0}


def main(command: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("slices", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=4000, help="training steps, batches of 32 patches")
    args = parser.parse_args(command)
    torch.set_num_threads(1)
    folder = args.output.absolute()
    scans = copies(args.slices, folder / "slices")
    for name, inputs in SEEN.items():
        settings = {**SETTINGS, "input_images": inputs, "num_momenta": 240, "num_patches": args.steps * 32 // EPOCHS}
        settings |= {"momenta_dir": str(folder / "momenta"), "num_val_pairs": 6}
        train("quicksilver", folder_of(name, folder), folder / "slices", settings, steps=args.steps, batch_size=32)
    write_and_print(folder / "table.md", measure(folder, scans["validation"]))


def folder_of(name: str, folder: Path) -> Path:
    return folder / name.replace(" ", "_")


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
    load = LoadScand(spacing=1.0, size=SETTINGS["size"], center="image")
    people = [load({key: str(folder / "slices" / scan[key]) for key in ("image", "contrast")}) for scan in scans]
    pairs = [(a["image"][None], b["image"][None], b["contrast"][None]) for a, b in itertools.permutations(people, 2)]
    lines, truth = [], []
    for name, method in methods_of(folder).items():
        rows = []
        for i, (moving, t1, t2) in enumerate(pairs):
            start = time.perf_counter()
            ddf = method(moving, t1, t2)
            seconds = time.perf_counter() - start
            if "teacher" in name:
                truth.append(ddf)
            rows.append([*scores(ddf, truth[i], moving, t1), seconds])
        lines.append([name, *np.mean(rows, 0).tolist()])
    return markdown(["", "correlation", "LNCC", "median error, mm", "95 %, mm", "det J <= 0, %", "s"], lines)


def methods_of(folder: Path) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Functions from moving T1, fixed T1 and fixed T2 to a field; the teacher comes first."""
    config = bundle_config("quicksilver", ["train", "train_2d"], **SETTINGS)
    optimizer, deformation = config.get_parsed_content("lddmm"), config.get_parsed_content("deformation")
    network = config.get_parsed_content("network_def")

    def optimised(moving: Tensor, fixed: Tensor, similarity: Any) -> Tensor:
        optimizer.loss.similarity = similarity
        momentum = optimizer(moving, fixed)
        with torch.no_grad():
            return deformation(momentum, fixed.shape[2:])["ddf"]

    def predicted(moving: Tensor, fixed: Tensor, name: str) -> Tensor:
        trained = load_network(network, folder_of(name, folder) / "model.pt")
        with torch.no_grad():
            return RegistrationInferer(deformation, PatchPredictor())(torch.cat([moving, fixed], 1), trained)["ddf"]

    return {
        "optimisation, T1 to T1 (the teacher)": lambda m, t1, _t2: optimised(m, t1, LNCC(9)),
        "none": lambda m, t1, _t2: torch.zeros_like(m).expand(-1, 2, -1, -1),
        "optimisation, T1 to T2, LNCC": lambda m, _t1, t2: optimised(m, t2, LNCC(9)),
        "optimisation, T1 to T2, MIND": lambda m, _t1, t2: optimised(m, t2, MIND()),
        "network of T1 to T1, shown T1 and T1": lambda m, t1, _t2: predicted(m, t1, "T1 to T1"),
        "network of T1 to T1, shown T1 and T2": lambda m, _t1, t2: predicted(m, t2, "T1 to T1"),
        "network of T1 to T2, shown T1 and T2": lambda m, _t1, t2: predicted(m, t2, "T1 to T2"),
    }


def scores(ddf: Tensor, truth: Tensor, moving: Tensor, t1: Tensor) -> list[float]:
    """Correlation and LNCC with the fixed T1, median and 95 % of the error in the head, per cent of folds."""
    warped = warp(moving, ddf)
    error = (ddf - truth).norm(dim=1)[0][(t1 > 0.05)[0, 0]]
    found = [float(normalized_cross_correlation(warped, t1)), 1 - float(LNCC(9)(warped, t1))]
    return [*found, float(error.quantile(0.5)), float(error.quantile(0.95)), 100 * float(folding_fraction(ddf))]


if __name__ == "__main__":
    main()
