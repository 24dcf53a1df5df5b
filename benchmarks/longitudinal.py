r"""`morphzoo longitudinal`: a known change of real slices, and rescans of one person that should not have changed.

    python -m benchmarks.longitudinal SLICES SLABS OUT

SLICES is a folder of 2-D slices with a data list (skull-stripped T1), SLABS one of scans with labels, some of one
person, with `subject` and `session`. The known change is that of a random velocity, of 2 mm at most, applied to a slice
after it was enlarged; both get noise of their own. Labels are thirds of the intensity there.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.experiments import measure_once, write_and_print
from custom_components.commands.longitudinal import longitudinal
from custom_components.data.lists import load_list
from custom_components.data.phantoms import random_velocity
from custom_components.fields import integrate_velocity, jacobian_determinant, warp

SIZE, SPACING = (255, 255), 0.8
LEVELS = [20.0, 110.0, 170.0]  # of intensities from 0 to 255, between background and three labels


def main(command: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("slices", type=Path)
    parser.add_argument("slabs", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--people", type=int, default=6)
    args = parser.parse_args(command)
    rows: list[dict[str, Any]] = []
    for k, scan in enumerate(load_list(args.slices / "datalist.json", "validation")[: args.people]):
        place = args.output / f"known_{k}"
        rows.append(measure_once(place.with_suffix(".json"), functools.partial(known, scan["image"], k, place)))
    text = "| | known change: error | no change | correlation of the map |\n|---|---|---|---|\n"
    error, none, fit = (np.mean([row[key] for row in rows]) for key in ("error", "none", "correlation"))
    text += f"| slices, {len(rows)} people | {error:.2f} | {none:.2f} | {fit:.2f} |\n\n"
    pairs = rescans(args.slabs)[: args.people]
    found = [
        measure_once(
            args.output / f"rescan_{k}.json", lambda pair=pair, k=k: unchanged(pair, args.output / f"rescan_{k}")
        )
        for k, pair in enumerate(pairs)
    ]
    text += "| rescans | label maps of their own | longitudinal |\n|---|---|---|\n"
    for label in found[0]["own"]:
        own, ours = (np.mean([abs(row[key][label]) for row in found]) for key in ("own", "found"))
        text += f"| label {label}, mean absolute change of {len(found)} people, % | {own:.2f} | {ours:.2f} |\n"
    write_and_print(args.output / "longitudinal.md", text)


def known(path: str, seed: int, folder: Path) -> dict[str, float]:
    """Of a slice: error of a known change and of none, in percent, mean over labels; correlation of the map of it."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.from_numpy(np.asarray(nib.load(path).dataobj).astype(np.float32).squeeze())[None, None]
    image = F.interpolate(image, SIZE, mode="bicubic", align_corners=True).clamp(0, 255)
    labels = torch.bucketize(image, torch.tensor(LEVELS)).to(torch.int16)
    velocity = random_velocity(SIZE, amplitude=2 / SPACING, spacings=(24.0, 48.0), generator=generator)
    truth = 100 * (jacobian_determinant(integrate_velocity(velocity)) - 1)
    folder.mkdir(parents=True, exist_ok=True)
    later = warp(image, integrate_velocity(-velocity))
    files = {"first": image, "same": image, "second": later}
    for name, values in files.items():
        save(folder / f"{name}.nii.gz", (values + 3 * torch.randn(SIZE, generator=generator)).clamp(min=0))
    save(folder / "labels.nii.gz", labels)
    first, same, second, label = (str(folder / f"{name}.nii.gz") for name in (*files, "labels"))
    changed = longitudinal(first, second, str(folder / "changed"), label_first=label)
    still = longitudinal(first, same, str(folder / "still"), label_first=label)
    errors = [abs(row["percent"] - float(truth[labels == row["label"]].mean())) for row in changed.volumes]
    map_ = torch.from_numpy(np.asarray(nib.load(folder / "changed" / "percent_change.nii.gz").dataobj).squeeze())
    inside = (labels > 0)[0, 0]
    return {
        "error": float(np.mean(errors)),
        "none": float(np.mean([abs(row["percent"]) for row in still.volumes])),
        "correlation": float(np.corrcoef(map_[inside], truth[0, 0][inside])[0, 1]),
    }


def save(path: Path, image: Tensor) -> None:
    nib.save(nib.Nifti1Image(image[0, 0].numpy()[..., None], np.diag([SPACING, SPACING, 1, 1])), path)


def rescans(slabs: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The first two scans of each person who has two."""
    scans = sorted(load_list(slabs / "datalist.json", "training"), key=lambda scan: (scan["subject"], scan["session"]))
    people = [list(group) for _, group in groupby(scans, key=lambda scan: scan["subject"])]
    return [(scans[0], scans[1]) for scans in people if len(scans) > 1]


def unchanged(pair: tuple[dict[str, Any], dict[str, Any]], folder: Path) -> dict[str, dict[str, float]]:
    """Change of each label in percent, by label maps of both scans, and by `longitudinal` with those."""
    first, second = pair
    counts = [
        np.bincount(np.asarray(nib.load(scan["label"]).dataobj).astype(int).ravel(), minlength=5) for scan in pair
    ]
    names = {"label_first": first["label"], "label_second": second["label"]}
    result = longitudinal(first["image"], second["image"], str(folder), **names)
    return {
        "own": {str(k): 100 * float(counts[1][k] / counts[0][k] - 1) for k in range(1, 5)},
        "found": {str(row["label"]): row["percent"] for row in result.volumes},
    }


if __name__ == "__main__":
    main()
