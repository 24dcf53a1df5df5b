"""Write an image in the format of its file's ending."""

from __future__ import annotations

import os

import nibabel as nib
import numpy as np

from .grids import flip_lps
from .readers import Itk, import_itk

_NIFTI = (".nii", ".nii.gz")
_MGH = (".mgz", ".mgh")
_ITK = (".mha", ".nrrd")


def image_ending(path: str | os.PathLike[str]) -> str | None:
    """The ending of an image file, if images can be written in its format."""
    found = [ending for ending in (*_NIFTI, *_MGH, *_ITK) if str(path).lower().endswith(ending)]
    return max(found, key=len, default=None)


def check_image_ending(path: str | os.PathLike[str]) -> None:
    """Raises ValueError: if images cannot be written in the format of this ending, or there is none."""
    if image_ending(path) is None:
        endings = ", ".join((*_NIFTI, *_MGH, *_ITK))
        raise ValueError(f"{path}: expected the name of an image file that ends in one of {endings}")


def check_image_format(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Raises ValueError: if there is no such format, or it cannot hold an array of this shape and type."""
    check_image_ending(path)
    if str(path).lower().endswith(_NIFTI):
        return
    if _without_single_axes(array).ndim > 3 or array.dtype.kind not in "fiu":
        raise ValueError(f"{path}: only NIfTI files (.nii.gz) can hold an image of shape {array.shape}, {array.dtype}")


def _without_single_axes(array: np.ndarray) -> np.ndarray:
    """An array without the axes of one voxel at its end, beyond the third."""
    return array.reshape(array.shape[: max([3, *[i + 1 for i, n in enumerate(array.shape) if n > 1]])])


def save_image(image: nib.Nifti1Image, path: str | os.PathLike[str]) -> None:
    """Write a NIfTI image as the format that the path's ending names.

    Raises:
        ValueError: if there is no such format, or it cannot hold the image.
        ImportError: if the format needs `itk` and it is not installed.
    """
    path = str(path)
    array = np.asarray(image.dataobj)
    check_image_format(path, array)
    name = path.lower()
    if name.endswith(_NIFTI):
        nib.save(image, path)
        return
    array = _without_single_axes(array)
    if name.endswith(_MGH):
        _save_mgh(array, image.affine, path)
    else:
        _save_with_itk(array, image.affine, path)


def _save_mgh(array: np.ndarray, affine: np.ndarray, path: str) -> None:
    kinds = {"f": np.float32, "u": np.uint8 if array.dtype == np.uint8 else np.int32}
    small = np.int16 if array.dtype in (np.int8, np.int16) else np.int32
    array = array if array.ndim == 3 else array[..., None]
    nib.save(nib.MGHImage(array.astype(kinds.get(array.dtype.kind, small)), affine), path)


def _save_with_itk(array: np.ndarray, affine: np.ndarray, path: str) -> None:
    itk = import_itk(f"writing {path}")
    # What itk's Python package has no type for is written as the next larger one.
    wider = {np.dtype(np.int8): np.int16, np.dtype(np.int64): np.int32, np.dtype(np.uint64): np.uint32}
    array = array.astype(wider.get(array.dtype, array.dtype))
    image = itk.image_from_array(np.ascontiguousarray(array.T))
    d = array.ndim
    kept = [*range(d), 3]
    place_itk_image(itk, image, affine[np.ix_(kept, kept)])
    itk.imwrite(image, path, compression=True)


def place_itk_image(itk: Itk, image: Itk, affine: np.ndarray) -> None:
    """Give an ITK image the frame of an affine (D + 1, D + 1), voxel to RAS mm."""
    d = len(affine) - 1
    lps = flip_lps(d) @ affine
    spacing = np.linalg.norm(lps[:d, :d], axis=0)
    image.SetOrigin([float(x) for x in lps[:d, d]])
    image.SetSpacing([float(x) for x in spacing])
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(lps[:d, :d] / spacing)))


def storable(array: np.ndarray) -> np.ndarray:
    """The same numbers in a type that image files and libraries hold: no booleans, no 64-bit integers."""
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        # NIfTI readers differ in what they make of 64-bit integers; nibabel refuses to write them unasked.
        return array.astype(np.int32 if np.abs(array).max(initial=0) < 2**31 else np.float64)
    return array
