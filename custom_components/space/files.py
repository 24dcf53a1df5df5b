"""Write and read images and transforms as ITK understands them: LPS millimetres, mapping fixed to moving points.

Every file is written aside and put in place when it is complete.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from ..results import replacing
from .frames import refuse_shear
from .grids import Grid, flip_lps
from .planes import plane_affine
from .readers import import_itk, nibabel_frame
from .resampling import DisplacementField, Step
from .volumes import Volume
from .writers import check_image_format, save_image

logger = logging.getLogger(__name__)


_VECTOR, _DISPLACEMENT = 1007, 1006  # NIfTI intent codes: ITK keeps LPS in the first and RAS in the second


_AFFINE_CLASSES = ("AffineTransform", "MatrixOffsetTransformBase")


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
    write_voxels(path, array, _embed(affine))


def write_voxels(
    path: str | os.PathLike[str], array: np.ndarray, affine: np.ndarray, *, header: nib.Nifti1Header | None = None
) -> None:
    """Write an array of any number of axes and any type; formats other than NIfTI hold one number in each voxel.

    Args:
        affine: (4, 4), voxel to RAS mm, of the first three axes.
        header: of another file; intent, description and what it says about further axes is kept.
    """
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        # NIfTI readers differ in what they make of 64-bit integers; nibabel refuses to write them unasked.
        array = array.astype(np.int32 if np.abs(array).max() < 2**31 else np.float64)
    check_image_format(path, array)  # before there is a temporary file, which the message would name
    with replacing(path) as temporary:
        _save_nifti(array, affine, temporary, like=header)


def write_displacement_field(path: str | os.PathLike[str], ddf: Tensor, grid: Grid) -> None:
    """Write a displacement field (D, *S), voxels of `grid`, as an ITK vector NIfTI in LPS mm.

    The file has shape (X, Y, Z, 1, 3), or (X, Y, 1, 1, 2) in 2-D, float32, intent "vector"; voxel axes as in `grid`.
    """
    vectors = _lps_vectors(ddf, grid)
    d = len(grid.size)
    with replacing(path) as temporary:
        _save_nifti(vectors.reshape(*grid.size, *[1] * (4 - d), d), _embed(grid.affine), temporary, intent="vector")


def read_displacement_field(path: str | os.PathLike[str]) -> DisplacementField:
    """Read a field as `write_displacement_field` writes it (as ANTs and ITK do).

    Raises:
        FileNotFoundError, ValueError: if it is missing, damaged, or no displacement field by shape and intent.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such displacement field")
    try:
        image: Any = nib.load(path)
        array = np.asarray(image.dataobj, dtype=np.float32)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as a displacement field ({error})") from error
    frame = nibabel_frame(image, str(path))
    d = array.shape[-1] if array.ndim == 5 else 0
    intent = int(image.header["intent_code"]) if "intent_code" in image.header else 0
    if (
        array.ndim != 5
        or d not in (2, 3)
        or array.shape[d:4] != (1,) * (4 - d)
        or intent not in (_VECTOR, _DISPLACEMENT)
    ):
        raise ValueError(
            f"{path}: expected a displacement field of shape (X, Y, Z, 1, 3) or (X, Y, 1, 1, 2) with vector intent, "
            f"got shape {array.shape} with intent code {intent}"
        )
    refuse_shear(frame.affine, str(path))
    affine = frame.affine if d == 3 else plane_affine(frame.affine)
    vectors = array.reshape(*array.shape[:d], d)
    return _field_from_lps(vectors if intent == _VECTOR else vectors @ flip_lps(d)[:d, :d], affine)


def write_affine_transform(path: str | os.PathLike[str], world_matrix: np.ndarray) -> None:
    """Write a world matrix (D + 1, D + 1), RAS mm, as an ITK text transform (.tfm or .txt, LPS mm)."""
    d = len(world_matrix) - 1
    lps = flip_lps(d) @ world_matrix @ flip_lps(d)
    numbers = " ".join(repr(float(x)) for x in [*lps[:d, :d].ravel(), *lps[:d, d]])
    text = (
        "#Insight Transform File V1.0\n#Transform 0\n"
        f"Transform: AffineTransform_double_{d}_{d}\nParameters: {numbers}\nFixedParameters: {' '.join(['0'] * d)}\n"
    )
    with replacing(path) as temporary:
        temporary.write_text(text)


