"""Affine pre-alignment of two images in the world, by ITK's registration framework and mutual information.

Convention: the result maps world points of the fixed image to world points of the moving image, RAS millimetres.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from .grids import Grid, canonical_grid, flip_lps, model_grid
from .readers import import_itk
from .resampling import resample
from .volumes import Volume
from .writers import place_itk_image

_VOXELS = {2: 2**16, 3: 2**19}  # of the fixed image

_SAMPLES = 2**15  # points at which the optimiser compares the images

_BINS = 32

_TRANSFORMS = {
    "translation": {2: "TranslationTransform", 3: "TranslationTransform"},
    "rigid": {2: "Euler2DTransform", 3: "Euler3DTransform"},
    "similarity": {2: "Similarity2DTransform", 3: "Similarity3DTransform"},
    "affine": {2: "AffineTransform", 3: "AffineTransform"},
}


def finish_by_itk(
    fixed: Volume,
    moving: Volume,
    stage: str,
    *,
    start: np.ndarray,
    center: np.ndarray,
    masks: Mapping[str, Volume],
    seed: int = 0,
) -> np.ndarray:
    """Take a world matrix (D + 1, D + 1), fixed to moving, first by a rigid map at most, then to the end of a stage.

    Samples are drawn with `seed` and summed in order, so that equal input gives an equal result. Where ITK finds that
    the images do not overlap enough, the matrix stays as it is.

    Args:
        fixed, moving: the images.
        stage: how far to go, see `affine.register_affine`.
        start: the matrix.
        center: of the maps (D,), RAS mm.
        masks: of "fixed" and "moving", as far as given; ITK counts what is at least 0.5.
        seed: of the samples.
    Raises:
        ImportError: if `itk` is not installed.
    """
    itk = import_itk("affine pre-alignment")
    spacing = (fixed.grid.extent / _VOXELS[len(center)]) ** (1 / len(center))
    images = (*_no_finer(fixed.data, fixed.grid, spacing), *_no_finer(moving.data, moving.grid, spacing))
    matrix = start
    for kind in dict.fromkeys(["translation" if stage == "translation" else "rigid", stage]):
        found = _optimize(itk, images, matrix, center, kind=kind, seed=seed, masks=masks)
        matrix = matrix if found is None else found
    return matrix


def _no_finer(image: Tensor, grid: Grid, spacing_mm: float) -> tuple[Tensor, Grid]:
    spacing = np.maximum(canonical_grid(grid).spacing, spacing_mm).tolist()
    target = model_grid(grid.affine, grid.size, spacing)
    image = resample(image, grid.affine, target, antialias=True, padding="border")
    high = float(np.percentile(image.numpy(), 99.9))  # a few bright voxels would leave most histogram bins empty
    return image.clamp(max=high) if high > float(image.min()) else image, target


def _optimize(
    itk: Any,
    images: tuple[Tensor, Grid, Tensor, Grid],
    start: np.ndarray,
    center: np.ndarray,
    *,
    kind: str,
    seed: int,
    masks: Mapping[str, Volume],
) -> np.ndarray | None:
    """One stage of ITK's registration; None if the images do not overlap enough."""
    d = len(center)
    fixed, fixed_grid, moving, moving_grid = images
    transform = _transform(itk, start, center, kind)
    metric = _metric(itk, d, masks)
    registration = itk.ImageRegistrationMethodv4[itk.Image[itk.F, d], itk.Image[itk.F, d]].New(
        FixedImage=_image(itk, fixed, fixed_grid),
        MovingImage=_image(itk, moving, moving_grid),
        Metric=metric,
        Optimizer=_optimizer(itk, metric, float(fixed_grid.spacing.max())),
        InitialTransform=transform,
    )
    registration.SetNumberOfLevels(1)
    registration.SetShrinkFactorsPerLevel([1])
    registration.SetSmoothingSigmasPerLevel([0.0])
    registration.InPlaceOn()
    sampling = _SAMPLES / fixed.numel()
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
