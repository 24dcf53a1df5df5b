"""The pictures of `study_t1t2`: one pair of each kind, moved by the networks that were trained on its kind.

    python -m benchmarks.study_pictures OUT LABELMAPS PICTURE [--spacing 2] [--epochs 80]

The study draws its own people. These are two others, rendered from LABELMAPS, coronal slices through the thalamus in
T1- and T2-like contrast; OUT is the study's folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

import custom_components as mz
from custom_components.fields import plain
from custom_components.space import load_image
from custom_components.space.volumes import load_labels
from custom_components.synthesis.brains import BrainContrast
from custom_components.vocabulary import Entry

LINES = 24  # of the drawn grid, along the longer axis
THALAMUS = (10, 49)
REACH = (80, 112)  # voxels to both sides of its middle, left to right and foot to head


def draw(path: Path, networks: Mapping[str, mz.Registrar], pairs: Sequence[Entry]) -> None:
    """A row for each network: moving, fixed and warped image, and what the field does to a grid.

    Args:
        networks: by variant, "KIND SIMILARITY EPOCHS".
        pairs: of all kinds; the first one of the network's kind is drawn.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    if not networks:
        return
    figure, axes = pyplot.subplots(len(networks), 4, figsize=(8, 3.1 * len(networks)), squeeze=False)
    for row, (name, registrar) in zip(axes, networks.items(), strict=True):
        pair = next(pair for pair in pairs if pair["kind"] == name.split()[0])
        result = registrar(pair["moving"], pair["fixed"])
        moving, fixed = (load_image(pair[key]) for key in ("moving", "fixed"))
        images = [moving.data, fixed.data, plain(result.warped).reshape(fixed.data.shape)]
        for axis, image, title in zip(row, images, ("moving", "fixed", "warped"), strict=False):
            axis.imshow(_upright(image[0].numpy()), cmap="gray", origin="lower")
            axis.set_title(f"{title}: {name}" if title == "warped" else title, fontsize=8)
        _draw_grid(row[3], plain(result.field)[:2].reshape(2, *fixed.data.shape[1:]).numpy(), fixed.affine)
        row[3].set_title("where the grid's lines come from", fontsize=8)
    for axis in axes.ravel():
        axis.set_aspect("equal")
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _upright(image: np.ndarray) -> np.ndarray:
    """The second axis of the file upwards, as these slices have head and feet."""
    return image.T


def _draw_grid(axis: object, field: np.ndarray, affine: np.ndarray) -> None:
    """Lines of voxels, moved by the field (2, *S), RAS mm."""
    moved = np.moveaxis(np.indices(field.shape[1:]).astype(float), 0, -1)
    moved += np.moveaxis(field, 0, -1) @ np.linalg.inv(affine[:2, :2]).T
    step = max(field.shape[1:]) // LINES
    for lines in (moved[::step], np.swapaxes(moved, 0, 1)[::step]):
        for line in lines:
            axis.plot(*line.T, color="black", lw=0.5)  # type: ignore[attr-defined]


def rendered_pairs(label_maps: Path, folder: Path) -> list[Entry]:
    """A pair of each kind, of the first two people of a folder of label maps of 1 mm; their slices are written."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(sorted(label_maps.glob("*.nii.gz"))[:2]):
        volume = load_labels(path)
        turned = nib.as_closest_canonical(nib.Nifti1Image(volume.data[0].numpy().astype(np.int16), volume.affine))
        labels = np.asarray(turned.dataobj)
        middle = [round(float(where.mean())) for where in np.nonzero(np.isin(labels, THALAMUS))]
        padded = np.pad(labels, [(n, n) for n in (REACH[0], 0, REACH[1])])
        flat = padded[middle[0] : middle[0] + 2 * REACH[0], middle[1], middle[2] : middle[2] + 2 * REACH[1]]
        for contrast in ("t1", "t2"):
            render = BrainContrast(label_maps / "labels.csv", std=(3, 8), zero_background=1.0, contrast=contrast)
            maps = torch.from_numpy(flat[None, None].astype(np.int64))
            image = render(maps, render.draw(1, flat.shape, torch.Generator().manual_seed(number)))[0, 0]
            nib.save(nib.Nifti1Image(image.numpy(), np.eye(4)), folder / f"{number}_{contrast}.nii.gz")
    kinds = {"t1-t1": ("t1", "t1"), "t2-t2": ("t2", "t2"), "t1-t2": ("t1", "t2")}
    return [
        {"kind": kind, "moving": str(folder / f"0_{one}.nii.gz"), "fixed": str(folder / f"1_{other}.nii.gz")}
        for kind, (one, other) in kinds.items()
    ]


def main(words: Sequence[str] | None = None) -> None:
    from benchmarks.study_t1t2 import KINDS, SIMILARITIES, folder_name, network

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder of the study")
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--spacing", type=float, default=2.0, help="mm, of the trainings")
    parser.add_argument("--epochs", type=int, default=80)
    given = parser.parse_args(words)
    names = [f"{kind} {similarity} {given.epochs}" for kind in KINDS for similarity in SIMILARITIES]
    done = [name for name in names if (given.output / folder_name(name) / "model.pt").exists()]
    pairs = rendered_pairs(given.label_maps, given.output / "rendered")
    draw(given.picture, {name: network(name, given.output, given.spacing) for name in done}, pairs)


if __name__ == "__main__":
    main()
