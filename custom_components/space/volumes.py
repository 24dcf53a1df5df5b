"""Read images and label maps of any format, orientation and spacing, and refuse what is no image.

Convention: affines map voxels to RAS millimetres, whatever the file's own convention.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch
from torch import Tensor

from ..notices import warn
from .background import background_value
from .frames import Frame, refuse_shear
from .grids import Grid
from .memory_images import MemoryImage, MemoryName
from .planes import plane_affine, slice_axis, slice_frame
from .readers import existing, image_size, is_nibabel, nibabel_frame, open_nibabel, read_itk_components, read_nibabel
from .resampling import Fill, resample
from .values import finite_values

if TYPE_CHECKING:
    from monai.data import MetaTensor

_ROUNDING = 1e-3  # scale factors are stored as float32: 3 may come back as 2.99995


@dataclass(frozen=True)
class Volume:
    """An image read from a file, or from memory: `data` (C, *S) and `affine` (D + 1, D + 1), voxel to RAS mm.

    C is 1 unless there are several channels (`with_channels`).

    `file_affine` (4, 4), `file_shape` and `file_dtype` say how the file itself stores it (a 2-D image may be one slice
    of a 3-D file); `has_frame` is False when the file says nothing about its place in the world. `whole` is the
    3-D image from which a slice was cut. The `path` of an image from memory is a `MemoryName`.
    """

    data: Tensor
    affine: np.ndarray
    path: str
    file_affine: np.ndarray
    file_shape: tuple[int, ...]
    file_dtype: np.dtype
    has_frame: bool = True
    whole: Volume | None = None

    @property
    def origin(self) -> str:
        """What tells this image from others: its path, or its name with a digest of what it holds."""
        if not isinstance(self.path, MemoryName):
            return self.path
        found = hashlib.sha256(self.data.numpy().tobytes() + self.file_affine.tobytes())
        return os.path.join(os.sep, "memory", f"{self.path}-{found.hexdigest()[:8]}")

    def meta_tensor(self, data: Tensor) -> MetaTensor:
        """Voxels (C, *S) on this image's grid, with the axes of its file and its affine: a slice keeps its axis."""
        from monai.data import MetaTensor  # takes seconds

        affine = torch.from_numpy(self.file_affine)
        return MetaTensor(data.reshape(len(data), *self.file_shape[:3]), affine=affine)

    @property
    def grid(self) -> Grid:
        """The native grid of the image."""
        return Grid(self.affine, tuple(self.data.shape[1:]))

    @cached_property
    def background(self) -> Fill:
        """The value for places outside the image, for each channel: 0 for labels, else `background_value`."""
        return [background_value(one.numpy()) if one.is_floating_point() else 0.0 for one in self.data]

    @property
    def first(self) -> Volume:
        """The first channel alone."""
        return self if len(self.data) == 1 else replace(self, data=self.data[:1])

    def with_channels(self, others: Sequence[Volume]) -> Volume:
        """This image and others of the same person as channels, all on this one's grid; the world relates them.

        Raises:
            ValueError: if one has another dimension, or shows nothing on this grid.
        """
        channels = [self.data]
        for other in others:
            if other.data.ndim != self.data.ndim:
                shapes = f"{self.path} of shape {self.file_shape}, and {other.path} of shape {other.file_shape}"
                raise ValueError(f"expected channels of one dimension, got {shapes}")
            data = other.data
            if other.grid.size != self.grid.size or not np.allclose(other.affine, self.affine, atol=1e-4):
                data = resample(data, other.affine, self.grid, fill=other.background, antialias=True)
            if data.min() == data.max():
                raise ValueError(
                    f"{other.path}: nothing of it shows where {self.path} lies; it is to be a channel of it"
                )
            channels.append(data)
        return replace(self, data=torch.cat(channels)) if others else self

    @property
    def grid_in_file(self) -> Grid:
        """The grid as the file has it, of three axes."""
        return Grid(self.file_affine, (*self.file_shape, 1)[:3])

    @property
    def is_slice(self) -> bool:
        """Whether this is a 2-D image that its file stores as one slice of a 3-D one."""
        return len(self.affine) == 3 and len(self.file_shape) > 2

    @property
    def frame(self) -> np.ndarray:
        """The frame (4, 4) of the plane of a 2-D image, see `planes`."""
        axis = slice_axis(self.file_shape, self.path)
        return slice_frame(self.file_affine, axis) if axis is not None and self.is_slice else np.eye(4)

    def filled(self, value: float) -> Volume:
        """The same image with another background."""
        result = replace(self, whole=self.whole and self.whole.filled(value))
        vars(result)["background"] = value
        return result

    def cut(self, like: Volume) -> Volume:
        """This 3-D image where the slice `like` lies, as a 2-D one that keeps the whole; labels by nearest voxel."""
        mode = "linear" if self.data.is_floating_point() else "nearest"
        data = resample(self.data, self.affine, like.grid_in_file, mode=mode, fill=self.background)
        return replace(
            self,
            data=data.reshape(-1, *like.grid.size),
            affine=like.affine,
            file_affine=like.file_affine,
            file_shape=like.file_shape,
            whole=self,
        )

    @property
    def thickness_mm(self) -> float:
        """Of the slice of a 2-D image."""
        axis = slice_axis(self.file_shape, self.path)
        return float(np.linalg.norm(self.file_affine[:3, 2 if axis is None else axis]))


