"""Affine maps as a deformation: for networks that predict matrices, and for optimisers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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


class AffineParameters(Deformation):
    """phi(y) = y + A y + b: the parameters are A and b, (B, D (D + 1), 1, ...), to be optimised for a pair.

    Convention: y runs from -1 to 1 over the image along each axis, so that the same parameters serve every resolution.
    An optimiser searches them in voxels, as far as they move the border of the image.
    """

    def __call__(self, parameters: Tensor, size: Sequence[int], *, inverse: bool = False) -> Fields:
        matrix = self.matrix(parameters, size)
        fields = {"ddf": affine_to_ddf(matrix, size), "matrix": matrix}
        if inverse:
            fields["inverse_ddf"] = affine_to_ddf(invert_affine(matrix), size)
        return fields

    def matrix(self, parameters: Tensor, size: Sequence[int]) -> Tensor:
        """The map between voxel coordinates, (B, D, D + 1)."""
        d = len(size)
        moved = parameters.reshape(-1, d, d + 1)
        half = _half(size, moved)
        linear = torch.eye(d, dtype=moved.dtype, device=moved.device) + moved[:, :, :d] * half[:, None] / half
        shift = half + half * moved[:, :, d] - (linear * half).sum(-1)
        return torch.cat([linear, shift[:, :, None]], 2)

    def parameter_size(self, size: Sequence[int]) -> list[int]:
        return [1] * len(size)

    def parameter_channels(self, spatial_dims: int) -> int:
        return spatial_dims * (spatial_dims + 1)

    def resize(self, parameters: Tensor, size: Sequence[int]) -> Tensor:
        return parameters

    def to_unknown(self, parameters: Tensor, size: Sequence[int]) -> Tensor:
        return parameters * _per_row(size, parameters)

    def from_unknown(self, unknown: Tensor, size: Sequence[int]) -> Tensor:
        return unknown / _per_row(size, unknown)


def _half(size: Sequence[int], like: Tensor) -> Tensor:
    """Half the extent along each axis, (D,), voxels."""
    return torch.tensor([max(n - 1, 1) / 2 for n in size], dtype=like.dtype, device=like.device)


def _per_row(size: Sequence[int], parameters: Tensor) -> Tensor:
    """The same for each parameter, to be broadcast with them."""
    return _half(size, parameters).repeat_interleave(len(size) + 1).view(1, -1, *[1] * len(size))
