"""Read images and label maps of any format, orientation and spacing, and refuse what is no image.

Convention: affines map voxels to RAS millimetres, whatever the file's own convention.
"""

from __future__ import annotations

import math
import os
import zlib
from dataclasses import dataclass
from typing import Any, TypedDict

import nibabel as nib
import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError
from torch import Tensor

from ..notices import warn
from .grids import Grid, flip_lps

_ROUNDING = 1e-3  # scale factors are stored as float32: 3 may come back as 2.99995

_NIBABEL_ENDINGS = (".nii", ".nii.gz", ".mgz", ".mgh")


@dataclass(frozen=True)
class Volume:
    """An image read from a file: `data` (1, *S) and `affine` (D + 1, D + 1), voxel to RAS mm.

    `file_affine` (4, 4), `file_shape` and `file_dtype` say how the file itself stores it (a 2-D image may be one slice
    of a 3-D file); `has_frame` is False when the file says nothing about its place in the world.
    """

    data: Tensor
    affine: np.ndarray
    path: str
    file_affine: np.ndarray
    file_shape: tuple[int, ...]
    file_dtype: np.dtype
    has_frame: bool = True

    @property
    def grid(self) -> Grid:
        """The native grid of the image."""
        return Grid(self.affine, tuple(self.data.shape[1:]))


class _Header(TypedDict):
    """The arguments of `Volume` beside the data."""

    affine: np.ndarray
    path: str
    file_affine: np.ndarray
    file_shape: tuple[int, ...]
    file_dtype: np.dtype
    has_frame: bool


def load_image(path: str | os.PathLike[str]) -> Volume:
    """Read a scalar 2-D or 3-D intensity image as float32.

    NIfTI and MGZ are read by nibabel, everything else by `itk`. A NIfTI file without a frame (qform and sform code 0)
    is placed as ITK places it, origin 0 and identity direction in LPS, with a warning.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, has several channels or frames, an affine that cannot be inverted, holds NaN
            or infinity, or is constant.
        ImportError: if the format needs `itk` and it is not installed.
    """
    array, header = _read_volume(path)
    if array.min() == array.max():
        raise ValueError(f"{path}: expected an image, got the constant {array.flat[0]:g} in every voxel")
    return Volume(torch.from_numpy(array.astype(np.float32))[None], **header)


def spatial_dims_of(path: str | os.PathLike[str]) -> int:
    """Whether a file holds a 2-D or a 3-D image, by its header alone. Errors as `load_image`, as far as it tells."""
    path = _existing(path)
    size = list(_open_nibabel(path).shape) if path.lower().endswith(_NIBABEL_ENDINGS) else _itk_size(path)
    return 2 if all(n == 1 for n in size[2:]) else 3


def _itk_size(path: str) -> list[int]:
    itk = import_itk(f"reading {path}")
    reader = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
    if reader is None:
        raise ValueError(f"{path}: cannot be read as an image (itk knows no such format)")
    reader.SetFileName(path)
    reader.ReadImageInformation()
    return [reader.GetDimensions(i) for i in range(reader.GetNumberOfDimensions())]


def load_labels(path: str | os.PathLike[str]) -> Volume:
    """Read a label map (or mask) as int16, or int32 where int16 is too small. Errors as `load_image`.

    Integers that a scale factor or a floating-point type has moved by up to 1e-3 are rounded. `file_dtype` of such a
    file is the integer type.

    Raises:
        ValueError: also if a value is not an integer.
    """
    array, header = _read_volume(path)
    if array.dtype.kind == "f":
        whole = np.round(array)
        fractions = np.abs(array - whole) > _ROUNDING
        if fractions.any():
            raise ValueError(f"{path}: expected a label map of integers, got values such as {array[fractions][0]:g}")
        array = whole
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if not -(2**31) <= low <= high < 2**31:
        raise ValueError(f"{path}: expected labels that fit 32 bits, got {low} to {high}")
    dtype = np.int16 if low >= -(2**15) and high < 2**15 else np.int32
    if array.dtype.kind == "f":
        header["file_dtype"] = np.dtype(dtype)
    return Volume(torch.from_numpy(array.astype(dtype))[None], **header)


def load_grid(path: str | os.PathLike[str]) -> Volume:
    """Where an image lies. Its voxels may be blank, NaN, colours or several frames: they are not read, `data` is 0.

    Raises:
        FileNotFoundError, ImportError: as `load_image`.
        ValueError: if the file is damaged, or its affine cannot be inverted.
    """
    path = _existing(path)
    if path.lower().endswith(_NIBABEL_ENDINGS):
        image = _open_nibabel(path)
        shape, dtype, (affine, has_frame) = tuple(image.shape), image.get_data_dtype(), _nibabel_frame(image)
    else:
        array, affine, d = read_itk_components(path)
        shape, dtype, has_frame = array.shape[:d], array.dtype, True
    header = _header(path, shape[:3], dtype, affine, has_frame)
    size = shape[:2] if len(header["affine"]) == 3 else shape[:3]
    return Volume(torch.zeros(1).expand(1, *size), **header)