class _Header(TypedDict):
    """The arguments of `Volume` beside the data."""

    affine: np.ndarray
    path: str
    file_affine: np.ndarray
    file_shape: tuple[int, ...]
    file_dtype: np.dtype
    has_frame: bool


def load_image(path: str | os.PathLike[str] | MemoryImage) -> Volume:
    """Read a scalar 2-D or 3-D intensity image, a file or one in memory, as float32.

    NIfTI and MGZ are read by nibabel, everything else by `itk`. A NIfTI file without a frame (qform and sform code 0)
    is placed as ITK places it, origin 0 and identity direction in LPS, with a warning.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, has several channels or frames, an affine that cannot be inverted, values
            that are infinite, or is constant. NaN is background, see `finite_values`.
        ImportError: if the format needs `itk` and it is not installed.
    """
    array, header = _read_volume(path)
    if array.min() == array.max():
        raise ValueError(f"{path}: expected an image, got the constant {array.flat[0]:g} in every voxel")
    array = array.astype(np.float32)
    return Volume(torch.from_numpy(array)[None], **header)


def load_channels(sources: Sequence[str | os.PathLike[str] | MemoryImage]) -> Volume:
    """Read the channels of one person, on the grid of the first. Errors as `load_image` and `with_channels`."""
    first, *others = [load_image(source) for source in sources]
    return first.with_channels(others)


def spatial_dims_of(path: str | os.PathLike[str] | MemoryImage) -> int:
    """Whether a file holds a 2-D image (also one slice along any axis) or a 3-D one, by its header alone.

    Errors as `load_image`, as far as the header tells.
    """
    if isinstance(path, MemoryImage):
        return 3 if slice_axis(path.array.shape[: path.num_axes], path.name) is None else 2
    path = existing(path)
    return 3 if slice_axis(image_size(path), path) is None else 2


def load_labels(path: str | os.PathLike[str] | MemoryImage) -> Volume:
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


def load_grid(path: str | os.PathLike[str] | MemoryImage) -> Volume:
    """Where an image lies. Its voxels may be blank, NaN, colours or several frames: they are not read, `data` is 0.

    Raises:
        FileNotFoundError, ImportError: as `load_image`.
        ValueError: if the file is damaged, or its affine cannot be inverted.
    """
    if isinstance(path, MemoryImage):
        shape, dtype, frame = path.array.shape[: path.num_axes], path.array.dtype, path.frame
    elif is_nibabel(path := existing(path)):
        image = open_nibabel(path)
        shape, dtype, frame = tuple(image.shape), image.get_data_dtype(), nibabel_frame(image, path)
    else:
        array, frame, d = read_itk_components(path)
        shape, dtype = array.shape[:d], array.dtype
    axis, header = _header(path, shape[:3], dtype, frame)
    size = [n for i, n in enumerate(shape[:3]) if i != axis]
    return Volume(torch.zeros(1).expand(1, *size), **header)


