"""Align the label maps of a data list affinely to their mean, by the centroids of their structures.

    python -m data_lists.align LIST.json -o ALIGNED.json

Writes one ITK transform file per scan (template to scan) beside ALIGNED.json and names it in the item's `affine`, where
`LoadScand` finds it: the maps themselves are not resampled. The template is the mean of the people's centroids, its
origin their centre, its size the people's mean size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from custom_components.data.names import distinct_names, safe_name
from custom_components.results import replacing
from custom_components.space import load_labels, write_affine_transform

MIN_VOXELS = 100


def centroids_mm(path: Path, max_label: int) -> dict[int, tuple[np.ndarray, int]]:
    """World centroid (RAS mm) and voxel count of every structure with an id from 1 to `max_label`."""
    labels = load_labels(path)
    ids = labels.data[0].numpy().ravel().astype(np.int64)
    count = np.bincount(ids)
    size = labels.data.shape[1:]
    axes = np.meshgrid(*[np.arange(n, dtype=np.float32) for n in size], indexing="ij", copy=False)
    means = np.stack([np.bincount(ids, weights=np.broadcast_to(a, size).ravel()) for a in axes], 1)
    found = [i for i in range(1, min(max_label + 1, len(count))) if count[i] >= MIN_VOXELS]
    return {i: (labels.affine[:3, :3] @ (means[i] / count[i]) + labels.affine[:3, 3], int(count[i])) for i in found}


def fit_affine(source: np.ndarray, target: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted least-squares affine (4, 4) that maps points (N, 3) to points."""
    root = np.sqrt(weight)[:, None]
    solution = np.linalg.lstsq(np.c_[source, np.ones(len(source))] * root, target * root, rcond=None)[0]
    return np.r_[solution.T, [[0, 0, 0, 1]]]


def align(points: Sequence[np.ndarray], weight: np.ndarray) -> list[np.ndarray]:
    """Affine matrices (4, 4) from each person's points (N, 3) to their common template."""
    centred = [p - np.average(p, axis=0, weights=weight) for p in points]
    template = np.mean(centred, axis=0)
    matrices = [fit_affine(p, template, weight) for p in points]
    # Averaging scattered points shrinks them: give the template the people's mean size back.
    scale = np.mean([np.linalg.det(m[:3, :3]) for m in matrices]) ** (-1 / 3)
    return [np.diag([scale, scale, scale, 1]) @ m for m in matrices]


def main(data_list: str, output: str, max_label: int = 199) -> None:
    """Align all scans of all sections of `data_list`; structures with larger ids (skin, bone, ...) are left out."""
    source, target = Path(data_list).resolve(), Path(output).resolve()
    sections = {k: v for k, v in json.loads(source.read_text()).items() if k in ("training", "validation", "test")}
    scans = [scan for section in sections.values() for scan in section]
    found = [centroids_mm(source.parent / scan["label"], max_label) for scan in scans]
    common = sorted(set.intersection(*[set(f) for f in found]))
    if len(common) < 4:
        raise SystemExit(f"{data_list}: an affine needs 4 structures that every map has, got {common}")
    weight = np.sqrt(np.mean([[f[i][1] for i in common] for f in found], axis=0))
    matrices = align([np.stack([f[i][0] for i in common]) for f in found], weight)
    people = [safe_name(str(scan["subject"])) for scan in scans]
    labels = [str(source.parent / scan["label"]) for scan in scans]
    names = people if len({*people}) == len(people) else [distinct_names(labels)[label] for label in labels]
    for scan, label, name, matrix in zip(scans, labels, names, matrices, strict=True):
        scan |= {"label": label, "affine": f"{name}_affine.tfm"}
        write_affine_transform(target.parent / scan["affine"], np.linalg.inv(matrix))
    with replacing(target) as temporary:
        temporary.write_text(json.dumps(sections, indent=1))


if __name__ == "__main__":
    import fire

    fire.Fire(main)
