"""ITK's transform files: text (.tfm, .txt), HDF5 (.h5) and MATLAB (.mat), in LPS mm, from fixed to moving points.

One affine of a text file is read and written here; all else needs `itk`. Also dense fields in NIfTI (`vectors`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...results import replacing
from ..grids import Grid, flip_lps
from ..readers import Itk, import_itk
from ..resampling import DisplacementField, Step
from ..writers import place_itk_image
from .base import Dialect, Frames, one_matrix
from .vectors import field_from_lps, lps_vectors, read_displacement_field, write_displacement_field

logger = logging.getLogger(__name__)

_FINER = 8  # a B-spline is sampled at so many places between two coefficients
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
        temporary.write_text(text, encoding="utf-8")


def _read(path: str, frames: Frames) -> list[Step]:
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
    return _steps_from_itk(itk, [part for one in reversed(list(transforms)) for part in _parts(itk, one)], frames)


def _parse_affine_text(path: str) -> np.ndarray | None:
    """World matrix of an ITK text file with a single matrix transform; None if it holds something else."""
    lines = [
        line.partition(":")
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
        if ":" in line
    ]
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


def write_matlab_transform(path: str | os.PathLike[str], world_matrix: np.ndarray) -> None:
    """Write a world matrix (D + 1, D + 1), RAS mm, as ANTs' `0GenericAffine.mat` (LPS mm, float64).

    Raises:
        ImportError: if `itk` is not installed.
    """
    itk = import_itk(f"writing {path}")
    transform = _affine_to_itk(itk, world_matrix, itk.D)
    with replacing(path) as temporary:
        itk.transformwrite([transform], str(temporary))


def _step_to_itk(itk: Itk, step: Step) -> Itk:
    if isinstance(step, DisplacementField):
        d = len(step.grid.size)
        vectors = np.ascontiguousarray(lps_vectors(step.ddf, step.grid).swapaxes(0, d - 1))
        field = itk.image_from_array(vectors, ttype=itk.Image[itk.Vector[itk.F, d], d])
        place_itk_image(itk, field, step.grid.affine)
        transform = itk.DisplacementFieldTransform[itk.F, d].New()
        transform.SetDisplacementField(field)
        return transform
    return _affine_to_itk(itk, step, itk.F)


def _affine_to_itk(itk: Itk, world_matrix: np.ndarray, number: Itk) -> Itk:
    d = len(world_matrix) - 1
    lps = (flip_lps(d) @ world_matrix @ flip_lps(d)).astype(np.float64 if number == itk.D else np.float32)
    transform = itk.AffineTransform[number, d].New()
    transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(lps[:d, :d])))
    transform.SetTranslation([float(x) for x in lps[:d, d]])
    return transform


def _parts(itk: Itk, transform: Itk) -> list[Itk]:
    """The transforms that a composite is of, the first applied first."""
    transform = itk.down_cast(transform)
    if not hasattr(transform, "GetNthTransform"):
        return [transform]
    parts = [transform.GetNthTransform(i) for i in reversed(range(transform.GetNumberOfTransforms()))]
    return [one for part in parts for one in _parts(itk, part)]


def _steps_from_itk(itk: Itk, parts: Sequence[Itk], frames: Frames) -> list[Step]:
    """Steps of transforms, the first applied first.

    A B-spline is no step. If the fixed image is known, the transforms up to the last B-spline become one field, exact
    at the image's voxels; else each B-spline becomes a field on a fine grid of its own.
    """
    smooth = [i for i, part in enumerate(parts) if _is_smooth(part)]
    if not smooth or frames.fixed is None:
        return [_step_from_itk(itk, part) for part in parts]
    number, d = itk.template(parts[smooth[-1]])[1][:2]
    whole = itk.CompositeTransform[number, d].New()
    for part in reversed(parts[: smooth[-1] + 1]):  # ITK applies the transform added last first
        whole.AddTransform(part)
    field = _sampled(itk, whole, frames.fixed.grid_in_file if d == 3 else frames.fixed.grid)
    return [_step_from_field(itk, field), *(_step_from_itk(itk, part) for part in parts[smooth[-1] + 1 :])]


def _is_smooth(transform: Itk) -> bool:
    """Whether it is a B-spline, or another map that is neither a matrix nor a dense field."""
    is_matrix = hasattr(transform, "GetMatrix") or transform.IsLinear()
    return not is_matrix and not hasattr(transform, "GetDisplacementField")


def _step_from_itk(itk: Itk, transform: Itk) -> Step:
    d = transform.GetInputSpaceDimension()
    if hasattr(transform, "GetMatrix"):
        return _world_matrix(itk.array_from_matrix(transform.GetMatrix()), np.array(list(transform.GetOffset())))
    if transform.IsLinear():  # translations, scales, the identity
        origin, *ends = (np.array(transform.TransformPoint(p.tolist())) for p in np.vstack([np.zeros(d), np.eye(d)]))
        return _world_matrix(np.stack(ends, axis=1) - origin[:, None], origin)
    if hasattr(transform, "GetDisplacementField"):
        return _step_from_field(itk, transform.GetDisplacementField())
    return _step_from_field(itk, _sampled(itk, transform, _domain(transform)))


def _step_from_field(itk: Itk, field: Itk) -> DisplacementField:
    d = field.GetImageDimension()
    lps = np.eye(d + 1)
    lps[:d, :d] = itk.array_from_matrix(field.GetDirection()) * np.array(itk.spacing(field))
    lps[:d, d] = np.array(itk.origin(field))
    return field_from_lps(itk.array_from_image(field).swapaxes(0, d - 1), flip_lps(d) @ lps)


def _domain(transform: Itk) -> Grid:
    """A grid that is finer than that of a B-spline's coefficients."""
    d = transform.GetInputSpaceDimension()
    numbers = np.array(list(transform.GetFixedParameters()))
    if len(numbers) != d * (d + 3):
        kind = transform.GetTransformTypeAsString()
        raise ValueError(f"a {kind} says not where it applies: name the fixed image (--fixed)")
    size, origin, spacing = numbers[: 3 * d].reshape(3, d)
    lps = np.eye(d + 1)
    lps[:d, :d] = numbers[3 * d :].reshape(d, d) * spacing / _FINER
    lps[:d, d] = origin
    return Grid(flip_lps(d) @ lps, tuple(int(n) for n in (size - 1) * _FINER + 1))


