"""The labels of several atlases on a scan: each atlas is registered to it, and what they propose is fused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.names import result_files, safe_name
from ..evaluation.overlap import label_overlap, present_labels
from ..evaluation.result import Registration
from ..files import write_metrics, write_table
from ..notices import collecting
from ..results import PAIR, publishing
from ..space.files import write_image
from ..space.volumes import Volume, load_image, load_labels
from ..transforms.publish import REQUEST
from ..vocabulary import Entry, Metrics, Row
from .fusion import fuse

FILES = {"labels": "labels.nii.gz", "metrics": "metrics.json"}
TABLE = "volumes.csv"

_MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class Propagating:
    """Label a scan of a data list by atlases, and write the result into a folder of its own.

    An atlas whose image is the scan itself is left out.

    Args:
        atlases: scan items with `image` and `label`.
        register: the result of a pair item, with "warped" and "warped_label" in memory.
        output_dir: folder for the results.
        fusion: see `fuse`.
    """

    atlases: Sequence[Entry]
    register: Callable[[Entry], Registration]
    output_dir: str
    fusion: str = "joint"

    def __call__(self, scan: Entry) -> Registration:
        """Errors as those of the registration; ValueError: if no atlas is left, or the label map is on another grid."""
        atlases = [atlas for atlas in self.atlases if Path(atlas["image"]).resolve() != Path(scan["image"]).resolve()]
        if not atlases:
            raise ValueError(f"{scan['image']}: the only atlas is this scan itself")
        with collecting() as warnings:
            target = load_image(scan["image"])
            found = [self._warped(atlas, scan, target.data.shape[1:]) for atlas in atlases]
            labels, images, factors = zip(*found, strict=True)
            fused = fuse(torch.stack(labels), torch.stack(images), target.data[0], self.fusion)
            # The geometric mean: an atlas twice as large and one half as large make no difference.
            factor = math.exp(sum(map(math.log, factors)) / len(factors))
            metrics = self._measures(scan, target, fused, factor)
        metrics = {**metrics, "num_atlases": len(atlases), "warnings": list(dict.fromkeys(warnings))}
        return self._write(scan, target, fused, metrics)

    def _warped(self, atlas: Entry, scan: Entry, size: Sequence[int]) -> tuple[Tensor, Tensor, float]:
        """The labels and the image of an atlas on a scan's grid, and how many times larger the atlas is than it."""
        pair = {"moving": atlas["image"], "label_moving": atlas["label"], "fixed": scan["image"], "id": scan["id"]}
        result = self.register(pair)
        matrices = [step for step in result.transform.steps if isinstance(step, np.ndarray)]
        factor = abs(float(np.prod([np.linalg.det(matrix) for matrix in matrices])))
        labels, image = (one.as_tensor()[0].reshape(*size) for one in (result.warped_label, result.warped))
        return labels.long(), image.float(), factor

    def _measures(self, scan: Entry, target: Volume, fused: Tensor, factor: float) -> Metrics:
        """Volumes in mL, as they are and in the atlases' size, and the overlap with a label map of the scan's own."""
        voxel_ml = _voxel_ml(target)
        metrics: Row = {"id": str(scan["id"]), "image": str(scan["image"])}
        if scan.get("mask"):
            mask = load_labels(scan["mask"])
            metrics["intracranial_ml"] = float((mask.data > 0).sum()) * _voxel_ml(mask)
        truth = load_labels(scan["label"]) if scan.get("label") else None
        if truth is not None:
            if truth.data.shape[1:] != fused.shape or not np.allclose(truth.affine, target.affine, atol=1e-3):
                raise ValueError(f"{scan['label']}: expected a label map on the grid of {scan['image']}")
            known = present_labels(truth.data[None])
            dice = label_overlap(fused[None, None], truth.data[None].long(), known)[0]
            metrics["dice_after"] = float(dice.nanmean())
            metrics |= {f"dice_after_{label}": float(value) for label, value in zip(known, dice, strict=True)}
        for label, count in zip(*fused.unique(return_counts=True), strict=True):
            if label != 0:
                metrics[f"volume_ml_{label}"] = float(count) * voxel_ml
                metrics[f"volume_template_ml_{label}"] = float(count) * voxel_ml * factor
        return metrics

    def _write(self, scan: Entry, target: Volume, fused: Tensor, metrics: Metrics) -> Registration:
        output = Path(self.output_dir)
        folder = output / safe_name(str(scan["id"]))
        dtype = np.dtype(np.int16 if int(fused.max()) <= np.iinfo(np.int16).max else np.int32)
        with publishing(folder, PAIR, result_files(scan), scratch_in=output) as scratch:
            write_image(scratch / FILES["labels"], fused[None], target.affine, like=target, dtype=dtype)
            write_metrics(scratch / FILES["metrics"], metrics)
            write_metrics(scratch / REQUEST, {"request": scan["request"], "files": FILES, "captions": {}})
        return Registration(str(scan["id"]), folder, {kind: folder / name for kind, name in FILES.items()}, metrics)


def _voxel_ml(volume: Volume) -> float:
    return abs(float(np.linalg.det(volume.file_affine))) / _MM3_PER_ML  # a slice has its thickness


def write_volumes(output: str | Path, results: Sequence[Registration], names: Mapping[int, str] | None = None) -> None:
    """Write `volumes.csv`: a row for each label of each scan, with the label's name if there are names."""
    with publishing(output, "volumes") as scratch:
        if results:
            write_table(scratch / TABLE, [row for one in results for row in _rows(one, names or {})])


def _rows(result: Registration, names: Mapping[int, str]) -> list[Row]:
    measures = result.metrics
    labels = [int(name.rpartition("_")[2]) for name in measures if name.startswith("volume_ml_")]
    labels += [int(name.rpartition("_")[2]) for name in measures if name.startswith("dice_after_")]
    rows: list[Row] = []
    for label in sorted(set(labels)):
        row: Row = {"id": result.id, "label": label}
        row |= {"name": names.get(label, "")} if names else {}
        row |= {name: measures.get(f"{name}_{label}", 0.0) for name in ("volume_ml", "volume_template_ml")}
        row |= {"dice": measures[f"dice_after_{label}"]} if f"dice_after_{label}" in measures else {}
        row |= {"intracranial_ml": measures["intracranial_ml"]} if "intracranial_ml" in measures else {}
        rows.append(row)
    return rows
