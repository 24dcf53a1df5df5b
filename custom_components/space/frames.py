"""Where a NIfTI header places its voxels, by the choice that ITK makes: our transforms apply where ITK applies them.

Convention: affines (4, 4) map voxels to RAS millimetres.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np

_TO_MM = {1: 1000.0, 3: 0.001}  # metres, microns; all other units, and none, are read as millimetres
_UNIT_NAMES = {1: "metres", 3: "microns"}
_SCANNER = 1  # the transform code for which ITK prefers the sform
_SAME_DIRECTION = 1e-4  # ITK's tolerance for what is orthonormal, and for two frames that are one
_WORTH_SAYING = 0.02  # of a voxel


@dataclass(frozen=True)
class Frame:
    """An affine, whether the file says it, and what a user should know about the choice, one sentence each."""

    affine: np.ndarray
    is_given: bool = True
    notes: tuple[str, ...] = ()


def nifti_frame(header: nib.Nifti1Header, path: str) -> Frame:
    """The frame that ITK, and with it ANTs and SimpleITK, reads from a NIfTI header.

    The voxel size is that of `pixdim` in the header's units, never that of the sform. Directions and origin are those
    of the sform if there is no qform, or if the sform's code is 1 ("scanner"); else those of the qform. A sheared sform
    counts as none. With neither the origin is 0 and the directions are those of LPS.

    Args:
        path: of the file, for the messages.
    Raises:
        ValueError: if the only frame is a sheared sform, for which ITK has no answer either.
    """
    unit = int(header["xyzt_units"]) & 7
    scale = _TO_MM.get(unit, 1.0)
    pixdim = np.abs(header["pixdim"][1:4].astype(np.float64))
    spacing = np.where(np.isfinite(pixdim) & (pixdim > 0), pixdim, 1.0)
    has_qform, has_sform = int(header["qform_code"]) > 0, int(header["sform_code"]) > 0
    notes = [f"{path}: the header is in {_UNIT_NAMES[unit]}; read as such"] if unit in _UNIT_NAMES else []
    if not (has_qform or has_sform):
        return Frame(_in_mm(np.diag([-1.0, -1.0, 1.0, 1.0]), spacing, scale), False, tuple(notes))
    sform = header.get_sform().astype(np.float64) if has_sform else None
    qform = header.get_qform().astype(np.float64) if has_qform else None
    if qform is None and sform is not None:
        refuse_shear(sform, path)
    taken = _itks_choice(sform, qform, int(header["sform_code"]))
    if sform is not None and qform is not None:
        notes += _disagreement(path, sform, qform, header.get_data_shape(), "sform" if taken is sform else "qform")
    lengths = np.linalg.norm(taken[:3, :3], axis=0)
    if taken is sform and not np.allclose(lengths, spacing, rtol=1e-3, atol=0):
        sides = [np.round(v, 4).tolist() for v in (lengths, spacing)]
        notes.append(f"{path}: the sform has voxels of {sides[0]}, pixdim of {sides[1]}; taken is pixdim, as ITK does")
    return Frame(_in_mm(taken, spacing, scale), True, tuple(notes))


def _itks_choice(sform: np.ndarray | None, qform: np.ndarray | None, sform_code: int) -> np.ndarray:
    if qform is None:
        assert sform is not None
        return sform
    if sform is None or is_sheared(sform):
        return qform
    return sform if sform_code == _SCANNER or _near(_directions(sform), _directions(qform)) else qform


def is_sheared(affine: np.ndarray) -> bool:
    """Whether the voxel axes of an affine are not at right angles, by ITK's tolerance."""
    directions = _directions(affine)[:-1, :-1]
    return not np.allclose(directions @ directions.T, np.eye(len(directions)), rtol=0, atol=_SAME_DIRECTION)


def refuse_shear(affine: np.ndarray, path: str) -> None:
    """Raises ValueError: if the affine cannot be inverted or is sheared; ITK and ANTs cannot place such a file."""
    linear = affine[:-1, :-1]
    lengths = np.linalg.norm(linear, axis=0)
    # Relative to the voxel's size: voxels of a micrometre have a determinant of 1e-9 mm3 and are no mistake.
    is_regular = np.isfinite(affine).all() and lengths.all() and abs(np.linalg.det(linear / lengths)) > 1e-6
    if not is_regular:
        raise ValueError(f"{path}: expected an invertible affine, got {np.round(affine[:-1], 4).tolist()}")
    if is_sheared(affine):
        raise ValueError(
            f"{path}: expected voxel axes at right angles, got the sheared affine {np.round(affine[:-1], 4).tolist()}, "
            "which ITK and ANTs cannot read; resample the image onto a grid without shear first"
        )


def _directions(affine: np.ndarray) -> np.ndarray:
    """The affine with voxel axes of length 1."""
    result = affine.copy()
    with np.errstate(invalid="ignore", divide="ignore"):
        result[:-1, :-1] /= np.linalg.norm(affine[:-1, :-1], axis=0)
    return np.nan_to_num(result)


def _near(one: np.ndarray, other: np.ndarray) -> bool:
    return np.allclose(one, other, rtol=0, atol=_SAME_DIRECTION)


def _in_mm(affine: np.ndarray, spacing: np.ndarray, scale: float) -> np.ndarray:
    result = _directions(affine)
    result[:3, :3] *= spacing
    result[:3] *= scale
    return result


def _disagreement(path: str, sform: np.ndarray, qform: np.ndarray, size: Sequence[int], taken: str) -> list[str]:
    """The sentence on two frames that place the corners of an image apart, if they do."""
    ends = [(0, max(0, n - 1)) for n in (*size, 1, 1)[:3]]
    corners = np.array([[*corner, 1.0] for corner in itertools.product(*ends)])
    apart = float(np.linalg.norm(corners @ (sform - qform).T, axis=1).max())
    if apart <= _WORTH_SAYING * float(np.linalg.norm(qform[:3, :3], axis=0).min()):
        return []
    return [
        f"{path}: qform and sform disagree by up to {apart:.3g} mm; taken is the {taken}, as ITK and ANTs do "
        "(FSL, nibabel and others take the sform)"
    ]
