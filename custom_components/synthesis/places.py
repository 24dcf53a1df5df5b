"""Images of label maps at any places: each voxel is the mean over points of the map in it."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from ..constants import filled
from .contrast import ContrastDraw, RandomContrast


def render_at(contrast: RandomContrast, labels: Tensor, places: Tensor, draw: ContrastDraw) -> tuple[Tensor, Tensor]:
    """Images whose voxels lie at given places of a label map, which is twice as fine as they are (partial volume).

    Args:
        contrast: what labels look like.
        labels: integer maps (B, 1, *S).
        places: of the voxels, (B, D, *S'), in voxels of the maps.
        draw: of the contrast, for images of S'.
    Returns:
        The images (B, 1, *S') after all effects, and the labels at the voxels' centres, of the same shape.
    """
    centre = look_up(labels, places)
    numbers = draw["intensities"]
    signs = [s for s in product((-0.5, 0.5), repeat=labels.ndim - 2) if sum(x > 0 for x in s) % 2 == 0]
    image = torch.zeros(centre.shape, device=labels.device)
    for sign in signs:
        offset = filled(sign, places).view(1, -1, *[1] * (labels.ndim - 2))
        image += _gather(numbers["mean"], look_up(labels, places + offset))
    image = torch.addcmul(image / len(signs), _gather(numbers["std"], centre), numbers["noise"])
    for effect, values in zip(contrast.effects, draw["effects"], strict=True):
        image = effect(image, centre, values)
    return image, centre


def look_up(labels: Tensor, places: Tensor) -> Tensor:
    """The labels (B, 1, *S') at the voxels nearest to places (B, D, *S'); 0 outside the maps (B, 1, *S)."""
    size = labels.shape[2:]
    index = torch.zeros(places[:, 0].shape, dtype=torch.int32, device=places.device)
    inside = torch.ones_like(index, dtype=torch.bool)
    for axis, n in enumerate(size):
        nearest = places[:, axis].round().to(torch.int32)
        inside &= (nearest >= 0) & (nearest < n)
        index = index * n + nearest.clamp(0, n - 1)
    found = labels.flatten(1).gather(1, index.flatten(1).long()).view(index.shape) * inside
    return found[:, None]


def _gather(values: Tensor, labels: Tensor) -> Tensor:
    """Each voxel's value, of a table (B, L)."""
    return values.gather(1, labels.flatten(1).long()).view(labels.shape)
