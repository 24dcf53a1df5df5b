"""The dialects in which tools keep transforms, one file each; they are chosen here, by name and content.

Convention: as everywhere, a transform is a sequence of steps from fixed to moving points, in the order of application.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..resampling import DisplacementField, Step, merged, spatial_dims_of_steps
from .afni import AFNI
from .ants import ANTS, ants_files
from .base import Dialect, Frames
from .freesurfer import FREESURFER
from .fsl import FSL
from .itk import ITK
from .x5 import X5

__all__ = [
    "DIALECTS",
    "Dialect",
    "Frames",
    "depends_on_moving",
    "dialect_files",
    "dialect_for",
    "dialect_named",
    "read_affine_transform",
    "read_chain",
    "read_transform",
    "write_transform",
]

# Asked in this order whether a file is theirs; ITK takes what is left.
DIALECTS = {dialect.name: dialect for dialect in (ANTS, AFNI, FREESURFER, X5, FSL, ITK)}

_NOWHERE = Frames()


def dialect_named(name: str) -> Dialect:
    """Raises ValueError: if no dialect is called so."""
    if name not in DIALECTS:
        raise ValueError(f"expected a dialect among {', '.join(DIALECTS)}, got {name!r}")
    return DIALECTS[name]


def read_transform(
    path: str | os.PathLike[str], frames: Frames = _NOWHERE, *, dialect: str | None = None
) -> list[Step]:
    """Read a transform file of any dialect, or the pair of files of an ANTs prefix, as steps from fixed to moving.

    ITK's text affines, NIfTI fields, and the files of FSL, FreeSurfer and AFNI need nothing else; other files of ITK
    need `itk`, X5 needs nitransforms.

    Args:
        path: of the file, or the prefix of ANTs' pair.
        frames: where the images lie, for dialects that count from their corners (FSL; AFNI if they are oblique).
        dialect: by default what the file's name and content say.
    Raises:
        FileNotFoundError, ValueError: if it is missing, damaged, holds another kind of transform, or needs the images.
        ImportError: if the format needs a package that is not installed.
    """
    return _dialect_of(str(path), dialect).read(str(path), frames)


def _dialect_of(path: str, dialect: str | None) -> Dialect:
    chosen = dialect_named(dialect) if dialect else None
    if not os.path.isfile(path) and not ANTS.recognises(path):
        raise FileNotFoundError(f"{path}: no such transform file")
    return chosen or next(one for one in DIALECTS.values() if one.recognises(path))


def read_chain(
    paths: Sequence[str | os.PathLike[str]], frames: Frames = _NOWHERE, *, dialect: str | None = None
) -> list[Step]:
    """The steps of several files, through which points of the fixed image go in the order given.

    Only the first file knows the fixed image, and only the last one the moving image. Errors as `read_transform`.
    """
    steps: list[Step] = []
    for i, path in enumerate(paths):
        fixed = frames.fixed if i == 0 else None
        moving = frames.moving if i == len(paths) - 1 else None
        steps += read_transform(path, Frames(fixed, moving), dialect=dialect)
    return steps


def depends_on_moving(paths: Sequence[str | os.PathLike[str]], *, dialect: str | None = None) -> bool:
    """Whether the steps of a chain depend on where the moving image lies. Errors as `read_transform`."""
    return _dialect_of(str(paths[-1]), dialect) in (AFNI, FSL)  # they count from its corner


def read_affine_transform(path: str | os.PathLike[str], frames: Frames = _NOWHERE) -> np.ndarray:
    """Read one affine transform of any dialect as a world matrix (D + 1, D + 1), RAS mm.

    Raises:
        FileNotFoundError, ValueError, ImportError: as `read_transform`, and if it holds anything but matrices.
    """
    steps = merged(read_transform(path, frames))
    if any(isinstance(step, DisplacementField) for step in steps):
        raise ValueError(f"{path}: expected an affine transform, got one with a displacement field")
    if not steps:
        raise ValueError(f"{path}: expected an affine transform, got an empty file")
    matrix = steps[0]
    assert isinstance(matrix, np.ndarray)
    return matrix


def write_transform(
    path: str | os.PathLike[str], steps: Sequence[Step], frames: Frames = _NOWHERE, *, dialect: str | None = None
) -> None:
    """Write a transform from fixed to moving points.

    Where a file holds one field, the whole transform is sampled on the fixed image's grid.

    Args:
        path: file to write, or the prefix of ANTs' pair.
        steps: applied in this order.
        frames: where the images lie.
        dialect: by default what the ending says.
    Raises:
        ValueError: if the dialect cannot hold the transform, needs an image that is not known, or has another ending.
        ImportError: if the format needs a package that is not installed.
    """
    chosen = dialect_named(dialect) if dialect else dialect_for(path)
    name, steps = str(path).lower(), merged(steps)
    if not name.endswith(tuple(ending.lower() for ending in (*chosen.matrix, *chosen.field))):
        endings = ", ".join((*chosen.matrix, *chosen.field))
        raise ValueError(f"{path}: expected a name that ends with one of {endings} for the dialect {chosen.name}")
    if spatial_dims_of_steps(steps) == 2 and not chosen.in_2d:
        raise ValueError(f"{path}: the dialect {chosen.name} holds transforms of 3-D points, got one of 2-D points")
    chosen.write(Path(path), steps, frames)


def dialect_files(
    name: str, stem: str, steps: Sequence[Step], frames: Frames = _NOWHERE
) -> dict[str, Callable[[Path], None]]:
    """The files by which a dialect keeps a transform, under names that begin with the stem, and what writes each.

    Raises:
        ValueError: if there is no such dialect, or it cannot hold the transform.
    """
    dialect, steps = dialect_named(name), merged(steps)
    if spatial_dims_of_steps(steps) == 2 and not dialect.in_2d:
        raise ValueError(f"the dialect {name} holds transforms of 3-D points, got one of 2-D points")
    if dialect is ANTS:
        parts = {file: [step] for file, step in ants_files(f"{stem}_{name}_", steps, frames).items()}
        return {file: partial(_written, part, frames, None) for file, part in parts.items()}
    has_field = any(isinstance(step, DisplacementField) for step in steps)
    endings = dialect.field if has_field or not dialect.matrix else dialect.matrix
    if not endings:
        raise ValueError(f"the dialect {name} holds affine transforms, got one with a dense field")
    return {f"{stem}_{name}{endings[0]}": partial(_written, steps, frames, name)}


def _written(steps: list[Step], frames: Frames, dialect: str | None, path: Path) -> None:
    write_transform(path, steps, frames, dialect=dialect)


def dialect_for(path: str | os.PathLike[str]) -> Dialect:
    """The dialect of a file to be written, by its ending. Raises ValueError: if it is none, or two tools have it."""
    name = str(path).lower()
    if str(path).endswith(ANTS.matrix):
        return ANTS
    if name.endswith(".mat"):
        raise ValueError(f"{path}: FSL and ITK both write .mat files: say which (--dialect fsl or itk)")
    endings = {ending: one for one in (X5, AFNI, FREESURFER, ITK) for ending in (*one.matrix, *one.field)}
    found = next((ending for ending in endings if name.endswith(ending.lower())), None)
    if found is None:
        raise ValueError(f"{path}: expected the name of a transform file that ends in one of {', '.join(endings)}")
    return endings[found]
