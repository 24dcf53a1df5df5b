"""Write images: NIfTI here, other formats by `writers`; a file is put in place when it is complete."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
from torch import Tensor

from ..results import replacing
from .planes import embed
from .volumes import Volume
from .writers import check_image_format, save_image, storable


def write_image(
    path: str | os.PathLike[str],
    image: Tensor,
    affine: np.ndarray,
    *,
    like: Volume | None = None,
    dtype: np.dtype | None = None,
) -> None:
    """Write an image (*S) or (1, *S), or several (K, *S) along a fourth axis, in the format of the path's ending.

    Args:
        affine: (D + 1, D + 1), voxel to RAS mm.
        like: a volume on the same grid, whose file geometry (a 2-D image may be a slice in 3-D space) is kept.
        dtype: of the file; default that of the tensor.
    """
    array = image.detach().cpu().numpy()
    if dtype is not None:
        array = array.astype(dtype)
    d = affine.shape[0] - 1
    several = [len(array)] if array.ndim == d + 1 and len(array) > 1 else []
    array = np.moveaxis(array, 0, -1) if array.ndim == d + 1 else array
    if like is not None:
        shape = (*like.file_shape, 1)[:3] if several else like.file_shape
        array, affine = array.reshape(*shape, *several), like.file_affine
    elif array.ndim == d + 1:
        array = array.reshape([*array.shape[:d], *[1] * (3 - d if several else 0), *several])
    write_voxels(path, array, embed(affine))


def write_voxels(
    path: str | os.PathLike[str], array: np.ndarray, affine: np.ndarray, *, header: nib.Nifti1Header | None = None
) -> None:
    """Write an array of any number of axes and any type; formats other than NIfTI hold one number in each voxel.

    Args:
        path: of the file, whose ending names the format.
        array: (*S), then frames or components.
        affine: (4, 4), voxel to RAS mm, of the first three axes.
        header: of another file; intent, description and what it says about further axes is kept.
    """
    array = storable(array)
    check_image_format(path, array)  # before there is a temporary file, which the message would name
    with replacing(path) as temporary:
        save_nifti(array, affine, temporary, like=header)


def save_nifti(
    array: np.ndarray, affine: np.ndarray, path: Path, intent: str | None = None, like: nib.Nifti1Header | None = None
) -> None:
    """Write an array with the affine (4, 4), voxel to RAS mm, of its first three axes; `like` as in `write_voxels`."""
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    if intent is not None:
        image.header.set_intent(intent)
    if like is not None:
        for name in ("intent_code", "intent_name", "intent_p1", "intent_p2", "intent_p3", "descrip", "toffset"):
            image.header[name] = like[name]
        image.header["pixdim"][4:] = like["pixdim"][4:]
        image.header.set_xyzt_units("mm", like.get_xyzt_units()[1])
    save_image(image, str(path))
