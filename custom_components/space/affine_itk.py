"""Affine pre-alignment of two images in the world, by ITK's registration framework and mutual information.

Convention: the result maps world points of the fixed image to world points of the moving image, RAS millimetres.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .affine_levels import image_weights
from .grids import Grid, canonical_grid, center_of_mass, flip_lps, model_grid
from .readers import import_itk
from .resampling import resample
from .volumes import Volume
from .writers import place_itk_image

_COARSE_VOXELS, _FINE_VOXELS = {2: 2**12, 3: 2**15}, {2: 2**16, 3: 2**19}  # of the fixed image, per level

_SAMPLES = 2**15  # points at which the optimiser compares the images

_BINS = 32

_CLEARLY_BETTER = 1.2  # ratio of mutual informations

_TURN_DEGREES = 10.0  # of the second round of starts

_TRANSFORMS = {
    "translation": {2: "TranslationTransform", 3: "TranslationTransform"},
    "rigid": {2: "Euler2DTransform", 3: "Euler3DTransform"},
    "similarity": {2: "Similarity2DTransform", 3: "Similarity3DTransform"},
    "affine": {2: "AffineTransform", 3: "AffineTransform"},
}


@dataclass(frozen=True)
class _Level:
    """Both images (1, *S) with their grids at one resolution, and where the fixed one shows something, (*S) bool."""

    fixed: Tensor
    fixed_grid: Grid
    moving: Tensor
    moving_grid: Grid
    foreground: Tensor


def align_by_itk(
    fixed: Volume, moving: Volume, stage: str, *, masks: Mapping[str, Volume], seed: int = 0
) -> tuple[np.ndarray, bool]:
    """Align, from the headers as they are, from the centres of the grids and from the centres of mass.

    These starts are refined rigidly on a coarse grid. A quarter or half turn goes first if it is
    clearly better, for headers may be wrong. The best result and turns of it about each axis are refined on a finer
    grid, and the best of these once more, up to the stage. Samples are drawn with `seed` and summed in order, so that
    equal input gives an equal result.

    Args:
        masks: of "fixed" and "moving", as far as given; ITK counts what is at least 0.5.
    Returns:
        World matrix (D + 1, D + 1), RAS mm, fixed to moving, and whether it turns the header.
    Raises:
        ImportError: if `itk` is not installed.
        ValueError: if no start makes the images overlap.
    """
    itk = import_itk("affine pre-alignment")
    d = len(fixed.grid.size)
    fine = _level(fixed.data, fixed.grid, moving.data, moving.grid, voxels=_FINE_VOXELS[d])
    coarse = _level(fine.fixed, fine.fixed_grid, fine.moving, fine.moving_grid, voxels=_COARSE_VOXELS[d])
    center = center_of_mass(image_weights(coarse.fixed), coarse.fixed_grid.affine)
    first = "translation" if stage == "translation" else "rigid"

    def refine(level: _Level, starts: Sequence[np.ndarray], kind: str) -> np.ndarray:
        results = [_optimize(itk, level, start, center, kind=kind, seed=seed, masks=masks) for start in starts]
        found = [matrix for matrix in results if matrix is not None]
        if not found:
            raise ValueError(f"{moving.path}: expected an image that can be placed on {fixed.path}, found no overlap")
        return max(found, key=lambda matrix: _mutual_information(level, matrix))

    best, turn = refine(coarse, _translations(coarse), first), None
    if stage != "translation":
        turn = _quarter_turn(coarse, best)
        if turn is not None:
            best = refine(coarse, [turn], "rigid")
        best = refine(fine, [best, *_turned(best, center)], "rigid")
    return refine(fine, [best], stage), turn is not None


def _level(fixed: Tensor, fixed_grid: Grid, moving: Tensor, moving_grid: Grid, *, voxels: int) -> _Level:
    """Both images no finer than the isotropic spacing at which the fixed one has the given number of voxels."""
    spacing = (fixed_grid.extent / voxels) ** (1 / len(fixed_grid.size))
    fixed, fixed_grid = _no_finer(fixed, fixed_grid, spacing)
    moving, moving_grid = _no_finer(moving, moving_grid, spacing)
    weights = image_weights(fixed)
    return _Level(fixed, fixed_grid, moving, moving_grid, weights > weights.mean())


def _no_finer(image: Tensor, grid: Grid, spacing_mm: float) -> tuple[Tensor, Grid]:
    spacing = np.maximum(canonical_grid(grid).spacing, spacing_mm).tolist()
    target = model_grid(grid.affine, grid.size, spacing)
    image = resample(image, grid.affine, target, antialias=True, padding="border")
    high = float(np.percentile(image.numpy(), 99.9))  # a few bright voxels would leave most histogram bins empty
    return image.clamp(max=high) if high > float(image.min()) else image, target


def _translations(level: _Level) -> list[np.ndarray]:
    """Starts: none, grid centre to grid centre, centre of mass to centre of mass."""
    d = len(level.fixed_grid.size)
    masses = [
        center_of_mass(image_weights(image), grid.affine)
        for image, grid in ((level.fixed, level.fixed_grid), (level.moving, level.moving_grid))
    ]
    shifts = [np.zeros(d), level.moving_grid.center - level.fixed_grid.center, masses[1] - masses[0]]
    return [_about(np.eye(d), np.zeros(d), shift) for shift in shifts]


def _quarter_turn(level: _Level, best: np.ndarray) -> np.ndarray | None:
    """A map by quarter turns about the centres of mass, if it is clearly better as it is than the best one found."""
    d = len(level.fixed_grid.size)
    fixed, moving = (
        center_of_mass(image_weights(image), grid.affine)
        for image, grid in ((level.fixed, level.fixed_grid), (level.moving, level.moving_grid))
    )
    turns = []
    for order, signs in itertools.product(itertools.permutations(range(d)), itertools.product((1, -1), repeat=d)):
        turn = np.zeros((d, d))
        turn[range(d), order] = signs
        if np.linalg.det(turn) > 0 and np.trace(turn) < d:
            turns.append(_about(turn, fixed, moving - fixed))
    found = max(turns, key=lambda matrix: _mutual_information(level, matrix))
    is_better = _mutual_information(level, found) > _CLEARLY_BETTER * _mutual_information(level, best)
    return found if is_better else None


def _turned(matrix: np.ndarray, center: np.ndarray) -> list[np.ndarray]:
    """A map preceded by turns of the fixed space about its centre, both ways about each axis."""
    d = len(center)
    c, s = math.cos(math.radians(_TURN_DEGREES)), math.sin(math.radians(_TURN_DEGREES))
    turned = []
    for i, j in itertools.permutations(range(d), 2):
        turn = np.eye(d)
        turn[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
        turned.append(matrix @ _about(turn, center, np.zeros(d)))
    return turned


def _about(linear: np.ndarray, center: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The map x -> linear (x - center) + center + shift as a matrix (D + 1, D + 1)."""
    matrix = np.eye(len(center) + 1)
    matrix[:-1, :-1], matrix[:-1, -1] = linear, center + shift - linear @ center
    return matrix


