"""Affine maps as a deformation, for networks that predict matrices."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..affine import affine_to_ddf, centred_to_voxel, invert_affine
from .base import Deformation, Fields

_NO_GRID = "the parameters of an affine map are a matrix: they have no grid, and no refinement"


class AffineMap(Deformation):
    """phi(x) = A x + b: the parameters are matrices (B, D, D + 1) in centred coordinates (`affine.centred_to_voxel`).

    Returns "ddf" and "matrix", the parameters. They are not a field, so `inference.refinement` cannot refine them.

    Raises:
        ValueError: if a grid of parameters is asked for.
    """

    def __call__(self, parameters: Tensor, size: Sequence[int], *, inverse: bool = False) -> Fields:
        fields = {"ddf": affine_to_ddf(centred_to_voxel(parameters, size), size), "matrix": parameters}
        if inverse:
            fields["inverse_ddf"] = affine_to_ddf(centred_to_voxel(invert_affine(parameters), size), size)
        return fields

    def parameter_size(self, size: Sequence[int]) -> list[int]:
        raise ValueError(_NO_GRID)

    def resize(self, parameters: Tensor, size: Sequence[int]) -> Tensor:
        raise ValueError(_NO_GRID)
