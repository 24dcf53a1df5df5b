"""People rendered from label maps as a BIDS data set: T1w images, their label maps as derivatives, dseg.tsv.

    python -m benchmarks.rendered_bids LABELMAPS OUT [--number 20]

LABELMAPS is a folder of label maps with `labels.csv`, a table of the structures' means. The map of each person is
rendered once, with noise, a bias field and a brightness of its own, and without what lies outside of the head.
`benchmarks.prepare` also takes T2w images.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from custom_components.data.label_names import read_label_names
from custom_components.space.files import write_image
from custom_components.space.volumes import load_labels
from custom_components.synthesis.brains import BrainContrast


def write_people(
    label_maps: Path, output: Path, number: int = 20, *, t2_off_mm: Sequence[float] | None = None
) -> list[str]:
    """Write the data set; the names of the people.

    Args:
        t2_off_mm: write T2w images, too, whose headers are off by so much, RAS.
    Raises:
        ValueError: if there are fewer label maps.
    """
    paths = sorted(label_maps.glob("*.nii.gz"))[:number]
    if len(paths) < number:
        raise ValueError(f"{label_maps}: expected {number} label maps, got {len(paths)}")
    output.mkdir(parents=True, exist_ok=True)
    contrasts = {"T1w": np.eye(4)}
    if t2_off_mm is not None:
        contrasts["T2w"] = nib.affines.from_matvec(np.eye(3), t2_off_mm)
    table = read_label_names(label_maps / "labels.csv")
    (output / "dseg.tsv").write_text("".join(f"{k}\t{name}\n" for k, name in [("index", "name"), *table.items()]))
    names = [f"sub-{k:02d}" for k in range(1, number + 1)]
    for k, (path, name) in enumerate(zip(paths, names, strict=True), start=1):
        labels = load_labels(path)
        _write(output / "derivatives" / "labels", name, "dseg", labels.data, labels.affine, np.int16)
        for contrast, off in contrasts.items():
            render = BrainContrast(
                label_maps / "labels.csv", std=(3, 8), zero_background=1.0, contrast=contrast[:2].lower()
            )
            draw = render.draw(1, labels.data.shape[1:], torch.Generator().manual_seed(k))
            image = 1000 * render(labels.data[None].long(), draw)[0]
            _write(output, name, contrast, image, off @ labels.affine, np.float32)
    return names


def _write(root: Path, name: str, kind: str, voxels: Tensor, affine: np.ndarray, dtype: type) -> None:
    folder = root / name / "anat"
    folder.mkdir(parents=True, exist_ok=True)
    write_image(folder / f"{name}_{kind}.nii.gz", voxels, affine, dtype=np.dtype(dtype))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--number", type=int, default=20)
    given = parser.parse_args()
    print(*write_people(given.label_maps, given.output, given.number))