def _mutual_information(level: _Level, matrix: np.ndarray) -> float:
    """Mutual information in nats over the fixed image's foreground; outside the moving image counts as background.

    For choosing between optimised maps. The optimiser itself compares the whole images, whose outlines guide it, but
    that measure does not tell a head from one pitched by 8 degrees (measured: 0.1 % apart, in the foreground 25 %).
    """
    moving = level.moving - level.moving.min()
    warped = resample(moving, level.moving_grid.affine, level.fixed_grid, world_matrix=matrix)
    pair = level.fixed[0][level.foreground].numpy(), warped[0][level.foreground].numpy()
    joint = np.histogram2d(*pair, bins=_BINS)[0] / pair[0].size
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    filled = joint > 0
    return float((joint[filled] * np.log(joint[filled] / independent[filled])).sum())


def _optimize(
    itk: Any,
    level: _Level,
    start: np.ndarray,
    center: np.ndarray,
    *,
    kind: str,
    seed: int,
    masks: Mapping[str, Volume],
) -> np.ndarray | None:
    """One stage of ITK's registration; None if the images do not overlap enough."""
    d = len(center)
    transform = _transform(itk, start, center, kind)
    metric = _metric(itk, d, masks)
    registration = itk.ImageRegistrationMethodv4[itk.Image[itk.F, d], itk.Image[itk.F, d]].New(
        FixedImage=_image(itk, level.fixed, level.fixed_grid),
        MovingImage=_image(itk, level.moving, level.moving_grid),
        Metric=metric,
        Optimizer=_optimizer(itk, metric, float(level.fixed_grid.spacing.max())),
        InitialTransform=transform,
    )
    registration.SetNumberOfLevels(1)
    registration.SetShrinkFactorsPerLevel([1])
    registration.SetSmoothingSigmasPerLevel([0.0])
    registration.InPlaceOn()
    sampling = _SAMPLES / level.fixed.numel()
    if sampling < 1:
        registration.SetMetricSamplingStrategy(itk.ImageRegistrationMethodv4Enums.MetricSamplingStrategy_RANDOM)
        registration.SetMetricSamplingPercentagePerLevel([sampling])
        registration.MetricSamplingReinitializeSeed(seed)
    try:
        registration.Update()
    except RuntimeError:  # "All samples map outside moving image buffer"
        return None
    return _matrix(transform, d)


