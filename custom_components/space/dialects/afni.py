"""AFNI's affine transforms: .aff12.1D, twelve numbers, from fixed to moving points in LPS mm ("DICOM order").

Convention: AFNI lets an oblique image lie along the world's axes ("cardinal"), with the same first voxel, and means the
points of that one. The matrices of oblique images therefore need both images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nibabel.affines import obliquity

from ...results import replacing
from ..grids import flip_lps
from ..resampling import Step
from ..volumes import Volume
from .base import Dialect, Frames, numbers_in, one_matrix

_OBLIQUE = np.deg2rad(0.01)  # AFNI's threshold
_ENDINGS = (".aff12.1D", ".1D")


def _to_cardinal(image: Volume | None) -> np.ndarray:
    """Matrix (4, 4), RAS mm, from where an image lies to where AFNI lets it lie; the identity if it is not known."""
    if image is None or obliquity(image.file_affine).max() <= _OBLIQUE:
        return np.eye(4)
    axes = image.file_affine[:3, :3]
    largest = np.abs(axes) == np.abs(axes).max(axis=0)
    cardinal = image.file_affine.copy()
    cardinal[:3, :3] = np.sign(axes) * largest * np.linalg.norm(axes, axis=0)
    return cardinal @ np.linalg.inv(image.file_affine)


def _read(path: str, frames: Frames) -> list[Step]:
    rows = numbers_in(Path(path).read_text(encoding="utf-8", errors="replace"))
    if rows is None or [len(row) for row in rows] not in ([12], [4] * 3):
        found = "no numbers" if not rows else f"{len(rows)} rows of {len(rows[0])}"
        raise ValueError(f"{path}: expected one affine transform of 12 numbers, got {found}")
    lps = np.vstack([np.array(rows).reshape(3, 4), [0, 0, 0, 1]])
    cardinal = flip_lps(3) @ lps @ flip_lps(3)
    return [np.linalg.inv(_to_cardinal(frames.moving)) @ cardinal @ _to_cardinal(frames.fixed)]


def _write(path: Path, steps: list[Step], frames: Frames) -> None:
    frames.both(path)
    matrix = one_matrix(steps, path)
    cardinal = _to_cardinal(frames.moving) @ matrix @ np.linalg.inv(_to_cardinal(frames.fixed))
    lps = flip_lps(3) @ cardinal @ flip_lps(3)
    numbers = "  ".join(f"{x:.12g}" for x in lps[:3].ravel())
    with replacing(path) as temporary:
        temporary.write_text(f"# 3dAllineate matrices (DICOM-to-DICOM, row-by-row):\n {numbers}\n", encoding="utf-8")


AFNI = Dialect("afni", _ENDINGS, (), lambda path: path.upper().endswith((".AFF12.1D", ".1D")), _read, _write)
