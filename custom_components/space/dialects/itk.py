"""ITK's transform files: text (.tfm, .txt), HDF5 (.h5) and MATLAB (.mat), in LPS mm, from fixed to moving points.

One affine of a text file is read and written here; all else needs `itk`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...results import replacing
from ..grids import flip_lps
from ..readers import import_itk
from ..resampling import DisplacementField, Step
from ..writers import place_itk_image
from .vectors import field_from_lps, lps_vectors, read_displacement_field

logger = logging.getLogger(__name__)

_AFFINE_CLASSES = ("AffineTransform", "MatrixOffsetTransformBase")


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
        vectors = np.ascontiguousarray(lps_vectors(step.ddf, step.grid).swapaxes(0, d - 1))
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
        return [field_from_lps(itk.array_from_image(field).swapaxes(0, d - 1), flip_lps(d) @ lps)]
    if hasattr(transform, "GetMatrix"):
        return [_world_matrix(itk.array_from_matrix(transform.GetMatrix()), np.array(list(transform.GetOffset())))]
    kind = transform.GetTransformTypeAsString()
    raise ValueError(f"{path}: expected matrix transforms and displacement fields, got a {kind}")
