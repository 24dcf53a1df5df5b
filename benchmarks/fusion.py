"""How well the labels of 1, 4 and 8 atlases fit other people, by each fusion.

    python -m benchmarks.fusion BIDS OUT [--atlases 8] [--people 4] [--quality default] [--affine torch]

BIDS is what `benchmarks.rendered_bids` writes. The first people are atlases, the last ones are labelled. Each atlas is
registered once to each person; the fusions then see the same. Dice is the mean over the brain's structures that are
large enough at 2 mm. Writes `fusion.csv`, a row for each person, number of atlases and fusion.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import custom_components as mz
from custom_components.cohorts.fusion import FUSIONS, fuse
from custom_components.evaluation.overlap import label_overlap, present_labels
from custom_components.files import write_table
from custom_components.space.volumes import load_image, load_labels
from custom_components.vocabulary import Row

NUMBERS = (1, 4, 8)
BRAIN = 200  # ids below are the brain's
TINY = {5, 24, 30, 44, 62, 72, 85, 137, 164}  # at 2 mm, or no structure


def scan(root: Path, name: str) -> dict[str, str]:
    """The image and the label map of a person."""
    return {
        "image": str(root / name / "anat" / f"{name}_T1w.nii.gz"),
        "label": str(root / "derivatives" / "labels" / name / "anat" / f"{name}_dseg.nii.gz"),
    }


def measured(registrar: mz.Registrar, atlases: list[dict[str, str]], person: dict[str, str]) -> list[Row]:
    """Dice and seconds of each fusion of the first 1, 4 and 8 atlases."""
    target, truth = load_image(person["image"]).data[0], load_labels(person["label"]).data.long()
    known = [label for label in present_labels(truth[None]) if label < BRAIN and label not in TINY]
    start = time.perf_counter()
    found = [registrar(atlas["image"], person["image"], label_moving=atlas["label"]) for atlas in atlases]
    each_s = (time.perf_counter() - start) / len(atlases)
    labels = torch.stack([one.warped_label.as_tensor()[0].long() for one in found])
    images = torch.stack([one.warped.as_tensor()[0].float() for one in found])
    rows: list[Row] = []
    for number in NUMBERS:
        for fusion in FUSIONS if number > 1 else FUSIONS[:1]:
            start = time.perf_counter()
            fused = fuse(labels[:number], images[:number], target, fusion)
            seconds = time.perf_counter() - start
            dice = float(label_overlap(fused[None, None], truth[None], known).nanmean())
            rows.append({"atlases": number, "fusion": fusion, "dice": dice, "seconds": seconds, "register_s": each_s})
    return rows


def main() -> None:
    """Measure, write the table, and print the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bids", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--atlases", type=int, default=8)
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--quality", default="default", help="as of morphzoo register")
    parser.add_argument("--affine", default="torch", help="as of morphzoo register")
    given = parser.parse_args()
    names = sorted(path.name for path in given.bids.glob("sub-*"))
    atlases = [scan(given.bids, name) for name in names[: given.atlases]]
    registrar, rows = mz.Registrar("synthmorph", affine=given.affine, quality=given.quality), []
    for name in names[-given.people :]:
        rows += [{"id": name, **row} for row in measured(registrar, atlases, scan(given.bids, name))]
        write_table(given.output / "fusion.csv", rows)
    for number, fusion in dict.fromkeys((row["atlases"], row["fusion"]) for row in rows):
        chosen = [row for row in rows if (row["atlases"], row["fusion"]) == (number, fusion)]
        means = {key: sum(float(row[key]) for row in chosen) / len(chosen) for key in ("dice", "seconds", "register_s")}
        print(number, fusion, *(f"{key} {value:.3f}" for key, value in means.items()))


if __name__ == "__main__":
    main()