def read_affine_transform(path: str | os.PathLike[str]) -> np.ndarray:
    """Read one affine transform as a world matrix (D + 1, D + 1), RAS mm: ITK text, or any ITK file if `itk` is there.

    Raises:
        FileNotFoundError, ValueError: if it is missing, damaged, or holds anything but matrices.
    """
    matrix = None
    for step in read_transform(path):
        if isinstance(step, DisplacementField):
            raise ValueError(f"{path}: expected an affine transform, got one with a displacement field")
        matrix = step if matrix is None else step @ matrix
    if matrix is None:
        raise ValueError(f"{path}: expected an affine transform, got an empty file")
    return matrix


def read_transform(path: str | os.PathLike[str]) -> list[Step]:
    """Read a transform file as steps from fixed to moving points, in the order of application.

    NIfTI displacement fields and ITK text affines need nothing else; composites (.h5), ANTs `0GenericAffine.mat` and
    other ITK transforms with a matrix or a dense field need `itk`.

    Raises:
        FileNotFoundError, ValueError: if it is missing, damaged, or holds another kind of transform.
        ImportError: if the format needs `itk` and it is not installed.
    """
    path = str(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such transform file")
    if path.lower().endswith((".nii", ".nii.gz")):
        return [read_displacement_field(path)]
    if path.lower().endswith((".tfm", ".txt")):
        matrix = _parse_affine_text(path)
        if matrix is not None:
            return [matrix]
    itk = import_itk(f"reading {path}")
    try:
        transforms = itk.transformread(path)
    except RuntimeError as error:
        raise ValueError(f"{path}: cannot be read as a transform ({str(error).strip().splitlines()[-1]})") from error
    return [step for transform in reversed(list(transforms)) for step in _steps_from_itk(itk, transform, path)]


def _parse_affine_text(path: str) -> np.ndarray | None:
    """World matrix of an ITK text file with a single matrix transform; None if it holds something else."""
    lines = [line.partition(":") for line in Path(path).read_text(errors="replace").splitlines() if ":" in line]
    entries = {key.strip(): value.strip() for key, _, value in lines}
    kind = entries.get("Transform", "").split("_")
    if sum(key.strip() == "Transform" for key, _, _ in lines) != 1 or kind[0] not in _AFFINE_CLASSES:
        return None
    try:
        d = int(kind[-1])
        numbers = np.array([float(x) for x in entries["Parameters"].split()])
        center = np.array([float(x) for x in entries["FixedParameters"].split()])
        linear = numbers[: d * d].reshape(d, d)
        return _world_matrix(linear, numbers[d * d :] + center - linear @ center)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as an affine transform, the file is incomplete") from error


def _world_matrix(linear_lps: np.ndarray, offset_lps: np.ndarray) -> np.ndarray:
    d = len(offset_lps)
    matrix = np.eye(d + 1)
    matrix[:d, :d], matrix[:d, d] = linear_lps, offset_lps
    return flip_lps(d) @ matrix @ flip_lps(d)


def write_composite_transform(path: str | os.PathLike[str], steps: Sequence[Step]) -> bool:
    """Write steps, first applied first, as one ITK composite transform (.h5, LPS mm, float32). Needs `itk`.

    Returns:
        False, with a sentence in the log, if `itk` is not installed and nothing was written.
    """
    try:
        itk = import_itk(f"writing {path}")
    except ImportError as error:
        logger.warning("%s; not written", error)
        return False
    first = steps[0]
    d = len(first) - 1 if isinstance(first, np.ndarray) else len(first.grid.size)
    composite = itk.CompositeTransform[itk.F, d].New()
    for step in reversed(steps):  # ITK applies the transform added last first
        composite.AddTransform(_step_to_itk(itk, step))
    with replacing(path) as temporary:
        itk.transformwrite([composite], str(temporary), compression=True)
    return True


def _step_to_itk(itk: Any, step: Step) -> Any:
    if isinstance(step, DisplacementField):
        d = len(step.grid.size)
        vectors = np.ascontiguousarray(_lps_vectors(step.ddf, step.grid).swapaxes(0, d - 1))
        field = itk.image_from_array(vectors, ttype=itk.Image[itk.Vector[itk.F, d], d])
        place_itk_image(itk, field, step.grid.affine)
        transform = itk.DisplacementFieldTransform[itk.F, d].New()
        transform.SetDisplacementField(field)
        return transform
    d = len(step) - 1
    lps = (flip_lps(d) @ step @ flip_lps(d)).astype(np.float32)
    transform = itk.AffineTransform[itk.F, d].New()
    transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(lps[:d, :d])))
    transform.SetTranslation([float(x) for x in lps[:d, d]])
    return transform


