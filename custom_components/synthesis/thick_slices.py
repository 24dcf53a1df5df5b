"""An effect of acquisition: slices thicker than the voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .noise import Draw, Range, uniform


class ThickSlices:
    """With `probability`, thick slices along one random axis; the other axes keep their voxels.

    Args:
        thickness: range of the slices' thickness, rounded to whole voxels.
    """

    def __init__(self, probability: float, thickness: Range = (2, 8)) -> None:
        self.probability, self.thickness = probability, thickness

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> Draw:
        """Draw "stride" (B, D), voxels per slice."""
        d, device = len(size), generator.device
        thick = uniform((0, 1), (batch, 1), generator) < self.probability
        axis = torch.arange(d, device=device) == torch.randint(d, (batch, 1), generator=generator, device=device)
        stride = uniform(self.thickness, (batch, 1), generator).round()
        return {"stride": torch.where(thick & axis, stride, torch.ones(1, device=device))}

    def __call__(self, image: Tensor, labels: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """The image (B, 1, *S) as thick slices show it."""
        return thick_slices(image, draw["stride"])


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
