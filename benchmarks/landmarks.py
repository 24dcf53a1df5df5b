"""Landmarks that nobody showed to the registration: how far apart they lie before and after, by the defaults.

    python -m benchmarks.landmarks OUT.csv [--data FOLDER] [--sets lungs,prostates] [SETTING=VALUE ...]

FOLDER holds `lung_masks_landmarks` and `prostate_mrus` (default: $MORPHZOO_TEST_DATA). The lungs are masks in two
breathing states with 300 points each, the prostates MR and ultrasound images with one or two small structures each,
whose two grids are stretched onto one another, as their headers share no world. A row is one person: mean distance in
mm before, after the alignment and after all, and the warnings. Settings are those of `morphzoo register`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from custom_components.commands.registrar import Registrar
from custom_components.evaluation.result import Registration
from custom_components.files import write_table


def lungs(data: Path, folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Masks as images, in millimetres of the set's evaluation, and points in their voxels."""
    source = data / "lung_masks_landmarks"
    found = json.loads((source / "datalist.json").read_text())
    affine = np.diag([*found["evaluation_spacing"], 1.0])
    for item in found["pairs"]:
        pair = {}
        for role, breath in (("fixed", "exp"), ("moving", "insp")):
            pair[role] = _written(folder / f"{item['subject']}_{role}.nii.gz", source / item[f"{role}_mask"], affine)
            points = folder / f"{item['subject']}_{role}.csv"
            with open(source / item["landmarks"], newline="") as file, open(points, "w", newline="") as out:
                rows = [[row[f"{breath}_{axis}"] for axis in "ijk"] for row in csv.DictReader(file)]
                csv.writer(out).writerows([["i", "j", "k"], *rows])
            pair[f"landmarks_{role}"] = str(points)
        yield item["subject"], pair


def prostates(data: Path, folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """All people with landmarks, the moving grid stretched onto the fixed one."""
    source = data / "prostate_mrus"
    found = json.loads((source / "datalist.json").read_text())
    for split in ("test", "validation", "training"):
        for item in found[split]:
            if not item["num_landmarks"]:
                continue
            sizes = {role: nib.load(source / item[f"{role}_image"]).shape for role in ("fixed", "moving")}
            pair = {}
            for role, size in sizes.items():
                scale = np.array(sizes["fixed"]) / size  # voxels of 1 mm
                affine = np.diag([*scale, 1.0])
                affine[:3, 3] = scale / 2
                for key, kind in ((role, "image"), (f"label_{role}", "label"), (f"landmarks_{role}", "landmarks")):
                    name = item[f"{role}_{kind}"]
                    pair[key] = _written(folder / name, source / name, affine)
            yield f"{split} {item['subject']}", pair


def _written(path: Path, source: Path, affine: np.ndarray) -> str:
    nib.save(nib.Nifti1Image(np.asarray(nib.load(source).dataobj), affine), path)
    return str(path)


SETS = {"lungs": lungs, "prostates": prostates}


def row(name: str, result: Registration) -> dict[str, object]:
    keys = ("num_landmarks", "tre_mm_before", "tre_mm_aligned", "tre_mm_after", "dice_before", "dice_after", "seconds")
    found = {key: result.metrics.get(key, "") for key in keys}
    return {"person": name, **found, "warnings": " | ".join(result.metrics.get("warnings", []))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("settings", nargs="*", help="NAME=VALUE")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MORPHZOO_TEST_DATA", "")))
    parser.add_argument("--sets", default=",".join(SETS))
    args = parser.parse_intermixed_args()
    registrar = Registrar(**dict(setting.split("=", 1) for setting in args.settings))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.sets.split(","):
            for person, pair in SETS[name](args.data, Path(folder)):
                rows.append({"set": name, **row(person, registrar(**pair))})
                print({key: value for key, value in rows[-1].items() if value != ""}, flush=True)
                write_table(args.out, rows)


if __name__ == "__main__":
    main()
