"""Save a registered pair: images, label maps and ITK transforms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform
from torch import Tensor

from ..fields import jacobian_determinant
from ..space.files import (
    publish_together,
    write_affine_transform,
    write_composite_transform,
    write_displacement_field,
    write_image,
)
from ..space.grids import Grid
from ..space.resampling import DisplacementField, Step, resample
from ..space.volumes import Volume, load_image
from .load import load_labels_for

# What `ReportUncertaintyd` and `ReportHyperd` add: not to be taken for another registration's.
_ADDED = (
    "sweep*.*",
    "displacement_sd.*",
    "velocity_sd.*",
    "label_entropy.*",
    "uncertainty.png",
    "sample_[0-9]*_*.nii.gz",
)


_MORE_OUTPUTS = ("warped_fixed", "warped_fixed_label")


_OUTPUTS = ("warped", "warped_label", "forward", "inverse", "affine", "composite", "jacobian")


class SavePaird(Transform):
    """Save a registered pair: the original moving image on the fixed image's own grid, and ITK transforms.

    Expects one (decollated) item as `LoadPaird` made it, with `pred` holding `ddf` and, for what is inverse,
    `inverse_ddf`, both (D, *S) in voxels of the model grid. Files go to `output_dir/<fixed>__<moving>/`, or to
    `output_dir/<id>/` if the item has an `id`; they appear there all together or not at all, and an
    earlier run's files of uncertainty and of sweeps go.

    Files, by the names in `write`:
        warped: warped.nii.gz, float32, one interpolation of the original.
        warped_label: warped_label.nii.gz, in the label file's type, if there is a moving label map.
        warped_fixed: warped_fixed.nii.gz, the fixed image on the moving image's grid.
        warped_fixed_label: warped_fixed_label.nii.gz, the fixed label map there, if there is one.
        forward, inverse: forward_field.nii.gz, inverse_field.nii.gz, the dense part alone, on the model grid.
        affine: affine.tfm, if there was a pre-alignment.
        composite: transform.h5, inverse_transform.h5, dense and affine in one file (needs `itk`). Forward resamples the
            moving image onto the fixed one, inverse the other way round.
        jacobian: jacobian.nii.gz, determinant of the dense part on the model grid.

    Args:
        label_mode: "nearest", or "linear" to interpolate each label and take the most likely.
    Returns (of the call): the item with `output_dir` and `output_files`, a dict of the names above (transform and
    inverse_transform for composite) to paths; metrics and pictures can go to the same folder.
    """

    def __init__(
        self, output_dir: str, write: Sequence[str] = _OUTPUTS, *, label_mode: str = "nearest", id_key: str = "id"
    ) -> None:
        unknown = set(write) - {*_OUTPUTS, *_MORE_OUTPUTS}
        if unknown or label_mode not in ("nearest", "linear"):
            raise ValueError(
                f"expected outputs among {_OUTPUTS + _MORE_OUTPUTS} and label_mode nearest or linear, "
                f"got {list(write)} and {label_mode!r}"
            )
        self.output_dir = output_dir
        self.write = tuple(write)
        self.label_mode = label_mode
        self.id_key = id_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Raises OSError: if the folder cannot be written to; ValueError: if the fields do not fit the grid."""
        fixed, moving = load_image(data["fixed_path"]), load_image(data["moving_path"])
        matrix = np.asarray(data["world_matrix"], dtype=np.float64)
        forward, inverse = world_steps(data, matrix)
        name = str(data.get(self.id_key) or f"{file_stem(fixed.path)}__{file_stem(moving.path)}")
        folder = Path(self.output_dir) / name
        with publish_together(folder) as scratch:
            label_paths = [str(data.get(f"label_{role}_path") or "") for role in ("moving", "fixed")]
            files = self._write_images(scratch, fixed, moving, forward, inverse, label_paths)
            files |= self._write_transforms(scratch, forward, inverse, matrix)
            for pattern in _ADDED:
                for stale in folder.glob(pattern):
                    stale.unlink()
        return {**data, "output_dir": str(folder), "output_files": {k: str(folder / v) for k, v in files.items()}}

    def _write_images(
        self,
        folder: Path,
        fixed: Volume,
        moving: Volume,
        forward: list[Step],
        inverse: list[Step],
        label_paths: Sequence[str],
    ) -> dict[str, str]:
        files = {}
        if "warped" in self.write:
            warped = resample(moving.data, moving.affine, fixed.grid, steps=forward)
            files["warped"] = "warped.nii.gz"
            write_image(folder / files["warped"], warped, fixed.affine, like=fixed)
        for name, path, source, target, steps in (
            ("warped_label", label_paths[0], moving, fixed, forward),
            ("warped_fixed_label", label_paths[1], fixed, moving, inverse),
        ):
            if name in self.write and path and steps:
                labels = load_labels_for(path, source)
                warped = warp_labels(labels, target.grid, steps, mode=self.label_mode)
                files[name] = f"{name}.nii.gz"
                write_image(folder / files[name], warped, target.affine, like=target, dtype=labels.file_dtype)
        if "warped_fixed" in self.write and inverse:
            warped = resample(fixed.data, fixed.affine, moving.grid, steps=inverse)
            files["warped_fixed"] = "warped_fixed.nii.gz"
            write_image(folder / files["warped_fixed"], warped, moving.affine, like=moving)
        dense = forward[0]
        if "jacobian" in self.write and isinstance(dense, DisplacementField):
            files["jacobian"] = "jacobian.nii.gz"
            write_image(folder / files["jacobian"], jacobian_determinant(dense.ddf[None])[0], dense.grid.affine)
        return files

    def _write_transforms(
        self, folder: Path, forward: list[Step], inverse: list[Step], matrix: np.ndarray
    ) -> dict[str, str]:
        files = {}
        if "affine" in self.write and not np.allclose(matrix, np.eye(len(matrix))):
            files["affine"] = "affine.tfm"
            write_affine_transform(folder / files["affine"], matrix)
        for name, composite, steps in (("forward", "transform", forward), ("inverse", "inverse_transform", inverse)):
            for step in steps:
                if name in self.write and isinstance(step, DisplacementField):
                    files[name] = f"{name}_field.nii.gz"
                    write_displacement_field(folder / files[name], step.ddf, step.grid)
            if "composite" in self.write and steps and write_composite_transform(folder / f"{composite}.h5", steps):
                files[composite] = f"{composite}.h5"
        return files


