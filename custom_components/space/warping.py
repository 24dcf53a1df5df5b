"""Bring images and label maps onto another grid, as every command and reporter does it.

Convention: as ITK's resampling filter. The image is looked up where the transform says, once; up to half a voxel beyond
its outer voxel centres it has the value of its border, further out the fill value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .background import background_value
from .components import Components
from .grids import Grid
from .resampling import Fill, Step, fill_values, resample
from .volumes import Volume

# What ITK, ANTs, SimpleITK, FSL, FreeSurfer, NiftyReg, torch and nilearn call the same thing, in lower case and without
# their prefixes and parameters.
INTERPOLATIONS = {
    "linear": {"linear", "lin", "trilinear", "bilinear", "trilin", "continuous"},
    "nearest": {"nearest", "nearestneighbor", "nearestneighbour", "nn"},
    "label": {"label", "genericlabel", "multilabel", "labelgaussian", "labellinear", "labelimagegeneric"},
    "cubic": {"cubic", "cub", "bspline", "bspline3", "cubicspline", "spline", "tricubic"},
}

# torch has no unsigned integers of more than 8 bits.
_TORCH_TYPES = {"bool": "uint8", "uint16": "int32", "uint32": "int64", "uint64": "int64"}

_VALUES_AT_ONCE = 2**25  # frames are resampled together as long as they have no more voxels

_FEW = 8  # images with so few values are masks or segmentations


def interpolation_named(name: str) -> str:
    """Our name of an interpolation that ITK, ANTs or another tool calls `name`; "auto" stays.

    "linear"; "nearest"; "label", which interpolates each label linearly and takes the most likely one; "cubic",
    B-splines of order 3.

    Raises:
        ValueError: if nothing is called so, or a parameter in brackets asks for something else.
    """
    word, _, parameter = str(name).strip().partition("[")
    plain = re.sub(r"^s?itk|interpolat(or|ion|e)|imagefunction|[^a-z0-9]", "", word.strip().lower())
    if plain == "auto":
        return "auto"
    for ours, names in INTERPOLATIONS.items():
        wrong_order = ours == "cubic" and parameter.rstrip("] ") not in ("", "3")
        if plain in names and not wrong_order:
            return ours
    raise ValueError(
        f"expected an interpolation among auto, linear, nearest, label and cubic (or ITK's and ANTs' names for them: "
        f"Linear, NearestNeighbor, GenericLabel, MultiLabel, BSpline), got {name!r}"
    )


def looks_like_labels(values: np.ndarray) -> bool:
    """Whether an array (C, *S) holds labels rather than intensities.

    Labels are integers from 0 on, up to the rounding of a scale factor, and neighbours mostly have the same one; grey
    values change from voxel to voxel. The number of labels says nothing: atlases have hundreds, dim images have fewer.
    """
    if values.dtype.kind not in "fiub":
        return False
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            return False
        whole = np.round(values)
        if np.abs(values - whole).max() > 1e-3:
            return False
        values = whole
    if values.min() < 0 or values.max() > 2**31 - 1:
        return False
    if len(np.unique(values.ravel()[:: max(1, values.size // 4096)])) <= _FEW and len(np.unique(values)) <= _FEW:
        return True
    pairs, equal = 0, 0
    for axis in range(1, values.ndim):
        one, other = (values.take(range(k, values.shape[axis] - 1 + k), axis) for k in (0, 1))
        both = (one != 0) & (other != 0)
        pairs += int(both.sum())
        equal += int((one == other)[both].sum())
    # Landmarks, single voxels far apart, have no neighbours.
    return 2 * equal >= pairs or pairs < int((values != 0).sum())


def warp_to_grid(
    data: Tensor, affine: np.ndarray, grid: Grid, steps: Sequence[Step], *, mode: str = "linear", fill: Fill = 0.0
) -> Tensor:
    """An image or a label map on another grid.

    Args:
        data: (C, *S). affine: (D + 1, D + 1), its voxels to RAS mm.
        steps: the transform from the grid's points to the image's.
        mode: "linear", "nearest", "cubic", or "label" for the most likely label after linear interpolation of each.
        fill: the value outside the image, one for all components or one for each.
    Returns:
        Shape (C, *grid.size), of the data's type.
    """
    if mode != "label":
        return resample(data, affine, grid, steps=steps, mode=mode, fill=fill)
    result = torch.empty(len(data), *grid.size, dtype=data.dtype)
    result[:] = fill_values(fill, result[None])[0]
    best = torch.zeros(len(data), *grid.size)
    for value in torch.unique(data):
        # Outside the image every share is 0 and the fill value stays.
        share = resample((data == value).float(), affine, grid, steps=steps, fill=0.0)
        result[share > best] = value
        best = torch.maximum(best, share)
    return result


def warp_image(volume: Volume, grid: Grid, steps: Sequence[Step]) -> Tensor:
    """An image on another grid, shape (1, *grid.size), interpolated linearly, with its background outside."""
    return warp_to_grid(volume.data, volume.affine, grid, steps, fill=volume.background)


def warp_components(
    image: Components, grid: Grid, steps: Sequence[Step], *, mode: str = "linear", fill: float | None = None
) -> np.ndarray:
    """All components of an image on another grid.

    Args:
        image, grid, steps, mode: as in `warp_to_grid`.
        fill: the value outside the image; None finds it for each component (`background_value`), 0 for labels.
    Returns:
        Shape (C, *grid.size): of the file's type for "nearest" and "label", where values of a scaled or floating-point
        label map become integers; else float32.
    Raises:
        ValueError: if the fill value does not fit the type, or "label" is asked for something else.
    """
    data, is_labels = _checked(image, len(grid.size), mode)
    kept = data.dtype if mode in ("nearest", "label") else np.dtype(np.float32)
    if fill is not None and kept.kind in "iub" and np.float64(fill).astype(kept) != fill:
        raise ValueError(f"{image.path}: expected a fill value of the file's type {kept}, got {fill:g}")
    result = np.empty((len(data), *grid.size), dtype=kept)
    together = max(1, _VALUES_AT_ONCE // max(1, math.prod(grid.size)))
    for start in range(0, len(data), together):
        some = data[start : start + together]
        fills = [fill if fill is not None else 0.0 if is_labels else background_value(one) for one in some]
        tensor = torch.from_numpy(np.ascontiguousarray(some.astype(_TORCH_TYPES.get(kept.name, kept))))
        moved = warp_to_grid(tensor, image.grid.affine, grid, steps, mode=mode, fill=fills)
        result[start : start + together] = moved.numpy()
    return result


def _checked(image: Components, d: int, mode: str) -> tuple[np.ndarray, bool]:
    """The components to be brought onto a grid of `d` axes, and whether they are labels, which become integers."""
    if image.data.ndim - 1 != d:
        dimensions = f"{d} dimensions, as the reference, got {image.data.ndim - 1}"
        raise ValueError(f"{image.path}: expected an image of {dimensions}")
    is_labels = mode in ("nearest", "label") and (image.says_labels or looks_like_labels(image.data))
    if mode == "label" and not is_labels:
        raise ValueError(f"{image.path}: expected a label map for the interpolation 'label', got grey values")
    return (_whole(image.data) if is_labels else image.data), is_labels


def _whole(labels: np.ndarray) -> np.ndarray:
    """Labels of a floating-point type, or of 64 bits, as the smallest integers of 16 or 32 bits that hold them."""
    if labels.dtype.kind in "iub" and labels.dtype.itemsize < 8:
        return labels
    return np.round(labels).astype(np.int16 if labels.max() < 2**15 else np.int32)
