"""Affine pre-alignment of two images in the world, by ITK's registration framework and mutual information.

Convention: the result maps world points of the fixed image to world points of the moving image, RAS millimetres.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .files import place_itk_image
from .grids import Grid, canonical_grid, center_of_mass, flip_lps, model_grid
from .resampling import resample
from .volumes import Volume, import_itk

_COARSE_VOXELS, _FINE_VOXELS = {2: 2**12, 3: 2**15}, {2: 2**16, 3: 2**19}  # of the fixed image, per level
_SAMPLES = 2**16  # points at which the fine level compares the images
_BINS = 32
_TURN_DEGREES = (
    12.0  # second round of starts: mutual information of heads has false optima some 8 degrees of pitch away
)
_KEPT = 3  # distinct coarse results that the fine level decides between

_Image = tuple[Tensor, Grid]  # (1, *S) and where it lies
_Pair = tuple[_Image, _Image]  # fixed, moving


def register_affine(fixed: Volume, moving: Volume, *, transform: str = "affine", seed: int = 0) -> np.ndarray:
    """Find the affine (or rigid) world map that aligns a moving image with a fixed one, of any contrast.

    Starts from the headers as they are, from the centres of the grids and from the centres of mass, and from the best
    of these turned about each axis. Each start is refined rigidly on a coarse grid; a finer grid decides between the
    best distinct results by mutual information, and is where the affine stage, if asked for, runs. Samples are drawn
    with `seed`: equal input gives an equal result (to rounding).

    Args:
        transform: "rigid" or "affine".
    Returns:
        World matrix (D + 1, D + 1), RAS mm, fixed to moving.
    Raises:
        ImportError: if `itk` is not installed.
        ValueError: if the dimensions differ, or no start makes the images overlap.
    """
    if transform not in ("rigid", "affine"):
        raise ValueError(f"expected transform 'rigid' or 'affine', got {transform!r}")
    if fixed.affine.shape != moving.affine.shape:
        dims = [len(v.affine) - 1 for v in (fixed, moving)]
        raise ValueError(
            f"expected two images of one dimension, got {fixed.path} in {dims[0]}-D, {moving.path} in {dims[1]}-D"
        )
    itk = import_itk("affine pre-alignment")
    d = len(fixed.grid.size)
    fine = _level((fixed.data, fixed.grid), (moving.data, moving.grid), _FINE_VOXELS[d])
    coarse = _level(*fine, _COARSE_VOXELS[d])
    center = center_of_mass(_weights(coarse[0][0]), coarse[0][1].affine)

    def refine(pair: _Pair, starts: Sequence[np.ndarray], kind: str) -> list[np.ndarray]:
        """The starts and what becomes of them, best first."""
        results = [_optimize(itk, pair, start, center, kind=kind, seed=seed) for start in starts]
        found = [*starts, *(matrix for matrix in results if matrix is not None)]
        return sorted(found, key=lambda matrix: -_mutual_information(pair, matrix))

    found = refine(coarse, _translations(*coarse), "rigid")
    found = refine(coarse, [found[0], *_turned(found[0], center)], "rigid")
    if _mutual_information(coarse, found[0]) <= 0:
        raise ValueError(f"{moving.path}: expected an image that can be placed on {fixed.path}, found no overlap")
    best = refine(fine, _distinct(found, coarse[0][1], _KEPT), "rigid")[0]
    return refine(fine, [best], "affine")[0] if transform == "affine" else best


def _level(fixed: _Image, moving: _Image, voxels: int) -> _Pair:
    """Both images no finer than the isotropic spacing at which the fixed one has the given number of voxels."""
    grid = fixed[1]
    spacing = float((np.prod(grid.spacing * np.array(grid.size)) / voxels) ** (1 / len(grid.size)))
    return _no_finer(*fixed, spacing), _no_finer(*moving, spacing)


def _no_finer(image: Tensor, grid: Grid, spacing_mm: float) -> _Image:
    canonical = canonical_grid(grid)
    target = model_grid(grid.affine, grid.size, np.maximum(canonical.spacing, spacing_mm).tolist())
    image = resample(image, grid.affine, target, antialias=True, padding="border")
    high = float(np.percentile(image.numpy(), 99.9))  # a few bright voxels would leave most histogram bins empty
    return image.clamp(max=high) if high > float(image.min()) else image, target


def _weights(image: Tensor) -> Tensor:
    return image[0] - image.min()


def _translations(fixed: _Image, moving: _Image) -> list[np.ndarray]:
    """Starts: none, grid centre to grid centre, centre of mass to centre of mass."""
    d = len(fixed[1].size)
    masses = [center_of_mass(_weights(image), grid.affine) for image, grid in (fixed, moving)]
    shifts = [np.zeros(d), moving[1].center - fixed[1].center, masses[1] - masses[0]]
    return [_about(np.eye(d), np.zeros(d), shift) for shift in shifts]


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


def _distinct(matrices: Sequence[np.ndarray], grid: Grid, count: int) -> list[np.ndarray]:
    """The first maps that differ from one another by more than a voxel somewhere on a grid."""
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in grid.size])))
    points = np.c_[corners, np.ones(len(corners))] @ grid.affine.T
    kept: list[np.ndarray] = []
    for matrix in matrices:
        distances = [np.linalg.norm(points @ (matrix - other).T, axis=1).max() for other in kept]
        if len(kept) < count and all(distance > grid.spacing.max() for distance in distances):
            kept.append(matrix)
    return kept


def _mutual_information(pair: _Pair, matrix: np.ndarray) -> float:
    """Mutual information over the whole fixed grid, in nats; outside the moving image counts as its background.

    Taken over the overlap alone, as the optimiser does, it would favour starts that hardly overlap.
    """
    (fixed, grid), (moving, moving_grid) = pair
    warped = resample(moving - moving.min(), moving_grid.affine, grid, world_matrix=matrix)
    joint = np.histogram2d(fixed.numpy().ravel(), warped.numpy().ravel(), bins=_BINS)[0] / fixed.numel()
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    filled = joint > 0
    return float((joint[filled] * np.log(joint[filled] / independent[filled])).sum())


def _optimize(
    itk: Any,
    pair: _Pair,
    start: np.ndarray,
    center: np.ndarray,
    *,
    kind: str,
    seed: int,
) -> np.ndarray | None:
    """One stage of ITK's registration; None if the images do not overlap enough."""
    d = len(center)
    image_type = itk.Image[itk.F, d]
    fixed, moving = (_to_itk(itk, *image) for image in pair)
    transform = _itk_transform(itk, start, center, kind)
    metric = itk.MattesMutualInformationImageToImageMetricv4[image_type, image_type].New()
    metric.SetNumberOfHistogramBins(_BINS)
    metric.SetUseMovingImageGradientFilter(False)
    metric.SetUseFixedImageGradientFilter(False)
    spacing = float(pair[0][1].spacing.max())
    scales = itk.RegistrationParameterScalesFromPhysicalShift[type(metric)].New(Metric=metric)
    optimizer = itk.RegularStepGradientDescentOptimizerv4[itk.D].New(
        ScalesEstimator=scales,
        NumberOfIterations=100,
        MinimumStepLength=spacing / 500,
        RelaxationFactor=0.7,
        LearningRate=1.0,
        DoEstimateLearningRateOnce=True,
        MaximumStepSizeInPhysicalUnits=spacing,
        ReturnBestParametersAndValue=True,
    )
    registration = itk.ImageRegistrationMethodv4[image_type, image_type].New(
        FixedImage=fixed, MovingImage=moving, Metric=metric, Optimizer=optimizer, InitialTransform=transform
    )
    registration.SetNumberOfLevels(1)
    registration.SetShrinkFactorsPerLevel([1])
    registration.SetSmoothingSigmasPerLevel([0.0])
    registration.InPlaceOn()
    sampling = _SAMPLES / pair[0][0].numel()
    if sampling < 1:
        registration.SetMetricSamplingStrategy(itk.ImageRegistrationMethodv4Enums.MetricSamplingStrategy_RANDOM)
        registration.SetMetricSamplingPercentagePerLevel([sampling])
        registration.MetricSamplingReinitializeSeed(seed)
    try:
        registration.Update()
    except RuntimeError:  # "All samples map outside moving image buffer"
        return None
    linear = itk.array_from_matrix(transform.GetMatrix())
    result = np.eye(d + 1)
    result[:d, :d], result[:d, d] = linear, np.array(list(transform.GetOffset()))
    return flip_lps(d) @ result @ flip_lps(d)


