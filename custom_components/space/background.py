"""What an image holds where it shows nothing: zero, the air of a CT, or padding beyond a scanner's field of view."""

from __future__ import annotations

import numpy as np

_AIR = (-1100, -900)  # Hounsfield units of air, with noise


def background_value(image: np.ndarray) -> float:
    """The value for places outside an image (*S).

    It is the value that most voxels on the image's faces have; of a CT without one, its air; else 0.
    """
    axes = [axis for axis in range(image.ndim) if image.shape[axis] > 1]
    faces = np.concatenate([image.take((0, -1), axis).ravel() for axis in axes]) if axes else image.ravel()
    values, counts = np.unique(faces[np.isfinite(faces)], return_counts=True)
    if len(values) and 2 * counts.max() > faces.size:
        return float(values[counts.argmax()])
    air = air_of_ct(image)
    return 0.0 if air is None else air


def air_of_ct(image: np.ndarray) -> float | None:
    """The value of air in an image (*S) if it is a CT in Hounsfield units; None if it is not.

    In a CT some voxels are air, and, but for one value used as padding (-2000, -3024, -32768), next to none are below.
    """
    if not image.min() <= _AIR[1]:
        return None
    air = image[(image >= _AIR[0]) & (image <= _AIR[1])]
    below = image[image < _AIR[0]]
    others = np.count_nonzero(below > below.min()) if below.size else 0
    return float(np.median(air)) if air.size > 0.01 * image.size and others < 0.02 * image.size else None


def without_air(image: np.ndarray) -> np.ndarray:
    """A CT (*S) whose air and padding have the value of its lowest tissue, 1 % of which is lower; others as they are.

    Otherwise the step from air to tissue takes most of the range, and that from padding to air still more.
    """
    if air_of_ct(image) is None:
        return image
    tissue = image[image > _AIR[1]]
    low = np.percentile(tissue, 1) if tissue.size > 0.01 * image.size else _AIR[1]
    return np.maximum(image, np.asarray(low, image.dtype))