def load_mask(path: str | os.PathLike[str] | MemoryImage) -> Volume:
    """Read a mask: a label map, or probabilities from 0 to 1 as float32. Errors as `load_image`.

    Raises:
        ValueError: also if a value is neither an integer nor a probability, or the mask is empty.
    """
    array, header = _read_volume(path)
    if not array.any():
        raise ValueError(f"{path}: expected a mask, got 0 in every voxel")
    if array.dtype.kind != "f" or np.allclose(array, np.round(array), rtol=0, atol=_ROUNDING):
        return load_labels(path)
    if array.min() < 0 or array.max() > 1:
        found = f"{array.min():g} to {array.max():g}"
        raise ValueError(f"{path}: expected a mask of integers, or of probabilities from 0 to 1, got {found}")
    return Volume(torch.from_numpy(array.astype(np.float32))[None], **header)


def _read_volume(path: str | os.PathLike[str] | MemoryImage) -> tuple[np.ndarray, _Header]:
    """A checked array of 2 or 3 axes and the remaining arguments of `Volume`."""
    array, frame, d = voxels_of(path)
    # The last axis of a NIfTI file is time.
    array = _one_number(array, d, str(path), isinstance(path, MemoryImage) or not is_nibabel(existing(path)))
    shape, dtype = array.shape, array.dtype
    array = array.reshape(shape[:3])
    array = finite_values(array, str(path))
    axis, header = _header(path, shape, dtype, frame)
    return array if axis is None or array.ndim == 2 else array.squeeze(axis), header


def voxels_of(path: str | os.PathLike[str] | MemoryImage) -> tuple[np.ndarray, Frame, int]:
    """The voxels of a file or of an image in memory, their frame, and the number of axes without components."""
    if isinstance(path, MemoryImage):
        return path.array, path.frame, path.num_axes
    path = existing(path)
    return (*read_nibabel(path), 3) if is_nibabel(path) else read_itk_components(path)


_LUMINANCE = np.array([0.2125, 0.7154, 0.0721])  # ITK's weights of red, green and blue


def _one_number(array: np.ndarray, num_axes: int, path: str, has_vectors: bool) -> np.ndarray:
    """An image with one number in each voxel; colours become their luminance.

    Raises:
        ValueError: if the file holds nothing, several frames, vectors or complex numbers.
    """
    if array.size == 0:
        raise ValueError(f"{path}: expected an image, got no voxels")
    colours = array.dtype.names or ()
    if colours[:3] == ("R", "G", "B"):
        array, num_axes, has_vectors = np.stack([array[c] for c in colours], axis=-1), array.ndim, True
    if has_vectors and array.ndim == num_axes + 1 and array.dtype == np.uint8 and array.shape[-1] in (3, 4):
        warn(f"{path}: colours were converted to their luminance")
        array = (array[..., :3] @ _LUMINANCE).astype(np.float32)
    if array.dtype.kind not in "fiub":
        raise ValueError(
            f"{path}: expected a grey-value image, got voxels of type {array.dtype}; for complex numbers give the "
            "magnitude"
        )
    if array.ndim < 2 or any(n != 1 for n in array.shape[3:]) or any(n != 1 for n in array.shape[num_axes:]):
        raise ValueError(
            f"{path}: expected a 2-D or 3-D image with one channel and one frame, got shape {array.shape}; of a series "
            "register one frame or the mean, then bring all frames along with `morphzoo apply`"
        )
    return array


def _header(
    source: str | os.PathLike[str] | MemoryImage, shape: tuple[int, ...], dtype: np.dtype, frame: Frame
) -> tuple[int | None, _Header]:
    """The axis of a file's one slice, if it has one, and what `Volume` says about the file."""
    path = source.name if isinstance(source, MemoryImage) else str(source)
    refuse_shear(frame.affine, path)
    for note in frame.notes:
        warn(note)
    if not frame.is_given:
        warn(f"{path}: the file has no world frame; placed at the origin with its voxel spacing, as ITK does")
    axis = slice_axis(shape, path)
    return axis, {
        "affine": frame.affine if axis is None else plane_affine(frame.affine, axis),
        "path": path,
        "file_affine": frame.affine,
        "file_shape": shape,
        "file_dtype": dtype,
        "has_frame": frame.is_given,
    }
