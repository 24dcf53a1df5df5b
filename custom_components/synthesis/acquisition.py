"""What a scanner does to an image: thick slices, a cropped field of view."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def thick_slices(image: Tensor, stride: Tensor) -> Tensor:
    """Partial volume of thick slices: average over slabs of `stride` voxels, then interpolate linearly between them.

    Args:
        image: shape (B, C, *S).
        stride: shape (B, D), whole numbers of voxels per slice along each axis; 1 changes nothing.
    """
    for axis in range(image.ndim - 2):
        n = image.shape[axis + 2]
        position = torch.arange(n, device=image.device, dtype=image.dtype)
        step = stride[:, axis : axis + 1].to(image.dtype)
        sums = F.pad(image.movedim(axis + 2, -1).cumsum(-1, dtype=torch.float64), (1, 0))
        centre = ((position - (step - 1) / 2) / step).clamp(min=0)
        last = torch.div(n - 1, step, rounding_mode="floor")
        below = centre.floor().clamp(max=last)
        above = (below + 1).clamp(max=last)
        values = []
        for slab in (below, above):
            shape = (image.shape[0], *[1] * (image.ndim - 2), n)
            start = (slab * step).long().view(shape).expand(*sums.shape[:-1], n)
            stop = ((slab + 1) * step).clamp(max=n).long().view(shape).expand_as(start)
            values.append((sums.gather(-1, stop) - sums.gather(-1, start)) / (stop - start))
        share = (centre - below).clamp(0, 1).view(image.shape[0], *[1] * (image.ndim - 2), n)
        image = torch.lerp(values[0], values[1], share.double()).to(image.dtype).movedim(-1, axis + 2)
    return image


def crop_field_of_view(image: Tensor, share: Tensor) -> Tensor:
    """Set the ends of the axes to 0.

    Args:
        share: shape (B, D, 2), the share of each axis lost at its start and end.
    """
    for axis in range(image.ndim - 2):
        n = image.shape[axis + 2]
        position = (torch.arange(n, device=image.device) + 0.5) / n
        inside = (position >= share[:, axis, :1]) & (position <= 1 - share[:, axis, 1:])
        shape = [1] * image.ndim
        shape[0], shape[axis + 2] = share.shape[0], n
        image = image * inside.view(shape)
    return image
