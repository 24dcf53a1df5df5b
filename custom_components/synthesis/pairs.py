"""The training pair of SynthMorph: both label maps of a batch warped, then rendered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Generator, Tensor

from ..affine import compose_affine, invert_affine, voxel_to_centred
from ..constants import filled
from .contrast import ContrastDraw, RandomContrast
from .noise import Draw, uniform
from .warp import RandomWarp


class PairDraw(TypedDict):
    """The random numbers of a batch of pairs: "flip" (B, D) and "strip" (B,) are shared, the rest is of each map."""

    flip: Tensor
    strip: Tensor
    warp: list[Draw]
    contrast: list[ContrastDraw]


class SynthesizePair:
    """The training pair of SynthMorph: both label maps of a batch warped, then rendered independently.

    Args:
        warp: draws the spatial augmentation of either map.
        contrast: draws the images of the moving maps, and of the fixed ones unless `fixed_contrast` is given.
        fixed_contrast: for the fixed maps.
        flip: probability that both maps of a sample are flipped along an axis; one number, or one for each of the
            first axes: the others are not flipped.
        same_contrast: probability that the labels' means and noise levels are the same in both images; background,
            blur, bias field and gamma stay independent.
        strip: probability that both maps lose the labels from `first_extracerebral` on (skull-stripping).
    Raises:
        ValueError: if images should look the same whose contrasts know different numbers of labels.
    """

    def __init__(
        self,
        warp: RandomWarp,
        contrast: RandomContrast,
        fixed_contrast: RandomContrast | None = None,
        *,
        flip: float | Sequence[float] = 0.5,
        same_contrast: float = 0.0,
        strip: float = 0.0,
        first_extracerebral: int = 500,
    ) -> None:
        self.warp, self.contrasts = warp, (contrast, fixed_contrast or contrast)
        if same_contrast and self.contrasts[0].intensities.num_labels != self.contrasts[1].intensities.num_labels:
            raise ValueError("expected two contrasts of equal num_labels, so that a pair can share its means")
        self.same_contrast = same_contrast
        self.flip, self.strip, self.first_extracerebral = flip, strip, first_extracerebral

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> PairDraw:
        """All random numbers of `batch` pairs.

        Raises:
            ValueError: if there are more probabilities of flips than axes.
        """
        contrasts = [contrast.draw(batch, size, generator) for contrast in self.contrasts]
        same = uniform((0, 1), (batch, 1), generator) < self.same_contrast
        if self.same_contrast:
            first, second = (contrast["intensities"] for contrast in contrasts)
            second |= {key: torch.where(same, first[key], second[key]) for key in ("mean", "std")}
        chance = uniform((0, 1), (batch, len(size)), generator)
        return {
            "flip": chance < filled(self._flips(len(size)), chance),
            "strip": uniform((0, 1), (batch,), generator) < self.strip,
            "warp": [self.warp.draw(batch, size, generator) for _ in range(2)],
            "contrast": contrasts,
        }

    def _flips(self, axes: int) -> list[float]:
        if not isinstance(self.flip, Sequence):
            return [self.flip] * axes
        if len(self.flip) > axes:
            raise ValueError(f"expected probabilities of flips along at most {axes} axes, got {list(self.flip)}")
        return [*self.flip, *[0.0] * (axes - len(self.flip))]

    def __call__(self, label_moving: Tensor, label_fixed: Tensor, draw: PairDraw) -> dict[str, Tensor]:
        """`moving`, `fixed` (B, 1, *S), the label maps they show, in the input's type, and matrices (B, D, D + 1).

        `matrix_moving` and `matrix_fixed` are the affine parts of the warps, from each image to its map as it came in,
        centred coordinates; `matrix` is the map from fixed to moving that aligns the pair if the maps are aligned.

        Raises:
            ValueError: if the two batches differ in shape, or are not the integer maps of the draw's size.
        """
        drawn = draw["contrast"][0]["intensities"]["noise"].shape
        for labels in (label_moving, label_fixed):
            if labels.shape != drawn or labels.is_floating_point():
                raise ValueError(
                    f"expected two batches of integer label maps {tuple(drawn)}, "
                    f"got {labels.dtype} {tuple(labels.shape)}"
                )
        result: dict[str, Tensor] = {}
        shape = (-1, *[1] * (label_moving.ndim - 1))
        for i, (role, labels) in enumerate((("moving", label_moving), ("fixed", label_fixed))):
            for axis in range(labels.ndim - 2):
                labels = torch.where(draw["flip"][:, axis].view(shape), labels.flip(axis + 2), labels)
            labels = self.warp(labels, draw["warp"][i])
            labels = labels.masked_fill((labels >= self.first_extracerebral) & draw["strip"].view(shape), 0)
            result[f"label_{role}"] = labels
            result[role] = self.contrasts[i](labels, draw["contrast"][i])
        d = label_moving.ndim - 2
        for role, warp_draw in zip(("moving", "fixed"), draw["warp"], strict=True):
            result[f"matrix_{role}"] = voxel_to_centred(warp_draw["matrix"][:, :d], label_moving.shape[2:])
        result["matrix"] = compose_affine(invert_affine(result["matrix_moving"]), result["matrix_fixed"])
        return result