def place_itk_image(itk: Any, image: Any, affine: np.ndarray) -> None:
    """Give an ITK image the frame of an affine (D + 1, D + 1), voxel to RAS mm."""
    d = len(affine) - 1
    lps = flip_lps(d) @ affine
    spacing = np.linalg.norm(lps[:d, :d], axis=0)
    image.SetOrigin([float(x) for x in lps[:d, d]])
    image.SetSpacing([float(x) for x in spacing])
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(lps[:d, :d] / spacing)))


def _steps_from_itk(itk: Any, transform: Any, path: str) -> list[Step]:
    transform = itk.down_cast(transform)
    if hasattr(transform, "GetNthTransform"):
        parts = [transform.GetNthTransform(i) for i in reversed(range(transform.GetNumberOfTransforms()))]
        return [step for part in parts for step in _steps_from_itk(itk, part, path)]
    if hasattr(transform, "GetDisplacementField"):
        field = transform.GetDisplacementField()
        d = field.GetImageDimension()
        lps = np.eye(d + 1)
        lps[:d, :d] = itk.array_from_matrix(field.GetDirection()) * np.array(itk.spacing(field))
        lps[:d, d] = np.array(itk.origin(field))
        return [_field_from_lps(itk.array_from_image(field).swapaxes(0, d - 1), flip_lps(d) @ lps)]
    if hasattr(transform, "GetMatrix"):
        return [_world_matrix(itk.array_from_matrix(transform.GetMatrix()), np.array(list(transform.GetOffset())))]
    kind = transform.GetTransformTypeAsString()
    raise ValueError(f"{path}: expected matrix transforms and displacement fields, got a {kind}")


def _lps_vectors(ddf: Tensor, grid: Grid) -> np.ndarray:
    """A field (D, *S) in voxels of its grid as vectors (*S, D) in LPS mm, float32."""
    d = len(grid.size)
    if tuple(ddf.shape) != (d, *grid.size):
        raise ValueError(f"expected a ddf of shape {(d, *grid.size)} on this grid, got {tuple(ddf.shape)}")
    to_lps = (flip_lps(d) @ grid.affine)[:d, :d]
    return np.einsum("ij,j...->...i", to_lps, ddf.detach().cpu().numpy().astype(np.float64)).astype(np.float32)


def _field_from_lps(vectors: np.ndarray, affine: np.ndarray) -> DisplacementField:
    """Vectors (*S, D) in LPS mm on a grid as a field in its voxels."""
    d = vectors.shape[-1]
    to_voxels = np.linalg.inv((flip_lps(d) @ affine)[:d, :d])
    ddf = np.einsum("ij,...j->i...", to_voxels, vectors.astype(np.float64)).astype(np.float32)
    return DisplacementField(torch.from_numpy(np.ascontiguousarray(ddf)), Grid(affine, vectors.shape[:-1]))


def _embed(affine: np.ndarray) -> np.ndarray:
    """An affine of a 2-D grid as that of a slice in the world's xy-plane; a 3-D one as it is."""
    if len(affine) == 4:
        return affine
    result = np.eye(4)
    result[:2, :2], result[:2, 3] = affine[:2, :2], affine[:2, 2]
    return result


def _save_nifti(
    array: np.ndarray,
    affine: np.ndarray,
    path: Path,
    intent: str | None = None,
    like: nib.Nifti1Header | None = None,
) -> None:
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