def _sampled(itk: Itk, transform: Itk, grid: Grid) -> Itk:
    """An ITK image of the displacements, LPS mm, of an ITK transform."""
    d = len(grid.size)
    number = itk.template(transform)[1][0]
    filter_type = itk.TransformToDisplacementFieldFilter[itk.Image[itk.Vector[itk.F, d], d], number]
    like = itk.Image[itk.UC, d].New()
    like.SetRegions([int(n) for n in grid.size])
    place_itk_image(itk, like, grid.affine)
    sampler = filter_type.New(Transform=transform, UseReferenceImage=True, ReferenceImage=like)
    sampler.Update()
    return sampler.GetOutput()


def _write(path: Path, steps: list[Step], frames: Frames) -> None:
    name = str(path).lower()
    if name.endswith((".nii", ".nii.gz")):
        whole = steps[0]
        field = whole if len(steps) == 1 and isinstance(whole, DisplacementField) else frames.whole(path, steps)
        write_displacement_field(path, field.ddf, field.grid)
    elif name.endswith(".h5"):
        import_itk(f"writing {path}")
        write_composite_transform(path, steps)
    elif name.endswith(".mat"):
        write_matlab_transform(path, one_matrix(steps, path))
    else:
        write_affine_transform(path, one_matrix(steps, path))


ITK = Dialect(
    "itk",
    (".tfm", ".txt", ".mat"),
    (".h5", ".nii.gz", ".nii"),
    lambda path: True,
    _read,
    _write,
    in_2d=True,
    needs="itk",
)
