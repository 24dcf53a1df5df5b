"""How well the bundle brain_extraction finds brains and structures in images it was not trained on.

    python -m benchmarks.brain_extraction DATA --output DIR [--weights FILE] [--atlases 8] [--cases WORD ...]

DATA is the folder of the test sets that docs/data.md names. DIR receives brain_extraction.csv, a row for each image:
Dice of the brain mask where a mask is known, mean Dice of the structures where a label map is, volume, CPU seconds of
the network's pass at its spacing (resampling included), of the mask and of the label map on the image's own grid; and
brain_extraction.png, a picture of each image with its mask and the network's label map. Whole heads are labelled by
half of the bundle's atlases and by all, too, as `morphzoo segment` does it: mean Dice of both, that of each structure
by all, CPU seconds of registration and fusion; atlases.png shows these label maps.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage
from torch import Tensor

from benchmarks.experiments import BUNDLES
from custom_components.cohorts.fusion import fuse
from custom_components.commands.labelling import FUSION, Labelling
from custom_components.evaluation.overlap import label_overlap
from custom_components.files import write_table
from custom_components.methods.brain_extraction.segmenter import BrainSegmenter, brain_mask, grid_of, label_map
from custom_components.methods.brain_extraction.structures import STRUCTURES
from custom_components.space.resampling import resample
from custom_components.space.volumes import Volume, load_image, load_labels, load_mask

Array = np.ndarray
MOST_PICTURES = 9


@dataclass(frozen=True)
class Case:
    """An image, and its brain mask and label map on its grid as far as they are known."""

    name: str
    image: Volume
    mask: Callable[[], Array] | None = None
    labels: Path | None = None
    is_whole: bool = True


def closed_union(inside: Array) -> Array:
    """A union of structures as `real_heads3d` makes a brain of it: closed by three steps of neighbours, filled."""
    padded = np.pad(inside, 8)
    padded = ndimage.binary_fill_holes(ndimage.binary_closing(padded, iterations=3))
    return padded[tuple(slice(8, -8) for _ in padded.shape)]


def on_grid(mask: Volume, image: Volume, matrix: Array | None = None) -> Array:
    """A mask at the voxels of an image, through a matrix from the image's world to the mask's."""
    values = resample(mask.data.float(), mask.affine, image.grid, world_matrix=matrix, antialias=True)
    return values[0].numpy() > 0.5


def cases(data: Path) -> Iterator[Case]:
    """All images, one after another; sets that are absent are left out."""
    heads = data / "real_heads3d"
    for one in "abc" if heads.is_dir() else "":
        image, mask = (load_image(heads / f"head_{one}_{kind}.nii.gz") for kind in ("t1", "brain"))
        known = mask.data[0].numpy() > 0
        yield Case(f"T1 head {one}", image, lambda m=known: m, heads / f"head_{one}_labels.nii.gz")
    yield from _epi(data)
    yield from _others(data)
    yield from _slabs(data / "brain_slabs")


def _epi(data: Path) -> Iterator[Case]:
    """EPIs of the person of head a, whose mask the known rigid transform brings there."""
    folder = data / "subject_to_template"
    if not folder.is_dir():
        return
    transforms = json.loads((folder / "transforms.json").read_text())
    brain = load_mask(data / "real_heads3d" / "head_a_brain.nii.gz")
    for name, title in (("S1_EPI_fullhead", "EPI, whole head"), ("S1_EPI_retinotopy", "EPI, part of the head")):
        image = load_image(folder / f"{name}.nii.gz")
        matrix = np.array(transforms[name]["EPI_world_to_T1_world"])
        is_whole = "part" not in title
        yield Case(title, image, lambda i=image, m=matrix: on_grid(brain, i, m), is_whole=is_whole)


def _others(data: Path) -> Iterator[Case]:
    folder = data / "thick_slices"
    if folder.is_dir():
        image, parcels = load_image(folder / "t2.nii.gz"), load_labels(folder / "parcellation.nii.gz")
        brain = closed_union(parcels.data[0].numpy() >= 5)  # 1 to 4 are CSF and what is outside

        def parcelled() -> Array:
            return on_grid(Volume(torch.from_numpy(brain)[None], **_place(parcels)), image)

        yield Case("T2, slices of 5.5 mm", image, parcelled)
    folder = data / "ct_mr_templates"
    for name in ("ct", "flair") if folder.is_dir() else ():
        tissue = sum(load_image(folder / f"ct_{one}.nii.gz").data[0].numpy() for one in ("grey", "white"))
        image = load_image(folder / f"{name}_head.nii.gz")
        yield Case(f"{name.upper()} template", image, lambda t=tissue: closed_union(t > 0.5))


def _place(volume: Volume) -> dict[str, object]:
    return {key: value for key, value in vars(volume).items() if key not in ("data", "background")}


def _slabs(folder: Path) -> Iterator[Case]:
    items = json.loads((folder / "datalist.json").read_text())["validation"] if folder.is_dir() else []
    for item in items:
        labels = load_labels(folder / item["label"]).data[0].numpy()
        # Slabs of 8 slices are closed within their planes.
        brain = np.stack([closed_union(labels[:, k] > 1) for k in range(labels.shape[1])], 1)
        name = f"T1 slab {Path(item['image']).name.partition('.')[0]}"
        yield Case(name, load_image(folder / item["image"]), lambda b=brain: b, is_whole=False)


def dice(a: Array, b: Array) -> float:
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))


def measure(case: Case, segmenter: BrainSegmenter) -> tuple[dict[str, object], Array, Array]:
    """A row of the table, mask and label map."""
    image = case.image.meta_tensor(case.image.data)
    segmenter.network.on(segmenter.device)  # loaded before the clock starts
    times = [time.process_time()]
    found = segmenter.probabilities(image)
    times.append(time.process_time())
    mask = brain_mask(found, grid_of(image), name=case.name)[0].numpy() > 0
    times.append(time.process_time())
    labels = label_map(found, grid_of(image))[0]
    times.append(time.process_time())
    ml = abs(float(np.linalg.det(case.image.file_affine[:3, :3]))) / 1000
    row: dict[str, object] = {"image": case.name, "brain_ml": float(mask.sum()) * ml}
    if case.mask is not None:
        truth = case.mask()
        row |= {"mask_dice": dice(mask, truth), "known_ml": float(truth.sum()) * ml}
    if case.labels is not None:
        found_dice = structures_dice(labels, case.labels)
        row |= {"structures_dice": float(np.nanmean([*found_dice.values()])), **found_dice}
    seconds = np.diff(times)
    row |= dict(zip(("network_s", "mask_s", "labels_s"), map(float, seconds), strict=True))
    row["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return row, mask, labels.numpy()


def structures_dice(labels: Tensor, truth: Path) -> dict[str, float]:
    """Dice of each structure in a map of classes (*S)."""
    ids = list(range(1, len(STRUCTURES)))
    values = label_overlap(labels[None, None], load_labels(truth).data[None], ids)[0]
    return {STRUCTURES[i][0]: float(value) for i, value in zip(ids, values, strict=True)}


def measure_atlases(case: Case, labelling: Labelling) -> tuple[dict[str, object], Array]:
    """What is added to the row of a head, and its label map by all atlases."""
    labelling.atlases  # noqa: B018  # rendered before the clock starts
    times = [time.process_time()]
    labels, images = labelling.proposals(case.image)
    times.append(time.process_time())
    row: dict[str, object] = {}
    fused = labels[0]
    for number in sorted({max(1, labelling.number // 2), labelling.number}):
        fused = fuse(labels[:number], images[:number], case.image.data[0], FUSION)
        times.append(time.process_time())
        if case.labels is not None:
            found = structures_dice(fused, case.labels)
            row[f"{number}_atlases_dice"] = float(np.nanmean([*found.values()]))
            if number == labelling.number:
                row |= {f"{name}, {number} atlases": value for name, value in found.items()}
    row |= {"register_s": times[1] - times[0], "fusion_s": times[-1] - times[-2]}
    row["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return row, fused.numpy()


def middle_planes(volume: MetaTensor, mask: Array, labels: Array) -> list[tuple[Array, Array, Array, float]]:
    """Through the mask's centre, the plane seen from the side (or from above, of slabs) and another one: image, mask,
    labels, and the ratio of the pixels' sides; rows run upwards or to the front."""
    import nibabel as nib

    orientation = nib.orientations.io_orientation(volume.affine.numpy())
    arrays = [nib.orientations.apply_orientation(one, orientation) for one in (volume[0].numpy(), mask, labels)]
    order = np.argsort(orientation[:, 0])
    spacing = np.linalg.norm(volume.affine.numpy()[:3, :3], axis=0)[order]
    centre = np.argwhere(arrays[1]).mean(0).astype(int) if mask.any() else np.array(arrays[0].shape) // 2
    planes = []
    for axis in (0, 2):
        across, up = [i for i in range(3) if i != axis]
        planes.append((*(one.take(centre[axis], axis).T for one in arrays), spacing[up] / spacing[across]))
    return planes


