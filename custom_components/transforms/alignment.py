"""How a pair is aligned before its deformation: by the headers, an engine, a network, or a file; and how far.

Convention: stages are names out of "translation", "rigid", "similarity", "affine", "deformable", in this order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..checks import is_word
from ..space.affine import ENGINES, register_affine
from ..space.affine_search import STAGES
from ..space.dialects import Frames, read_affine_transform
from ..space.planes import flatten_matrix
from ..space.volumes import Volume

Aligner = Callable[[Volume, Volume], np.ndarray]

ALIGNERS = ("learned", "search", "agent")  # words for an aligner, which goes as far as it can

WORDS = (*ENGINES, *ALIGNERS, "none")

ALL_STAGES = (*STAGES, "deformable")


def linear_stage(stages: Sequence[str]) -> str | None:
    """The last linear stage of several, which includes those before it; None if there is none.

    Raises:
        ValueError: for another word, none at all, or stages in another order.
    """
    stages = [stages] if isinstance(stages, str) else list(stages)
    known = [name for name in ALL_STAGES if name in stages]
    if not stages or known != stages:
        raise ValueError(f"--stages: expected names out of {', '.join(ALL_STAGES)}, in this order, got {stages}")
    linear = [name for name in stages if name in STAGES]
    return linear[-1] if linear else None


@dataclass(frozen=True)
class Alignment:
    """What aligns a pair, and how far.

    Args:
        affine: "itk" or "torch", an engine that goes as far as the stages say; a word of `ALIGNERS`, an aligner;
            "none", the headers; anything else is a transform's path.
        stages: see `linear_stage`. Without a linear one nothing is searched; a transform's path counts all the same.
    Raises:
        ValueError: for other stages.
    """

    affine: str = "none"
    stages: Sequence[str] = ("affine", "deformable")

    def __post_init__(self) -> None:
        linear_stage(self.stages)


def world_matrix_of(
    alignment: Alignment,
    contrasts: Mapping[str, Volume],
    scaled: Mapping[str, Volume],
    masks: Mapping[str, Volume],
    aligner: Aligner | None,
) -> np.ndarray:
    """The map (D + 1, D + 1) from fixed to moving world points, RAS mm.

    Args:
        alignment: what aligns.
        contrasts: the volumes "fixed" and "moving", with the intensities that are compared.
        scaled: the same from 0 to 1, for the aligner.
        masks: as far as given, those of the images under the same names.
        aligner: from both volumes, fixed then moving, to the matrix.
    Raises:
        ValueError: if there is no such word or file, it does not fit, or the matrix has no inverse.
    """
    fixed, moving = contrasts["fixed"], contrasts["moving"]
    affine, stage = alignment.affine, linear_stage(alignment.stages)
    _check_word(affine)
    if affine == "none" or (stage is None and affine in (*ENGINES, *ALIGNERS)):
        matrix = np.eye(len(fixed.affine))
    elif affine in ALIGNERS:
        if aligner is None:
            raise ValueError(f"affine {affine!r} needs an aligner: the overlay learned_affine.json has one")
        matrix = aligner(scaled["fixed"], scaled["moving"])
    elif affine in ENGINES and stage is not None:
        given = {f"mask_{role}": mask for role, mask in masks.items()}
        matrix = register_affine(fixed, moving, stage=stage, engine=affine, **given)  # type: ignore[arg-type]
    else:
        matrix = _from_file(affine, fixed, moving)
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
        raise ValueError(f"expected an affine transform ({affine}) with an inverse, got {matrix.tolist()}")
    return matrix


def _check_word(affine: str) -> None:
    """Raises ValueError: for a word that is neither known nor a file."""
    if affine in STAGES or (is_word(affine) and affine not in WORDS and not Path(affine).exists()):
        hint = f"--stages {affine} goes so far" if affine in STAGES else f"got {affine!r}"
        raise ValueError(f"--affine: expected {', '.join(WORDS)} or a file; {hint}")


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
