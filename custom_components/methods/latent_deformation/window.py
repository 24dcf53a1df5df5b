"""A window of pairs of images, of the size that a network was trained with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Window:
    """A part of pairs of images about the centres of mass of the fixed ones, by whole voxels; zeros beyond the images.

    Nothing here makes the host wait for a device.

    Args:
        image: (B, 2, *S), moving, then fixed.
        size: of the window, *W; None: the whole images.
    Attributes:
        image: (B, 2, *W).
    Raises:
        ValueError: if the size has another number of axes.
    """

    def __init__(self, image: Tensor, size: Sequence[int] | None) -> None:
        self.full, self.starts = list(image.shape[2:]), list[Tensor]()
        self.image = image
        if size is None:
            return
        if len(size) != len(self.full):
            raise ValueError(f"expected a window of {len(self.full)} axes, got {list(size)}")
        self.starts = _starts(image[:, 1], size)
        for axis, (start, n) in enumerate(zip(self.starts, size, strict=True)):
            self.image = _taken(self.image, axis, start, n, zeros=True)

    def field(self, values: Tensor) -> Tensor:
        """A field (B, C, *W) of the window as one of the images, (B, C, *S); beyond the window as at its border."""
        for axis, (start, n) in enumerate(zip(self.starts, self.full, strict=False)):
            values = _taken(values, axis, -start, n, zeros=False)
        return values


def _taken(values: Tensor, axis: int, start: Tensor, n: int, *, zeros: bool) -> Tensor:
    """The voxels start ... start + n - 1 along an axis of (B, C, *S), start (B,); beyond, zeros or the last ones."""
    index = start.view(-1, 1) + torch.arange(n, device=values.device)
    last = values.shape[axis + 2] - 1
    shape = [len(values), 1, *[1] * (values.ndim - 2)]
    shape[axis + 2] = n
    wanted = list(values.shape)
    wanted[axis + 2] = n
    found = values.gather(axis + 2, index.clamp(0, last).view(shape).expand(wanted))
    return found * ((index >= 0) & (index <= last)).view(shape) if zeros else found


def _starts(fixed: Tensor, size: Sequence[int]) -> list[Tensor]:
    """Where windows about the centres of mass of images (B, *S) begin, (B,) along each axis."""
    weights = fixed.detach().float().clamp(min=0)
    total = weights.flatten(1).sum(1)
    starts = []
    for axis, n in enumerate(weights.shape[1:]):
        along = weights.movedim(axis + 1, 1).flatten(2).sum(2)
        index = torch.arange(n, dtype=along.dtype, device=along.device)
        # An empty image has no centre of mass: its own centre does.
        centre = torch.where(total > 0, (along * index).sum(1) / total.clamp(min=1e-12), (n - 1) / 2)
        starts.append((centre - (size[axis] - 1) / 2).round().long())
    return starts
