"""Affine maps as a deformation, for networks that predict matrices."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..affine import affine_to_ddf, centred_to_voxel, invert_affine


class AffineMap:
    """phi(x) = A x + b: the parameters are matrices (B, D, D + 1) in centred coordinates (`affine.centred_to_voxel`).

    Returns "ddf" and "matrix", the parameters. They are no field: `inference.refinement` does not refine them.
    """

    def __call__(self, parameters: Tensor, size: Sequence[int], *, inverse: bool = False) -> dict[str, Tensor]:
        fields = {"ddf": affine_to_ddf(centred_to_voxel(parameters, size), size), "matrix": parameters}
        if inverse:
            fields["inverse_ddf"] = affine_to_ddf(centred_to_voxel(invert_affine(parameters), size), size)
        return fields
