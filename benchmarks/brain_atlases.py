"""The atlases of the bundle brain_extraction: label maps of eight people that it was trained on, in one file.

    python -m benchmarks.brain_atlases LABELMAPS [--output bundles/brain_extraction/models]

LABELMAPS is the folder of label maps at 2 mm that docs/data.md names. The first eight people of its section training
are taken whose maps do not stop below the brain, a rule from before anything was measured. Equal maps give equal bytes.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.experiments import BUNDLES
from custom_components.files import write_table

NUMBER = 8
CUT = ("synthseg_03", "synthseg_04", "synthseg_07", "synthseg_09", "synthseg_13", "synthseg_20")  # LABELMAPS's README
COLUMNS = ("id", "name", "t1_prior_mean", "t1_prior_mean_spread")


def write_atlases(label_maps: Path, output: Path) -> list[str]:
    """Write atlases.nii.gz, .csv and .json; the names of the people.

    Raises:
        ValueError: if there are fewer people, or their maps have several sizes.
    """
    training = json.loads((label_maps / "datalist.json").read_text(encoding="utf-8"))["training"]
    chosen = [item for item in training if item["subject"] not in CUT][:NUMBER]
    images = [nib.load(label_maps / item["label"]) for item in chosen]
    if len(images) < NUMBER or len({image.shape for image in images}) > 1:
        raise ValueError(f"{label_maps}: expected {NUMBER} label maps of one size, got {[i.shape for i in images]}")
    output.mkdir(parents=True, exist_ok=True)
    maps = np.stack([np.asarray(image.dataobj) for image in images], -1).astype(np.uint16)
    file = nib.Nifti1Image(maps, images[0].affine)
    (output / "atlases.nii.gz").write_bytes(gzip.compress(file.to_bytes(), 9, mtime=0))
    people = [
        {"name": item["subject"], "affine": image.affine.tolist()} for item, image in zip(chosen, images, strict=True)
    ]
    origin = {"source": "label maps of the SynthSeg project at 2 mm, section training", "licence": "Apache-2.0"}
    lines = ",\n".join(f"    {json.dumps(person)}" for person in people)
    head = json.dumps(origin, indent=2).removesuffix("\n}")
    (output / "atlases.json").write_text(f'{head},\n  "people": [\n{lines}\n  ]\n}}\n', encoding="utf-8")
    with open(label_maps / "labels.csv", encoding="utf-8", newline="") as table:
        rows = [{name: row[name] for name in COLUMNS} for row in csv.DictReader(table)]
    shown = set(np.unique(maps).tolist())
    write_table(output / "atlases.csv", [row for row in rows if int(row["id"]) in shown])
    return [person["name"] for person in people]


def main(command: Sequence[str] | None = None) -> None:
    """Write them, and print whose they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("--output", type=Path, default=BUNDLES / "brain_extraction" / "models")
    given = parser.parse_args(command)
    print(*write_atlases(given.label_maps, given.output))


if __name__ == "__main__":
    main()
