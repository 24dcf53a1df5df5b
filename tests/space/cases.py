"""What several test files of this folder share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from custom_components.fields import identity_grid
from custom_components.space import Grid

OBLIQUE = nib.affines.from_matvec(
    np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0, 0, 1.0]]) @ np.diag([1.5, 2.0, 2.5]), [5.0, -7.0, 3.0]
)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> str:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return str(path)


def noise(*size: int) -> np.ndarray:
    return np.random.default_rng(0).random(size).astype(np.float32)


def world_points(grid: Grid) -> np.ndarray:
    index = identity_grid(grid.size, dtype=torch.float64).flatten(1).T.numpy()
    return index @ grid.affine[:-1, :-1].T + grid.affine[:-1, -1]


def write_dicom(itk: Any, path: str, folder: Path, series: str) -> None:
    """Write an image of integers as one DICOM file a slice; the files' names do not follow the slices' order."""
    folder.mkdir(exist_ok=True)
    image = itk.imread(path, itk.SS)
    direction = itk.array_from_matrix(image.GetDirection())
    origin, spacing = np.array(itk.origin(image)), np.array(itk.spacing(image))
    array = itk.array_from_image(image)
    for k, plane in enumerate(array):
        one = itk.image_from_array(plane[None])
        one.SetDirection(image.GetDirection())
        one.SetSpacing(spacing.tolist())
        place = origin + direction[:, 2] * spacing[2] * k
        one.SetOrigin(place.tolist())
        said = one.GetMetaDataDictionary()
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
            "0008|0060": "MR",
            "0020|000d": "1.2.9",
            "0020|000e": series,
            "0020|0013": str(k),
            "0020|0032": "\\".join(f"{x:.6f}" for x in place),
            "0020|0037": "\\".join(f"{x:.6f}" for x in direction[:, :2].T.ravel()),
        }
        for tag, value in tags.items():
            said[tag] = value
        writer = itk.ImageFileWriter[type(one)].New(
            Input=one, FileName=str(folder / f"{series}_{(3 * k) % 100:02d}.dcm")
        )
        io = itk.GDCMImageIO.New()
        io.KeepOriginalUIDOn()
        writer.SetImageIO(io)
        writer.UseInputMetaDataDictionaryOff()
        io.SetMetaDataDictionary(said)
        writer.Update()
