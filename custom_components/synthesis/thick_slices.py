"""An effect of acquisition: slices thicker than the voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
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
        shares = _shares(image.shape[axis + 2], stride[:, axis].to(image.dtype))
        rows = image.movedim(axis + 2, -1)
        # A product, since on a GPU the sum of so many voxels that come one after another depends on the run.
        with torch.autocast(image.device.type, enabled=False):
            means = torch.bmm(rows.flatten(1, -2), shares.mT)
        image = means.view(rows.shape).movedim(-1, axis + 2)
    return image


def _shares(n: int, step: Tensor) -> Tensor:
    """What each of n voxels in a row takes of each, (B, n, n), for slabs of `step` (B,) voxels."""
    position, step = torch.arange(n, device=step.device, dtype=step.dtype), step[:, None]
    centre = ((position - (step - 1) / 2) / step).clamp(min=0)
    last = torch.div(n - 1, step, rounding_mode="floor")
    below = centre.floor().clamp(max=last)
    above = (below + 1).clamp(max=last)
    means = []
    for slab in (below, above):
        start, stop = (slab * step)[..., None], ((slab + 1) * step).clamp(max=n)[..., None]
        means.append(((position >= start) & (position < stop)) / (stop - start))
    return torch.lerp(means[0], means[1], (centre - below).clamp(0, 1)[..., None])
