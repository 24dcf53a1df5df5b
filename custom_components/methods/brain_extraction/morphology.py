"""Masks of brains from probabilities: thresholds, components, closing, borders.

Convention: arrays (*S) with the spacing of their axes in mm; distances are in mm.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The component with the most voxels, by neighbours that share a face; of an empty mask itself."""
    found, count = ndimage.label(mask)
    if count <= 1:
        return mask
    sizes = np.bincount(found.ravel())
    sizes[0] = 0
    return found == sizes.argmax()


def cut_free(mask: np.ndarray, spacing: np.ndarray, radius: float) -> np.ndarray:
    """The largest component without what hangs on it by bridges that are thinner than a ball of a radius.

    A mask that is nowhere as thick as the ball, as in a slab, only becomes its largest component.
    """
    core = largest_component(with_border(mask, spacing, -radius))
    if core.any():
        mask = mask & with_border(core, spacing, radius + float(spacing.max()))
    return largest_component(mask)


def closed(mask: np.ndarray, spacing: np.ndarray, radius: float) -> np.ndarray:
    """The closing by a ball of a radius: what a ball outside the mask cannot reach; holes are filled, too."""
    box = _box(mask, spacing, 2 * radius)
    result = mask.copy()
    if box is not None:
        padding = [int(np.ceil(radius / step)) + 1 for step in spacing]
        grown = with_border(np.pad(mask[box], [(n, n) for n in padding]), spacing, radius)
        shrunk = with_border(grown, spacing, -radius)
        inner = tuple(slice(n, -n) for n in padding)
        result[box] |= ndimage.binary_fill_holes(shrunk)[inner]
    return result


def with_border(mask: np.ndarray, spacing: np.ndarray, border: float) -> np.ndarray:
    """The mask with all that is at most `border` away, or with a negative border without what is that near its edge."""
    box = _box(mask, spacing, max(border, 0))
    if box is None or border == 0:
        return mask
    part = mask[box]
    if border > 0:
        grown = ndimage.distance_transform_edt(~part, sampling=spacing) <= border
    else:
        grown = ndimage.distance_transform_edt(part, sampling=spacing) > -border
    result = np.zeros_like(mask)
    result[box] = grown
    return result


def _box(mask: np.ndarray, spacing: np.ndarray, margin: float) -> tuple[slice, ...] | None:
    """The part of the grid that holds a mask and a margin of it, and at least one voxel more; None if it is empty."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        return None
    steps = [int(np.ceil(margin / step)) + 1 for step in spacing]
    return tuple(slice(max(0, s.start - n), s.stop + n) for s, n in zip(found[0], steps, strict=True))