def _existing(path: str | os.PathLike[str]) -> str:
    path = str(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such image file")
    return path


def _read_volume(path: str | os.PathLike[str]) -> tuple[np.ndarray, _Header]:
    """A checked array of 2 or 3 axes and the remaining arguments of `Volume`."""
    path = _existing(path)
    read = read_nibabel if path.lower().endswith(_NIBABEL_ENDINGS) else _read_itk
    array, affine, has_frame = read(path)
    shape, dtype = array.shape, array.dtype
    if dtype.kind not in "fiub":
        raise ValueError(f"{path}: expected a grey-value image, got voxels of type {dtype} (a colour image?)")
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3):
        raise ValueError(f"{path}: expected a 2-D or 3-D image with one channel, got shape {shape}")
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{path}: expected finite values, got {np.count_nonzero(~np.isfinite(array))} NaN or infinite")
    header = _header(path, shape, dtype, affine, has_frame)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return array, header


def _header(path: str, shape: tuple[int, ...], dtype: np.dtype, affine: np.ndarray, has_frame: bool) -> _Header:
    """What `Volume` says about a file of 2 or 3 axes (and perhaps further ones of length 1)."""
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
        raise ValueError(f"{path}: expected an invertible affine, got {np.round(affine[:3], 4).tolist()}")
    if not has_frame:
        warn(f"{path}: the file has no world frame; placed at the origin with its voxel spacing, as ITK does")
    return {
        "affine": plane_affine(affine) if all(n == 1 for n in shape[2:3]) else affine,
        "path": path,
        "file_affine": affine,
        "file_shape": shape,
        "file_dtype": dtype,
        "has_frame": has_frame,
    }


def _open_nibabel(path: str) -> Any:
    try:
        return nib.load(path)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        raise ValueError(f"{path}: cannot be read as an image, the file is truncated or damaged ({error})") from error


def _nibabel_frame(image: Any) -> tuple[np.ndarray, bool]:
    """The affine of a nibabel image, and whether the file says it."""
    if isinstance(image, nib.Nifti1Image) and int(image.header["qform_code"]) == int(image.header["sform_code"]) == 0:
        return np.diag([*(np.array([-1, -1, 1.0]) * np.r_[image.header.get_zooms(), 1, 1][:3]), 1.0]), False
    return np.asarray(image.affine, dtype=np.float64), True


def read_nibabel(path: str) -> tuple[np.ndarray, np.ndarray, bool]:
    """The scaled voxels of a file, all axes, any type, native byte order; its affine; whether the file says it."""
    image = _open_nibabel(path)
    try:
        array = np.asarray(image.dataobj)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        raise ValueError(f"{path}: cannot be read as an image, the file is truncated or damaged ({error})") from error
    # Byte order matters to torch.
    return array.astype(array.dtype.newbyteorder("="), copy=False), *_nibabel_frame(image)


def _read_itk(path: str) -> tuple[np.ndarray, np.ndarray, bool]:
    array, affine, d = read_itk_components(path)
    if array.ndim != d or d > 3:
        channels = math.prod(array.shape[d:])
        raise ValueError(f"{path}: expected a 2-D or 3-D image with one channel, got {d} axes and {channels} channels")
    return array, affine, True


def read_itk_components(path: str) -> tuple[np.ndarray, np.ndarray, int]:
    """The voxels of a file of a format that `itk` reads, components last; the affine of its first three axes (4, 4);
    and the number of its axes, without the components."""
    itk = import_itk(f"reading {path}")
    try:
        image = itk.imread(path)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"{path}: cannot be read as an image ({reason})") from error
    d = image.GetImageDimension()
    array = itk.array_from_image(image)
    array = array.T if array.ndim == d else np.moveaxis(array.T, 0, -1)
    placed = min(d, 3)
    lps = np.eye(4)
    lps[:placed, :placed] = (itk.array_from_matrix(image.GetDirection()) * np.array(itk.spacing(image)))[
        :placed, :placed
    ]
    lps[:placed, 3] = np.array(itk.origin(image))[:placed]
    return array, flip_lps(3) @ lps, d


def import_itk(purpose: str) -> Any:
    """The `itk` module.

    Raises:
        ImportError: if it is not installed, naming what it is needed for.
    """
    try:
        import itk
    except ImportError as error:
        raise ImportError(f"{purpose} needs the package itk: pip install 'morphzoo[demo]'") from error
    return itk


def plane_affine(affine: np.ndarray) -> np.ndarray:
    """In-plane frame (3, 3) of the first slice of a 3-D affine; see the module's docstring."""
    axes = affine[:3, :2]
    directions = axes / np.linalg.norm(axes, axis=0)
    world_axes = nib.orientations.io_orientation(affine)[:2, 0].astype(int)
    order = np.argsort(world_axes)
    plane = sorted(world_axes)
    normal_axis = ({0, 1, 2} - set(plane)).pop()
    if np.abs(directions[normal_axis]).max() < 1e-4:
        rows = np.eye(3)[plane]
    else:
        rows = np.stack([directions[:, i] * np.sign(directions[world_axes[i], i]) for i in order])
    result = np.eye(3)
    result[:2, :2], result[:2, 2] = rows @ axes, rows @ affine[:3, 3]
    return result
