"""Heads of any contrast rendered from label maps, with the classes that the network is to find in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Generator, Tensor

from ...constants import Constant
from ...fields import identity_grid
from ...synthesis.contrast import ContrastDraw, RandomContrast
from ...synthesis.noise import Draw, uniform
from ...synthesis.places import render_at
from ...synthesis.warp import RandomWarp
from .intensities import normalize
from .structures import class_table

_CSF = 24


class HeadDraw(TypedDict):
    """What `SynthesizeHead` draws: which maps are flipped and stripped, (B,); their warp, part and contrast."""

    flip: Tensor
    strip: Tensor
    warp: Draw
    window: list[tuple[int, int]]
    contrast: ContrastDraw


class SynthesizeHead:
    """A head on a grid of half the resolution of its label map, as a scanner of any contrast might show it.

    Each voxel's intensity is the mean over points of the map in it (partial volume), its class that of its centre.

    Args:
        contrast: draws the images.
        warp: moves the maps, on the grid of the images.
        strip: probability that what lies outside the brain is 0, with its CSF in half of these images.
        window: probability that only a part of the grid is seen, and its least and largest share of each axis. The
            part's size is a multiple of 8.
        first_extracerebral: from this id on labels lie outside the brain.
    """

    def __init__(
        self,
        contrast: RandomContrast,
        warp: RandomWarp,
        *,
        strip: float = 0.25,
        window: tuple[float, float, float] = (0.9, 0.45, 0.8),
        first_extracerebral: int = 500,
    ) -> None:
        self.contrast, self.warp, self.strip, self.window = contrast, warp, strip, window
        self.first_extracerebral = first_extracerebral
        self.classes = Constant(class_table(contrast.intensities.num_labels))

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> HeadDraw:
        """All random numbers of `batch` images of maps of `size`; the window is one for all of them."""
        half = [n // 2 for n in size]
        # The host needs the window's size: it draws it itself, and waits for no GPU.
        is_there = generator.device != torch.device("cpu")
        host = Generator().manual_seed(generator.initial_seed()) if is_there else generator
        shares = uniform(self.window[1:], (len(half),), host)
        starts, whole, strip = uniform((0, 1), (len(half),), host), *uniform((0, 1), (2, batch), host)
        if is_there:
            strip = uniform((0, 1), (batch,), generator)
        cut = bool(whole[0] < self.window[0])
        window = [
            _window(n, float(s), float(u)) if cut else (0, n) for n, s, u in zip(half, shares, starts, strict=True)
        ]
        return {
            "flip": uniform((0, 1), (batch,), generator) < 0.5,
            "strip": strip,
            "warp": self.warp.draw(batch, half, generator),
            "window": window,
            "contrast": self.contrast.draw(batch, [stop - start for start, stop in window], generator),
        }

    def __call__(self, labels: Tensor, draw: HeadDraw) -> dict[str, Tensor]:
        """`moving`, the images (B, 1, *S'), and `label_moving`, their classes, for integer maps (B, 1, *S)."""
        places = self._places(labels, draw)
        image, centre = render_at(self.contrast, labels, places, draw["contrast"])
        image = image.masked_fill(self._outside(centre, draw["strip"]), 0)
        image = torch.stack([normalize(one) for one in image])
        return {"moving": image, "label_moving": self.classes.on(labels.device)[centre.long()]}

    def _places(self, labels: Tensor, draw: HeadDraw) -> Tensor:
        """Where each voxel of the window lies in its map, (B, D, *S'), in voxels of the map."""
        half = [n // 2 for n in labels.shape[2:]]
        places = 2 * (identity_grid(half, device=labels.device) + self.warp.field(draw["warp"], half)) + 0.5
        for axis, (start, stop) in enumerate(draw["window"]):
            places = places.narrow(axis + 2, start, stop - start)
        mirrored = labels.shape[2] - 1 - places[:, :1]
        flip = draw["flip"].view(-1, *[1] * (labels.ndim - 1))
        return torch.cat([torch.where(flip, mirrored, places[:, :1]), places[:, 1:]], 1)

    def _outside(self, labels: Tensor, strip: Tensor) -> Tensor:
        """What stripping removes: the labels of no brain, and for half of the maps CSF, too."""
        strip = strip.view(-1, *[1] * (labels.ndim - 1))
        bare = (labels == 0) | (labels >= self.first_extracerebral)
        return (bare & (strip < self.strip)) | ((labels == _CSF) & (strip < self.strip / 2))


def _window(n: int, share: float, start: float) -> tuple[int, int]:
    """Start and stop of a share of an axis, rounded to a multiple of 8."""
    length = min(n, max(8, 8 * round(share * n / 8)))
    first = round(start * (n - length))
    return first, first + length
