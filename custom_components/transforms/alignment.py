"""How a pair is aligned before its deformation: by the headers, an engine, a network, or a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..space.affine import register_affine
from ..space.affine_search import STAGES
from ..space.dialects import Frames, read_affine_transform
from ..space.planes import flatten_matrix
from ..space.volumes import Volume

Aligner = Callable[[Volume, Volume], np.ndarray]


def world_matrix_of(
    affine: str,
    contrasts: Mapping[str, Volume],
    scaled: Mapping[str, Volume],
    masks: Mapping[str, Volume],
    aligner: Aligner | None,
) -> np.ndarray:
    """The map (D + 1, D + 1) from fixed to moving world points, RAS mm.

    Args:
        affine: "none" trusts the headers; "translation", "rigid", "similarity" or "affine" goes so far; "itk" does
            it by ITK, as do "itk-rigid" and so on; "learned" asks the aligner; anything else is a transform's path.
        contrasts: the volumes "fixed" and "moving", with the intensities that are compared.
        scaled: the same from 0 to 1, for the aligner.
        masks: as far as given, those of the images under the same names.
        aligner: from both volumes, fixed then moving, to the matrix.
    Raises:
        ValueError: if there is no such file, it does not fit, or the matrix has no inverse.
    """
    fixed, moving = contrasts["fixed"], contrasts["moving"]
    engine, _, stage = affine.rpartition("-") if affine.startswith("itk-") else ("torch", "", affine)
    if affine == "learned":
        if aligner is None:
            raise ValueError("affine 'learned' needs an aligner: the overlay learned_affine.json has one")
        matrix = aligner(scaled["fixed"], scaled["moving"])
    elif affine == "none":
        matrix = np.eye(len(fixed.affine))
    elif affine == "itk" or stage in STAGES:
        given = {f"mask_{role}": mask for role, mask in masks.items()}
        engine, stage = ("itk", "affine") if affine == "itk" else (engine, stage)
        matrix = register_affine(fixed, moving, stage=stage, engine=engine, **given)  # type: ignore[arg-type]
    else:
        matrix = _from_file(affine, fixed, moving)
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
        raise ValueError(f"expected an affine transform ({affine}) with an inverse, got {matrix.tolist()}")
    return matrix


def _from_file(path: str, fixed: Volume, moving: Volume) -> np.ndarray:
    d = len(fixed.affine) - 1
    matrix = read_affine_transform(path, Frames(fixed, moving))
    if d == 2 and len(matrix) == 4:
        flat = flatten_matrix(matrix, fixed.frame, moving.frame, max(fixed.thickness_mm, moving.thickness_mm))
        if flat is None:
            raise ValueError(f"{path}: expected a transform of slice to slice, got one that leaves their planes")
        return flat
    if matrix.shape != (d + 1, d + 1):
        raise ValueError(f"{path}: expected a transform of {d}-D points, got one of {len(matrix) - 1}-D points")
    return matrix