def draw(path: Path, pictures: Sequence[tuple[str, list[tuple[Array, Array, Array, float]]]], columns: int = 6) -> None:
    """A mosaic: each image from the side and from above, with the outline of its mask, and with its label map."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = -(-len(pictures) // (columns // 2))
    figure, axes = pyplot.subplots(rows, columns, figsize=(2 * columns, 2.3 * rows), squeeze=False, facecolor="black")
    for panel in axes.flat:
        panel.axis("off")
    for number, (title, planes) in enumerate(pictures):
        for k, (image, mask, labels, ratio) in enumerate(planes):
            panel = axes[number // (columns // 2), 2 * (number % (columns // 2)) + k]
            panel.imshow(image, cmap="gray", origin="lower", aspect=ratio, vmax=np.percentile(image, 99.5))
            if k:
                shown = np.ma.masked_equal(labels, 0)
                panel.imshow(shown, cmap="tab20", origin="lower", aspect=ratio, vmin=1, vmax=20, alpha=0.6)
            if mask.any():
                panel.contour(mask, [0.5], colors="red", linewidths=0.8)
            panel.set_title(title if not k else "", color="white", fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=55, facecolor="black", pil_kwargs={"optimize": True})
    pyplot.close(figure)


def main(command: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=BUNDLES / "brain_extraction" / "models" / "model.pt")
    parser.add_argument("--atlases", type=int, default=8, help="0: the network alone")
    parser.add_argument("--cases", nargs="*", default=[""], help="only images whose name has one of these in it")
    args = parser.parse_args(command)
    args.output.mkdir(parents=True, exist_ok=True)
    segmenter, rows, pictures, by_atlases = BrainSegmenter(args.weights), [], [], []
    labelling = Labelling(BUNDLES / "brain_extraction", args.atlases) if args.atlases else None
    for case in (case for case in cases(args.data) if any(word in case.name for word in args.cases)):
        row, mask, labels = measure(case, segmenter)
        image = case.image.meta_tensor(case.image.data)
        if labelling and case.is_whole:
            more, fused = measure_atlases(case, labelling)
            by_atlases.append((case.name, middle_planes(image, mask, fused)))
            row |= more
        print({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()}, flush=True)
        rows.append(row)
        if len(pictures) < MOST_PICTURES:
            pictures.append((case.name, middle_planes(image, mask, labels)))
    write_table(args.output / "brain_extraction.csv", rows)
    draw(args.output / "brain_extraction.png", pictures)
    if by_atlases:
        draw(args.output / "atlases.png", by_atlases)


if __name__ == "__main__":
    main()
