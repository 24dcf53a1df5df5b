"""All numbers of an image file: frames of a series, components of vectors, colours, real and imaginary parts.

Convention: components come first, (C, *S); in the file they are the axes after the spatial ones.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from .files import write_voxels
from .grids import Grid
from .memory_images import MemoryImage
from .readers import is_nibabel
from .volumes import Volume, load_grid, voxels_of

_LABEL = 1002  # NIfTI's intent code of label maps


@dataclass(frozen=True)
class Components:
    """The voxels of a file, whatever a voxel holds.

    Args:
        data: (C, *S), real numbers.
        grid: where it lies.
        path: of the file.
        axes: lengths of the file's axes after the spatial ones; their product is C, twice that for complex numbers,
            three or four times that for colours.
        voxel: type of a voxel in the file, once scale factors are applied: complex or structured (colours), too.
        says_labels: the header calls the file a label map.
        header: of a NIfTI file, to keep what is said about frames and components.
    """

    data: np.ndarray
    grid: Grid
    path: str
    axes: tuple[int, ...]
    voxel: np.dtype
    says_labels: bool = False
    header: nib.Nifti1Header | None = None

    def stored(self, data: np.ndarray) -> np.ndarray:
        """Components (C, *S) of any grid as the voxels of a file, (*S, *axes): colours in the file's type, complex
        numbers whole."""
        data = np.moveaxis(data, 0, -1)
        parts = _parts(self.voxel)
        data = data.reshape(*data.shape[:-1], *self.axes, *([parts] if parts > 1 else []))
        if self.voxel.kind == "c":
            return np.ascontiguousarray(data, dtype=np.float32).view(np.complex64)[..., 0]
        if self.voxel.names:
            data = np.ascontiguousarray(np.clip(np.round(data), 0, 255), dtype=np.uint8)
            return data.view(self.voxel)[..., 0]
        return data


def _parts(voxel: np.dtype) -> int:
    """Numbers in a voxel."""
    return len(voxel.names) if voxel.names else 2 if voxel.kind == "c" else 1


def load_components(source: str | os.PathLike[str] | MemoryImage, spatial_dims: int = 2) -> Components:
    """Read an image of any number of frames and components, a file or one in memory.

    Args:
        source: path of a file, or an image in memory.
        spatial_dims: 3 leaves the one slice of a file in the 3-D world, for 3-D transforms; 2 makes it a 2-D image.
    Raises:
        FileNotFoundError, ImportError: as `load_image`.
        ValueError: if the file is damaged, its affine cannot be inverted, or voxels hold something else than numbers.
    """
    volume, path, header = load_grid(source), str(source), None
    grid = volume.grid_in_file if spatial_dims == 3 else volume.grid
    array, _, d = voxels_of(source)
    if not isinstance(source, MemoryImage) and is_nibabel(path):
        head = nib.load(path).header
        header = head if isinstance(head, nib.Nifti1Header) else None
    voxel, axes = array.dtype, array.shape[min(d, 3) :]
    if voxel.kind not in "fiubc" and not (voxel.names and all(voxel[name] == np.uint8 for name in voxel.names)):
        raise ValueError(f"{path}: expected an image of numbers or colours, got voxels of type {voxel}")
    if _parts(voxel) > 1:
        array = np.ascontiguousarray(array).view(np.uint8 if voxel.names else f"f{voxel.itemsize // 2}")
    data = np.moveaxis(array.reshape(*grid.size, math.prod(axes) * _parts(voxel)), -1, 0)
    says_labels = header is not None and int(header["intent_code"]) == _LABEL
    return Components(data, grid, path, axes, voxel, says_labels, header)


def write_components(path: str | os.PathLike[str], data: np.ndarray, source: Components, *, like: Volume) -> None:
    """Write components (C, *S) of an image that was brought onto another grid.

    A NIfTI file keeps what the source's header says about frames and values: intent, repetition time, description.

    Args:
        path: of the file, whose ending names the format.
        data: (C, *S), on the grid of `like`.
        source: the image as it was read.
        like: says where the grid lies (`load_grid`).
    Raises:
        ValueError: if the format cannot hold several components.
    """
    size = [*like.file_shape[:3]]
    size += [1] * (3 - len(size)) if source.axes else []
    write_voxels(path, source.stored(data).reshape(*size, *source.axes), like.file_affine, header=source.header)
