"""People rendered from label maps as a BIDS data set: T1w images, and their label maps as derivatives.

    python -m benchmarks.rendered_bids LABELMAPS OUT [--number 20]

LABELMAPS is a folder of label maps with `labels.csv`, a table of the structures' means. The map of each person is
rendered once, with noise, a bias field and a brightness of its own, and without what lies outside of the head.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch

from custom_components.space.files import write_image
from custom_components.space.volumes import load_labels
from custom_components.synthesis.brains import BrainContrast


def write_people(label_maps: Path, output: Path, number: int = 20) -> list[str]:
    """Write the data set; the names of the people."""
    render = BrainContrast(label_maps / "labels.csv", std=(3, 8), zero_background=1.0)
    names = []
    for k, path in enumerate(sorted(label_maps.glob("*.nii.gz"))[:number], start=1):
        labels = load_labels(path)
        draw = render.draw(1, labels.data.shape[1:], torch.Generator().manual_seed(k))
        image = 1000 * render(labels.data[None].long(), draw)[0]
        names.append(f"sub-{k:02d}")
        for root, kind, voxels, dtype in (
            (output, "T1w", image, np.dtype(np.float32)),
            (output / "derivatives" / "labels", "dseg", labels.data, np.dtype(np.int16)),
        ):
            folder = root / names[-1] / "anat"
            folder.mkdir(parents=True, exist_ok=True)
            write_image(folder / f"{names[-1]}_{kind}.nii.gz", voxels, labels.affine, dtype=dtype)
    return names


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--number", type=int, default=20)
    given = parser.parse_args()
    os.makedirs(given.output, exist_ok=True)
    print(*write_people(given.label_maps, given.output, given.number))
