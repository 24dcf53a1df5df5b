"""Random fields at several scales, made of cubic B-splines of random control points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from ...affine import affine_to_ddf
from ...deformations.bspline import bspline_field, control_size
from ...fields import compose
from ...synthesis.noise import Draw, uniform
from ...synthesis.warp import random_affine


class RandomFields:
    """Random maps: cubic B-splines of a few scales, applied one after another, then an affine map.

    Each component of each control point's displacement is drawn from U(-a, a), a = share * spacing * strength; the
    strength is drawn from U(0, 1) for each sample and scale, so that small and large fields occur. A scale folds
    nowhere if its share is below 1 / (1.5 D), nor in practice below 0.4, and then nor does the whole.

    Args:
        spacings: distances between control points in voxels, from large to small.
        shares: the largest displacement of a control point at each scale, as a share of its spacing.
        vary: draw the strength; without, it is 1.
        affine: keyword arguments of `synthesis.warp.random_affine`.
    Raises:
        ValueError: if there are not as many shares as spacings.
    References: the scales and amplitudes are ours; large to small as in Eppenhof and Pluim, IEEE TMI 38(5), 2019.
    """

    def __init__(
        self,
        spacings: Sequence[float] = (24.0, 12.0, 6.0),
        shares: Sequence[float] = (0.36, 0.24, 0.16),
        *,
        vary: bool = True,
        affine: Mapping[str, float] | None = None,
    ) -> None:
        if len(spacings) != len(shares):
            raise ValueError(f"expected a share for each spacing, got {len(shares)} for {len(spacings)}")
        self.spacings, self.shares = tuple(spacings), tuple(shares)
        self.vary, self.affine = vary, dict(affine or {})

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> Draw:
        """Draw the control points "0", "1", ... (B, D, *control_size), and, with `affine`, "matrix"."""
        draw: Draw = {}
        for scale, (spacing, share) in enumerate(zip(self.spacings, self.shares, strict=True)):
            points = uniform((-1, 1), (batch, len(size), *control_size(size, spacing)), generator)
            strength = uniform((0, 1), (batch, *[1] * (len(size) + 1)), generator) if self.vary else 1.0
            draw[str(scale)] = share * spacing * strength * points
        if self.affine:
            draw["matrix"] = random_affine(batch, size, generator, **self.affine)
        return draw

    def __call__(self, draw: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        """The displacement of a draw's maps, (B, D, *size), voxels: first the finest scale, at last the affine map."""
        field: Tensor | None = None
        for scale, spacing in reversed(list(enumerate(self.spacings))):
            own = bspline_field(draw[str(scale)], size, spacing)
            field = own if field is None else compose(own, field)
        if "matrix" not in draw:
            if field is None:
                raise ValueError("expected a scale or an affine map")
            return field
        d, affine = len(size), affine_to_ddf(draw["matrix"], size)
        return affine if field is None else affine + torch.einsum("bij,bj...->bi...", draw["matrix"][:, :d, :d], field)