def _to_itk(itk: Any, image: Tensor, grid: Grid) -> Any:
    result = itk.image_from_array(np.ascontiguousarray(image[0].numpy().T))
    place_itk_image(itk, result, grid.affine)
    return result


def _itk_transform(itk: Any, start: np.ndarray, center: np.ndarray, kind: str) -> Any:
    """An ITK transform about `center` (RAS) that equals a world matrix (RAS)."""
    d = len(center)
    if kind == "affine":
        transform = itk.AffineTransform[itk.D, d].New()
    else:
        transform = (itk.Euler3DTransform if d == 3 else itk.Euler2DTransform)[itk.D].New()
    lps = flip_lps(d) @ start @ flip_lps(d)
    center_lps = flip_lps(d)[:d, :d] @ center
    if kind == "rigid":
        u, _, vt = np.linalg.svd(lps[:d, :d])  # ITK refuses rotations that are inexact in the sixth digit
        offset = lps[:d, :d] @ center_lps + lps[:d, d]
        lps[:d, :d] = u @ vt
        lps[:d, d] = offset - lps[:d, :d] @ center_lps
    transform.SetCenter([float(x) for x in center_lps])
    transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(lps[:d, :d])))
    transform.SetTranslation([float(x) for x in lps[:d, d] + lps[:d, :d] @ center_lps - center_lps])
    return transform