def _metric(itk: Any, d: int, masks: Mapping[str, Volume]) -> Any:
    image_type = itk.Image[itk.F, d]
    metric = itk.MattesMutualInformationImageToImageMetricv4[image_type, image_type].New()
    metric.SetNumberOfHistogramBins(_BINS)
    metric.SetMaximumNumberOfWorkUnits(1)  # threads would add up in any order, and the result wander by 0.1 mm
    metric.SetUseMovingImageGradientFilter(False)
    metric.SetUseFixedImageGradientFilter(False)
    for role, give in (("fixed", metric.SetFixedImageMask), ("moving", metric.SetMovingImageMask)):
        if role in masks:
            inside = _image(itk, masks[role].data >= 0.5, masks[role].grid)
            give(itk.ImageMaskSpatialObject[d].New(Image=inside))
    return metric


def _optimizer(itk: Any, metric: Any, spacing_mm: float) -> Any:
    """Gradient descent with steps of at most a voxel, down to a 500th of one."""
    return itk.RegularStepGradientDescentOptimizerv4[itk.D].New(
        ScalesEstimator=itk.RegistrationParameterScalesFromPhysicalShift[type(metric)].New(Metric=metric),
        NumberOfIterations=80,
        MinimumStepLength=spacing_mm / 500,
        GradientMagnitudeTolerance=1e-9,  # ITK's 1e-4 stops a mutual information of small slope at once
        RelaxationFactor=0.7,
        LearningRate=1.0,
        DoEstimateLearningRateOnce=True,
        MaximumStepSizeInPhysicalUnits=spacing_mm,
        ReturnBestParametersAndValue=True,
    )


def _image(itk: Any, image: Tensor, grid: Grid) -> Any:
    array = image[0].numpy()
    result = itk.image_from_array(
        np.ascontiguousarray(array.astype(np.uint8 if array.dtype == bool else array.dtype).T)
    )
    place_itk_image(itk, result, grid.affine)
    return result


def _transform(itk: Any, start: np.ndarray, center: np.ndarray, kind: str) -> Any:
    """An ITK transform about `center` (RAS) that comes nearest to a world matrix (RAS)."""
    d = len(center)
    name = getattr(itk, _TRANSFORMS[kind][d])
    lps = flip_lps(d) @ start @ flip_lps(d)
    center_lps = flip_lps(d)[:d, :d] @ center
    shift = lps[:d, d] + lps[:d, :d] @ center_lps - center_lps
    if kind == "translation":
        transform = name[itk.D, d].New()
        transform.SetOffset([float(x) for x in shift])
        return transform
    transform = name[itk.D, d].New() if kind == "affine" else name[itk.D].New()
    linear = lps[:d, :d]
    if kind in ("rigid", "similarity"):
        u, _, vt = np.linalg.svd(linear)  # ITK refuses rotations that are inexact in the sixth digit
        scale = abs(np.linalg.det(linear)) ** (1 / d) if kind == "similarity" else 1.0
        linear = scale * u @ vt
    transform.SetCenter([float(x) for x in center_lps])
    transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(linear)))
    transform.SetTranslation([float(x) for x in shift])
    return transform


def _matrix(transform: Any, d: int) -> np.ndarray:
    """The world matrix (RAS) of an ITK transform."""
    corners = np.vstack([np.zeros(d), np.eye(d)])
    moved = np.array([list(transform.TransformPoint([float(x) for x in corner])) for corner in corners])
    lps = np.eye(d + 1)
    lps[:d, :d], lps[:d, d] = (moved[1:] - moved[0]).T, moved[0]
    return flip_lps(d) @ lps @ flip_lps(d)