def world_steps(data: Mapping[Hashable, Any], matrix: np.ndarray) -> tuple[list[Step], list[Step]]:
    """Forward and inverse transform of a registered item; the inverse is empty if the prediction has none."""
    affine = np.asarray(data["grid_affine"], dtype=np.float64)
    fields = []
    for key in ("ddf", "inverse_ddf"):
        ddf = data["pred"].get(key)
        if ddf is not None:
            ddf = torch.as_tensor(ddf).detach().cpu().float()
            if ddf.ndim != len(affine) or ddf.shape[0] != ddf.ndim - 1:
                raise ValueError(f"expected pred[{key!r}] of shape (D, *S) for one pair, got {tuple(ddf.shape)}")
        fields.append(None if ddf is None else DisplacementField(ddf, Grid(affine, tuple(ddf.shape[1:]))))
    dense, inverse_dense = fields
    if dense is None:
        raise ValueError(f"expected a field under pred['ddf'], got the keys {sorted(data['pred'])}")
    aligned = not np.allclose(matrix, np.eye(len(matrix)))
    forward: list[Step] = [dense, matrix] if aligned else [dense]
    if inverse_dense is None:
        return forward, []
    return forward, [np.linalg.inv(matrix), inverse_dense] if aligned else [inverse_dense]


def warp_labels(labels: Volume, grid: Grid, steps: Sequence[Step], *, mode: str = "nearest") -> Tensor:
    """A label map looked up on a grid, shape (1, *grid.size), by nearest neighbour or by the most likely label."""
    if mode == "nearest":
        return resample(labels.data, labels.affine, grid, steps=steps, mode="nearest")
    best = torch.zeros(1, *grid.size)
    result = torch.zeros(1, *grid.size, dtype=labels.data.dtype)
    for value in torch.unique(labels.data):
        # Outside the moving image every share is 0 and the background stays.
        share = resample((labels.data == value).float(), labels.affine, grid, steps=steps)
        result[share > best] = value
        best = torch.maximum(best, share)
    return result


def file_stem(path: str) -> str:
    name = Path(path).name
    return name.removesuffix(".gz").rpartition(".")[0] or name
