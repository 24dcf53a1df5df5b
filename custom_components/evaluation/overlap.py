"""Overlap and surface distance of label maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def present_labels(*label_maps: Tensor) -> list[int]:
    """The ids that occur in any of the label maps, sorted, without the background 0."""
    ids = torch.cat([integer_labels(m).unique() for m in label_maps]).unique()
    return [int(i) for i in ids if i != 0]


def label_overlap(a: Tensor, b: Tensor, labels: Sequence[int] | None = None) -> Tensor:
    """Dice coefficient of each label: `2 |A and B| / (|A| + |B|)`.

    Args:
        a, b: label maps, shape (B, 1, *S).
        labels: ids to compare; by default `present_labels(a, b)`.
    Returns:
        Shape (B, L) in the order of `labels`: 1 for equal regions, 0 for disjoint ones or if one of them is empty, NaN
        if the label is absent in both.
    Raises:
        ValueError: if the shapes differ or are not those of label maps.
    """
    check_same_shape(a, b, "label maps")
    labels = present_labels(a, b) if labels is None else list(labels)
    # Ids are replaced by their position in the list; bin 0 takes all others. Then one pass counts every label.
    a, b = _positions(a, labels), _positions(b, labels)
    size_a, size_b = _count(a, len(labels)), _count(b, len(labels))
    both = _count(torch.where(a == b, a, torch.zeros_like(a)), len(labels))
    return 2 * both / (size_a + size_b)  # 0 / 0 is NaN: absent in both


def mean_dice(a: Tensor, b: Tensor, labels: Sequence[int] | None = None) -> Tensor:
    """Mean of `label_overlap` over the labels present in a or b, without the background; shape (B,)."""
    return label_overlap(a, b, labels).nanmean(dim=1)


def hausdorff95(a: Tensor, b: Tensor, labels: Sequence[int] | None = None, *, spacing_mm: Sequence[float]) -> Tensor:
    """Robust Hausdorff distance of each label, in mm.

    Definition: the surface of a region is its voxels with a face neighbour outside; from each surface voxel of A the
    distance to the nearest one of B is taken, and the reverse; the result is the larger of the two 95th percentiles.

    Args:
        a, b: label maps, shape (B, 1, *S).
        labels: ids to compare; by default `present_labels(a, b)`.
        spacing_mm: voxel size along each axis.
    Returns:
        Shape (B, L), mm, NaN if the label is absent in a or b. Computed on the CPU (needs scipy).
    Raises:
        ValueError: if the shapes differ or the spacing does not fit.
    """
    check_same_shape(a, b, "label maps")
    spacing = checked_spacing(spacing_mm, a.ndim - 2)
    labels = present_labels(a, b) if labels is None else list(labels)
    a, b = integer_labels(a).cpu(), integer_labels(b).cpu()
    rows = [
        [_surface_distance95(x == i, y == i, spacing) for i in labels] for x, y in zip(a[:, 0], b[:, 0], strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(a), len(labels))


def _surface_distance95(a: Tensor, b: Tensor, spacing: Sequence[float]) -> float:
    """Larger of the two directed 95th percentiles between the surfaces of two regions (*S), bool, in mm."""
    import numpy as np
    from scipy import ndimage

    if not a.any() or not b.any():
        return math.nan
    where = (a | b).nonzero()
    box = tuple(slice(int(lo), int(hi) + 1) for lo, hi in zip(where.amin(0), where.amax(0), strict=True))
    surfaces = []
    for region in (a[box].numpy(), b[box].numpy()):
        region = np.pad(region, 1)
        surfaces.append(region & ~ndimage.binary_erosion(region))
    to_a, to_b = (ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces)
    return float(max(np.percentile(to_b[surfaces[0]], 95), np.percentile(to_a[surfaces[1]], 95)))


def _positions(label_map: Tensor, labels: Sequence[int]) -> Tensor:
    """Shape (B, voxels): 1 + position of each voxel's id in `labels`, 0 for an id that is not listed."""
    values = integer_labels(label_map).flatten(1).long()
    ids, order = torch.tensor(list(labels), dtype=torch.long, device=values.device).sort()
    if not len(ids):
        return torch.zeros_like(values)
    nearest = torch.searchsorted(ids, values).clamp_max(len(ids) - 1)
    return torch.where(ids[nearest] == values, order[nearest] + 1, 0)


def _count(positions: Tensor, num_labels: int) -> Tensor:
    """Shape (B, L): how often positions 1 ... L occur."""
    counts = [torch.bincount(row, minlength=num_labels + 1)[1:] for row in positions]
    return torch.stack(counts).double()


def integer_labels(label_map: Tensor) -> Tensor:
    """A label map of an integer type. Raises ValueError: if a value is not whole."""
    if not label_map.is_floating_point():
        return label_map
    if not bool((label_map == label_map.round()).all()):
        raise ValueError("expected a label map of whole numbers, got fractions: was it interpolated linearly?")
    return label_map.to(torch.int32)


def check_same_shape(a: Tensor, b: Tensor, what: str) -> None:
    """Raises ValueError: unless both, called `what`, have one shape (B, C, *S)."""
    if a.shape != b.shape or a.ndim not in (4, 5):
        raise ValueError(
            f"expected two {what} of one shape (B, C, H, W) or (B, C, D, H, W), got {tuple(a.shape)}, {tuple(b.shape)}"
        )


def checked_spacing(spacing_mm: Sequence[float], spatial_dims: int) -> list[float]:
    """A spacing as numbers. Raises ValueError: unless there is one above 0 for each axis."""
    spacing = [float(s) for s in spacing_mm]
    if len(spacing) != spatial_dims or min(spacing) <= 0:
        raise ValueError(f"expected a positive spacing for each of {spatial_dims} axes, got {spacing}")
    return spacing
