"""Linear alignment of two images in the world, before any deformation: the stages, the engines, the judgement.

Convention: the result maps world points of the fixed image to world points of the moving image, RAS millimetres.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch

from ..notices import warn
from .affine_itk import finish_by_itk
from .affine_judge import DISTRUST_AT_LAST, Judge, belief, distances, is_turned
from .affine_levels import Scan, levels_of, warn_of_turn
from .affine_search import STAGES, finish, refine, search, turned_a_little
from .information import Maps
from .resampling import resample
from .volumes import Volume

logger = logging.getLogger(__name__)

ENGINES = ("torch", "itk")

_WORTH = 1.02  # ratio of local correlations from which on an alignment is better than the headers

_LITTLE = 0.1  # squared local correlation of images that do not show the same (docs/benchmarks.md)

_RIVAL = 0.9  # share of it that a map which leads elsewhere has, from which on the result is doubtful


def register_affine(
    fixed: Volume,
    moving: Volume,
    *,
    stage: str = "affine",
    engine: str = "torch",
    mask_fixed: Volume | None = None,
    mask_moving: Volume | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Find the linear world map that aligns a moving image with a fixed one, of any contrast.

    Many starts climb the mutual information on a coarse grid (`affine_search.search`), for headers may be wrong. Local
    correlation judges where they lead to (`affine_judge.Judge`). The engine takes the best one to the end of a stage.
    That is kept if it is better than the headers as they are. A warning says if it turns the header by 90 or 180
    degrees, if the images share little, or if quite another map fits about as well. Equal input gives an equal result.

    Args:
        stage: how far to go: "translation", "rigid", "similarity" or "affine".
        engine: what refines the best start: "torch" or "itk".
        mask_fixed, mask_moving: where the images count: not where they are 0; values from 0 to 1 are weights.
        seed: of the samples that are compared.
    Returns:
        World matrix (D + 1, D + 1), RAS mm, fixed to moving.
    Raises:
        ImportError: if `itk` is asked for and not installed.
        ValueError: if a setting is unknown, the dimensions differ, a mask is empty, or nothing overlaps.
    """
    if stage not in STAGES or engine not in ENGINES:
        raise ValueError(f"expected a stage of {STAGES} and an engine of {ENGINES}, got {stage!r} and {engine!r}")
    if fixed.affine.shape != moving.affine.shape:
        dims = [len(v.affine) - 1 for v in (fixed, moving)]
        raise ValueError(
            f"expected two images of one dimension, got {fixed.path} in {dims[0]}-D, {moving.path} in {dims[1]}-D"
        )
    masks = {role: mask for role, mask in (("fixed", mask_fixed), ("moving", mask_moving)) if mask is not None}
    # Compare where the smaller image lies: it is the one that the other contains, slabs in whole heads above all.
    if moving.grid.extent < fixed.grid.extent:
        masks = {"fixed" if role == "moving" else "moving": mask for role, mask in masks.items()}
        return np.linalg.inv(_align(moving, fixed, stage, engine, masks=masks, seed=seed))
    return _align(fixed, moving, stage, engine, masks=masks, seed=seed)


def _align(
    fixed: Volume, moving: Volume, stage: str, engine: str, *, masks: Mapping[str, Volume], seed: int
) -> np.ndarray:
    levels = levels_of(_scan(fixed, masks.get("fixed")), _scan(moving, masks.get("moving")))
    center, radius = levels[0].center_and_radius
    judge = Judge(levels[1])
    maps, _ = refine(levels, search(levels[0], stage, seed), stage, seed)
    scores = judge(maps)
    # The best one, and the best one by what most headers are: a slab may fit where it does not belong.
    finalists = {int(scores.argmax()), int((scores * belief(maps)).argmax())}
    last = Maps.joined([turned_a_little(levels, maps[k : k + 1], stage, seed) for k in sorted(finalists)])
    best = last[(judge(last) * belief(last, DISTRUST_AT_LAST)).argmax()[None]]
    if engine == "itk":
        matrix = finish_by_itk(fixed, moving, stage, start=best.matrix(center), center=center, masks=masks, seed=seed)
    else:
        matrix = finish(levels, best, stage, seed).matrix(center)
    found, headers = judge.of_matrix(matrix), judge.of_matrix(np.eye(len(matrix)))
    is_better = found >= _WORTH * headers
    elsewhere = scores[distances(maps, best, radius) > radius]
    if max(found, headers) < _LITTLE:
        _warn_of_doubt(fixed, moving, "they share little")
    elif len(elsewhere) and elsewhere.max() > _RIVAL * max(found, headers):
        _warn_of_doubt(fixed, moving, "they would fit as well if laid quite differently")
    elif is_better and is_turned(best):
        warn_of_turn(fixed, moving)
    if is_better:
        return matrix
    logger.info("the affine alignment found nothing better than the headers, which are kept")
    return np.eye(len(matrix))


def _scan(volume: Volume, mask: Volume | None) -> Scan:
    """An image with the weights of a mask, which may lie on another grid.

    Raises:
        ValueError: if the mask leaves nothing of the image.
    """
    if mask is None:
        return Scan(volume.data, torch.ones_like(volume.data), volume.grid)
    values = mask.data if mask.data.is_floating_point() else (mask.data > 0).float()
    weights = resample(values, mask.affine, volume.grid)
    if not bool(weights.any()):
        raise ValueError(f"{mask.path}: expected a mask of {volume.path}, got one that is 0 everywhere in it")
    return Scan(volume.data, weights, volume.grid)


def _warn_of_doubt(fixed: Volume, moving: Volume, why: str) -> None:
    warn(
        f"{moving.path}, {fixed.path}: the affine alignment may have failed, {why}; look at the picture, and if "
        "need be correct the headers, give masks, or another --affine"
    )
