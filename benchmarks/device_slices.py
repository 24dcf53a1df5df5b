"""Slices of label maps for the training of 2-D networks on a device."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Lengths of `Augmentation` in pixels of 1 mm, where 3-D networks have voxels of 2 mm.
PLANE: dict[str, Any] = {"shift": 4.0, "elastic": ((16, 1.0), (40, 2.4)), "blur": 1.0}
STEP = 2  # voxels of the maps between slices, which cover the middle half of an axis


def take_slices(maps: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Axial and coronal slices of 3-D maps, each also with its axes exchanged: 2-D files come either way.

    Args:
        maps: (N, R, A, S), axes right, anterior, superior.
    Returns:
        Slices (N * levels, 2 H, 2 H), each voxel repeated twice along both axes so that a random warp moves borders by
        parts of a voxel; those of a person stand in a row. And the number of runs of neighbours, and of slices in each.
    """
    side, each, count = max(maps.shape[1:]), [], min(maps.shape[2:]) // (2 * STEP)
    for axis in (3, 2):
        first = maps.shape[axis] // 2 - count // 2 * STEP
        cut = maps.index_select(axis, torch.arange(count, device=maps.device) * STEP + first).movedim(axis, 1)
        gap = [side - m for m in reversed(cut.shape[2:])]
        cut = F.pad(cut, [w for g in gap for w in (g // 2, g - g // 2)])
        each += [cut, cut.mT]
    slices = torch.cat(each, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    return slices.flatten(0, 1).contiguous(), (4, count)
