"""What the networks of `learned_similarity` learn.

Convention: `distance` (B, 1, *S) tells how far each voxel of the fixed image lies from its place in the moving one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...losses.similarity import masked_mean

ALIGNED, APART = 0.5, 1.0  # voxels up to which a patch counts as aligned, and from which on as not

SCALE_MM = 3.0  # distances below it are told apart by their differences, those above by their ratios


def at_cells(values: Tensor, stride: int) -> Tensor:
    """Values (B, C, *S) at the voxels where a network's cells lie."""
    return values[(slice(None), slice(None), *[slice(None, None, stride)] * (values.ndim - 2))]


def structure_of(image: Tensor, stride: int) -> Tensor:
    """How much there is to compare at each cell: the range of the intensities around it, (B, 1, *S').

    Args:
        image: (B, C, *S), of which the channel that shows the least counts: patches of air correspond everywhere.
        stride: voxels from cell to cell; a cell looks at twice as many and one more.
    """
    pool = F.max_pool3d if image.ndim == 5 else F.max_pool2d
    window = 2 * stride + 1
    spread = pool(image, window, stride, stride) + pool(-image, window, stride, stride)
    return spread.amin(1, keepdim=True)


def correspondence_loss(logits: Tensor, distance: Tensor, weight: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of "this patch lies within half a voxel of its place"; between that and a voxel nothing
    counts.

    Args:
        logits: (B, 1, *S'), of each cell. distance: of each cell, voxels.
        weight: of each cell, see `structure_of`.
    References: Cheng et al., Deep similarity learning for multimodal medical images, 2016 (classification of patches).
    """
    counts = ((distance < ALIGNED) | (distance > APART)).float()
    counts = counts if weight is None else counts * weight
    aligned = (distance < ALIGNED).float()
    return masked_mean(F.binary_cross_entropy_with_logits(logits, aligned, reduction="none"), counts)


def log_distance(distance_mm: Tensor) -> Tensor:
    """log(1 + distance / 3 mm): what the network of volumes estimates."""
    return torch.log1p(distance_mm / SCALE_MM)


def distance_of(logarithm: Tensor) -> Tensor:
    """The inverse of `log_distance`, mm, at least 0."""
    return SCALE_MM * torch.expm1(logarithm.clamp(min=0))


def distance_loss(predicted: Tensor, distance_mm: Tensor) -> Tensor:
    """Mean squared error of the logarithm of each cell's distance.

    Args:
        predicted: (B, 1, *S'), of each cell. distance_mm: of each cell.
    References: Haskins et al., Learning deep similarity metric for 3D MR-TRUS image registration, IJCARS 14, 2019 (the
        regression of the target registration error; one number for a pair, and no logarithm).
    """
    return (predicted - log_distance(distance_mm)).square().mean()
