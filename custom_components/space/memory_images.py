"""Images that are in memory, whatever library holds them, as readers take them in place of a file.

Convention: as in `readers`, spatial axes come first, then components; affines map voxels to RAS millimetres.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from .frames import Frame
from .grids import flip_lps
from .planes import embed
from .readers import Itk, import_itk, itk_voxels, nibabel_frame, read_nibabel
from .writers import place_itk_image, storable

if TYPE_CHECKING:
    from monai.data import MetaTensor

# A path, an image of nibabel or ITK, a MetaTensor (C, *S), or an array (*S) with its affine: RAS mm.
Image: TypeAlias = object


class MemoryName(str):
    """The name of an image in memory, where a file has its path."""


@dataclass(frozen=True, eq=False)
class MemoryImage:
    """An image in memory.

    Args:
        array: (*S), or (*S, C) with several components.
        frame: its affine (4, 4).
        num_axes: number of spatial axes.
        name: stands for the path in messages and names.
    """

    array: np.ndarray
    frame: Frame
    num_axes: int
    name: MemoryName

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<{self.name} {self.array.shape}>"


Source: TypeAlias = "str | MemoryImage"


def source_of(image: Image, name: str) -> Source:
    """An image as readers take it: the absolute path of a file, or its voxels with their frame.

    Args:
        image: a path; an image of nibabel or of ITK; a MetaTensor (C, *S), to which pending operations are applied; or
            a pair of an array (*S) and its affine (D + 1, D + 1), or (4, 4), to RAS mm.
        name: of the image, for messages and results.
    Raises:
        ValueError: if it is none of these, or the shapes do not fit.
    """
    if isinstance(image, MemoryImage):
        return image
    if isinstance(image, str | os.PathLike):
        return os.path.abspath(image)
    name = MemoryName(name)
    if isinstance(image, nib.spatialimages.SpatialImage):
        return MemoryImage(np.asarray(image.dataobj), nibabel_frame(image, name), min(len(image.shape), 3), name)
    if isinstance(image, Tensor) and hasattr(image, "pending_operations"):  # only then has monai to be imported
        return _of_meta_tensor(image, name)
    if isinstance(image, tuple) and len(image) == 2 and isinstance(image[0], np.ndarray | Tensor):
        return _of_array(image[0], image[1], name)
    if hasattr(image, "GetLargestPossibleRegion"):
        array, frame, num_axes = itk_voxels(image)
        return MemoryImage(array, frame, num_axes, name)
    shape = getattr(image, "shape", None)
    found = repr(image)[:80] if shape is None else f"{type(image).__name__} of shape {tuple(shape)}"
    raise ValueError(
        f"{name}: expected a path, an image of nibabel or ITK, a MetaTensor, or (array, affine), got {found}"
    )


def _of_meta_tensor(image: MetaTensor, name: MemoryName) -> MemoryImage:
    if image.pending_operations:
        from monai.transforms.lazy.functional import apply_pending

        image, _ = apply_pending(image)
    if image.ndim not in (3, 4):
        raise ValueError(f"{name}: expected a MetaTensor (C, *S) with 2 or 3 spatial axes, got {tuple(image.shape)}")
    affine = image.affine.detach().cpu().numpy().astype(np.float64)
    if str(image.meta.get("space", "RAS")).rpartition(".")[2] == "LPS":
        affine = flip_lps(len(affine) - 1) @ affine
    array = _numpy(image.as_tensor())
    array = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    return MemoryImage(array, _framed(affine, image.ndim - 1, name), image.ndim - 1, name)


def _of_array(array: np.ndarray | Tensor, affine: object, name: MemoryName) -> MemoryImage:
    array = _numpy(array) if isinstance(array, Tensor) else array
    if array.ndim not in (2, 3):
        raise ValueError(f"{name}: expected an array of 2 or 3 axes with its affine, got shape {array.shape}")
    return MemoryImage(array, _framed(affine, array.ndim, name), array.ndim, name)


def _framed(affine: object, num_axes: int, name: str) -> Frame:
    try:
        matrix = np.asarray(affine, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape not in ((4, 4), (num_axes + 1, num_axes + 1)):
        raise ValueError(f"{name}: expected an affine (4, 4) to RAS mm, got shape {matrix.shape}")
    return Frame(matrix if len(matrix) == 4 else embed(matrix))


def _numpy(tensor: Tensor) -> np.ndarray:
    """A tensor as an array of a type that numpy has."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def channels_of(image: Image, name: str) -> list[Source]:
    """The channels of an image, each as a source: of a list its items, of a MetaTensor (C, *S) its channels.

    Raises:
        ValueError: for an empty list.
    """
    if isinstance(image, list):
        if not image:
            raise ValueError(f"{name}: expected an image or a list of channels, got an empty list")
        return [source for one in image for source in channels_of(one, name)]
    if isinstance(image, Tensor) and hasattr(image, "pending_operations") and image.ndim > 2 and len(image) > 1:
        return [source_of(image[i : i + 1], name) for i in range(len(image))]
    return [source_of(image, name)]


def sources_of(images: dict[str, Image | None]) -> dict[str, Source]:
    """Images by role as readers take them; those that are None are left out."""
    return {role: source_of(image, role) for role, image in images.items() if image is not None}


def read_meta_tensor(path: str | os.PathLike[str]) -> MetaTensor:
    """A NIfTI file of one number or several in each voxel as a MetaTensor (C, *S)."""
    from monai.data import MetaTensor

    array, frame = read_nibabel(str(path))
    array = np.moveaxis(array, 3, 0) if array.ndim == 4 else array[None]
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(array)), affine=torch.from_numpy(frame.affine))


def to_nibabel(image: MetaTensor) -> nib.Nifti1Image:
    """A MetaTensor (C, *S) as an image of nibabel: one channel (*S), several along a fourth axis."""
    array = storable(_numpy(image.as_tensor()))
    size = (*array.shape[1:], 1)[:3]
    array = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1).reshape(*size, len(array))
    result = nib.Nifti1Image(array, image.affine.numpy())
    result.header.set_xyzt_units("mm")
    return result


def to_itk(image: MetaTensor) -> Itk:
    """A MetaTensor (C, *S) as an image of ITK, of vectors if it has several channels.

    Raises:
        ImportError: if `itk` is not installed.
    """
    itk, array = import_itk("an image of ITK"), storable(_numpy(image.as_tensor()))
    result = itk.image_from_array(
        np.ascontiguousarray(array[0].T if len(array) == 1 else np.moveaxis(array, 0, -1).swapaxes(0, array.ndim - 2)),
        is_vector=len(array) > 1,
    )
    affine = image.affine.numpy()
    place_itk_image(itk, result, affine if array.ndim == 4 else affine[np.ix_([0, 1, -1], [0, 1, -1])])
    return result
