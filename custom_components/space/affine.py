"""Linear alignment of two images in the world, before any deformation: the stages, the engines, the judgement.

Convention: the result maps world points of the fixed image to world points of the moving image, RAS millimetres.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch

from ..notices import warn
from .affine_itk import align_by_itk
from .affine_levels import Level, Scan, levels_of, warn_of_turn
from .affine_search import STAGES, Found, refine, search
from .information import Maps
from .resampling import resample
from .volumes import Volume

logger = logging.getLogger(__name__)

ENGINES = ("torch", "itk")

_WORTH = 1.03  # ratio of informations from which on an alignment is better than the headers

_LITTLE = 0.2  # information, in nats, of images that do not show the same (docs/benchmarks.md)

_RIVAL = 0.97  # share of the information that a map which leads elsewhere has, from which on the result is doubtful


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

    Many starts climb the mutual information on a coarse grid (`affine_search.search`, or fewer by
    `affine_itk.align_by_itk`), for headers may be wrong. The best one is refined on finer grids, up to a stage, and
    kept if it is better than the headers as they are. One that turns the header by 90 or 180 degrees gets a warning;
    with "torch" one that is hardly better than quite another one, too. Equal input gives an equal result.

    Args:
        stage: how far to go: "translation", "rigid", "similarity" or "affine".
        engine: what searches and refines: "torch", or "itk", which takes some five times as long.
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
    if engine == "itk":
        matrix, turned = align_by_itk(fixed, moving, stage, masks=masks, seed=seed)
    else:
        found = search(levels[0], stage, seed)
        matrix, turned = refine(levels, found, stage, seed), found.turned and not _warned(found, fixed, moving)
    if not _is_better(levels[-1], matrix, seed):
        logger.info("the affine alignment found nothing better than the headers, which are kept")
        return np.eye(len(matrix))
    if turned:
        warn_of_turn(fixed, moving)
    return matrix


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


def _warned(found: Found, fixed: Volume, moving: Volume) -> bool:
    """Whether the answer is doubtful, which a warning then says."""
    if found.information < _LITTLE or found.rival > _RIVAL * found.information:
        why = "they share little" if found.information < _LITTLE else "they would fit as well if laid quite differently"
        warn(
            f"{moving.path}, {fixed.path}: the affine alignment may have failed, {why}; look at the picture, and if "
            "need be correct the headers, give masks, or another --affine"
        )
        return True
    return False


def _is_better(level: Level, matrix: np.ndarray, seed: int) -> bool:
    """Whether an alignment is better than the headers as they are, judged by samples that did not lead to it."""
    center, _ = level.center_and_radius
    maps = Maps.joined([Maps.of(m, center) for m in (matrix, np.eye(len(matrix)))])
    for surround in (0.0, 0.4):
        measure = level.information(center, samples=2**15, num_bins=32, seed=seed + 1, surround=surround)
        after, before = measure(maps).tolist()
        if after > _WORTH * before:
            return True
    return False
