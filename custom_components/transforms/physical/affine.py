"""Affine pre-alignment of two images in the world, by ITK's registration framework and mutual information.

Convention: the result maps world points of the fixed image to world points of the moving image, RAS millimetres.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .files import place_itk_image
from .grids import Grid, flip_lps, model_grid, voxel_spacing
from .resampling import resample
from .volumes import Volume, import_itk

_COARSE_VOXELS, _FINE_VOXELS = {2: 2**12, 3: 2**15}, {2: 2**15, 3: 2**18}  # of the fixed image, per level
_SAMPLES = 2**14  # points at which the fine level compares the images
_BINS = 32


def register_affine(fixed: Volume, moving: Volume, *, transform: str = "affine", seed: int = 0) -> np.ndarray:
    """Find the affine (or rigid) world map that aligns a moving image with a fixed one, of any contrast.

    Starts from the headers as they are, from the centres of the grids and from the centres of mass; each start is
    refined rigidly on a coarse grid, the one of highest mutual information goes on to a finer grid and, if asked for,
    to an affine stage. Samples are drawn with `seed`: equal input gives an equal result.

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
        raise ValueError(f"expected two images of one dimension, got {fixed.path} in {dims[0]}-D, {moving.path} in {dims[1]}-D")
    itk = import_itk("affine pre-alignment")
    d = len(fixed.grid.size)
    coarse = _level(fixed, moving, _COARSE_VOXELS[d])
    center = _center_of_mass(*coarse[0])
    refined = [
        _optimize(itk, coarse, start, center, kind="rigid", sampling=1.0, seed=seed) for start in _starts(*coarse)
    ]
    refined = [matrix for matrix in refined if matrix is not None]
    if not refined:
        raise ValueError(f"{moving.path}: expected an image that can be placed on {fixed.path}, found no overlap")
    best = max(refined, key=lambda matrix: _mutual_information(coarse, matrix))
    fine = _level(fixed, moving, _FINE_VOXELS[d])
    sampling = min(1.0, _SAMPLES / fine[0][0].numel())
    for kind in ("rigid", "affine") if transform == "affine" else ("rigid",):
        result = _optimize(itk, fine, best, center, kind=kind, sampling=sampling, seed=seed)
        # An optimiser that lost its way must not make things worse.
        if result is not None and _mutual_information(fine, result) >= _mutual_information(fine, best):
            best = result
    return best


_Image = tuple[Tensor, Grid]  # (1, *S) and where it lies


def _level(fixed: Volume, moving: Volume, voxels: int) -> tuple[_Image, _Image]:
    """Both images on isotropic grids of one spacing, so that the fixed one has about the given number of voxels."""
    d = len(fixed.grid.size)
    extent = math.prod(float(x) for x in voxel_spacing(fixed.affine) * np.array(fixed.grid.size))
    spacing = max((extent / voxels) ** (1 / d), float(voxel_spacing(fixed.affine).min()))
    return _at_spacing(fixed, spacing), _at_spacing(moving, spacing)


def _at_spacing(volume: Volume, spacing_mm: float) -> _Image:
    grid = model_grid(volume.affine, volume.grid.size, spacing_mm)
    image = resample(volume.data, volume.affine, grid, antialias=True, padding="border")
    high = float(np.percentile(image.numpy(), 99.9))
    return image.clamp(max=high) if high > float(image.min()) else image, grid


def _starts(fixed: _Image, moving: _Image) -> list[np.ndarray]:
    """Pure translations: none, grid centre to grid centre, centre of mass to centre of mass."""
    shifts = [np.zeros(len(fixed[1].size))]
    shifts += [middle(*moving) - middle(*fixed) for middle in (_center_of_grid, _center_of_mass)]
    return [_translation(shift) for shift in shifts]


def _translation(shift: np.ndarray) -> np.ndarray:
    matrix = np.eye(len(shift) + 1)
    matrix[:-1, -1] = shift
    return matrix


def _center_of_grid(image: Tensor, grid: Grid) -> np.ndarray:
    return (grid.affine @ np.append((np.array(grid.size) - 1) / 2, 1))[:-1]


def _center_of_mass(image: Tensor, grid: Grid) -> np.ndarray:
    weights = (image[0] - image.min()).double()
    axes = range(weights.ndim)
    profiles = [weights.sum([a for a in axes if a != axis]) for axis in axes]
    index = [float((p * torch.arange(len(p))).sum() / p.sum().clamp_min(1e-12)) for p in profiles]
    return (grid.affine @ np.append(index, 1))[:-1]


def _mutual_information(images: tuple[_Image, _Image], matrix: np.ndarray) -> float:
    """Mutual information over the whole fixed grid, in nats; outside the moving image counts as its background.

    Taken over the overlap alone, as the optimiser does, it would favour starts that hardly overlap.
    """
    (fixed, grid), (moving, moving_grid) = images
    warped = resample(moving - moving.min(), moving_grid.affine, grid, world_matrix=matrix)
    joint = np.histogram2d(fixed.numpy().ravel(), warped.numpy().ravel(), bins=_BINS)[0] / fixed.numel()
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    filled = joint > 0
    return float((joint[filled] * np.log(joint[filled] / independent[filled])).sum())


def _optimize(
    itk: Any,
    images: tuple[_Image, _Image],
    start: np.ndarray,
    center: np.ndarray,
    *,
    kind: str,
    sampling: float,
    seed: int,
) -> np.ndarray | None:
    """One stage of ITK's registration; None if the images do not overlap enough."""
    d = len(center)
    image_type = itk.Image[itk.F, d]
    fixed, moving = (_to_itk(itk, *image) for image in images)
    transform = _itk_transform(itk, start, center, kind)
    metric = itk.MattesMutualInformationImageToImageMetricv4[image_type, image_type].New()
    metric.SetNumberOfHistogramBins(_BINS)
    metric.SetUseMovingImageGradientFilter(False)
    metric.SetUseFixedImageGradientFilter(False)
    spacing = float(images[0][1].spacing.max())
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
    transform.SetCenter([float(x) for x in center_lps])
    transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(lps[:d, :d])))
    transform.SetTranslation([float(x) for x in lps[:d, d] + lps[:d, :d] @ center_lps - center_lps])
    return transform
