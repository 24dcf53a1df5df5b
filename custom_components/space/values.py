"""Voxel values that are no numbers: NaN is background, and the rest is refused."""

from __future__ import annotations

import numpy as np

from ..notices import warn

_LARGEST = 1e30  # a difference of two such values, squared, still fits float64, and each of them float32


def finite_values(array: np.ndarray, path: str) -> np.ndarray:
    """An array in which NaN has become background; said once.

    Background is 0, or the least value of an image that has negative ones.

    Raises:
        ValueError: if all values are NaN, or some infinite or too large for 32 bits.
    """
    if array.dtype.kind != "f":
        return array
    missing = np.isnan(array)
    count = int(np.count_nonzero(missing))
    if count == array.size:
        raise ValueError(f"{path}: expected an image, got NaN in every voxel")
    if count:
        background = min(0.0, float(np.nanmin(array)))
        array = np.where(missing, array.dtype.type(background), array)
        warn(f"{path}: {count} voxels are NaN ({100 * count / array.size:.2g} %) and were read as {background:g}")
    largest = max(abs(float(array.min())), abs(float(array.max())))
    if not largest < _LARGEST:
        raise ValueError(f"{path}: expected values below {_LARGEST:g}, got {largest:g}; mask or clip them first")
    return array
