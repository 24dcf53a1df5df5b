"""ANTs' pair of files: <prefix>1Warp.nii.gz and <prefix>0GenericAffine.mat, each in ITK's dialect.

The affine file is left out if the whole transform is a dense field; then the warp is <prefix>0Warp.nii.gz.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..resampling import DisplacementField, Step
from .base import Dialect, Frames
from .itk import ITK, write_matlab_transform
from .vectors import write_displacement_field

_AFFINE = "0GenericAffine.mat"


def parts_of(prefix: str) -> list[str]:
    """The files that are there, in the order of application."""
    names = (f"{prefix}1Warp.nii.gz", f"{prefix}0Warp.nii.gz", f"{prefix}{_AFFINE}")
    return [name for name in names if os.path.isfile(name)]


def _read(path: str, frames: Frames) -> list[Step]:
    return [step for part in parts_of(path) or [path] for step in ITK.read(part, frames)]


def ants_files(prefix: str | os.PathLike[str], steps: list[Step], frames: Frames) -> dict[str, Step]:
    """The names of the files of a transform, and what each holds."""
    is_field = [isinstance(step, DisplacementField) for step in steps]
    if is_field not in ([True], [False], [True, False]):
        steps, is_field = [frames.whole(prefix, steps)], [True]
    affine = not is_field[-1]
    names = [f"{prefix}{'1' if affine else '0'}Warp.nii.gz" if field else f"{prefix}{_AFFINE}" for field in is_field]
    return dict(zip(names, steps, strict=True))


def _write(path: Path, steps: list[Step], frames: Frames) -> None:
    prefix = str(path).removesuffix(_AFFINE)
    files = ants_files(prefix, steps, frames)
    for part in set(parts_of(prefix)) - files.keys():
        os.unlink(part)  # of an earlier transform: it would be read as a part of this one
    for name, step in files.items():
        if isinstance(step, np.ndarray):
            write_matlab_transform(name, step)
        else:
            write_displacement_field(name, step.ddf, step.grid)


ANTS = Dialect("ants", (_AFFINE,), ("",), lambda path: bool(parts_of(path)), _read, _write, in_2d=True, needs="itk")
