"""Deformations without a metric: a stationary velocity field, and the displacement itself."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..fields import integrate_velocity, invert, resize_field
from .base import Deformation, Fields


class StationaryVelocity(Deformation):
    """phi = exp(v): the parameters are a stationary velocity field, integrated on its own grid, then upsampled.

    Args:
        num_steps: squarings of scaling and squaring.
        stride: image voxels per velocity voxel along each axis, for parameters made here (`parameter_size`); a network
            brings its own resolution.
    References: Arsigny et al., MICCAI 2006; Dalca et al., Medical Image Analysis 57, 2019 (half-resolution velocity).
    """

    def __init__(self, num_steps: int = 7, stride: int = 2) -> None:
        self.num_steps, self.stride = num_steps, stride

    def __call__(self, parameters: Tensor, size: Sequence[int], *, inverse: bool = False) -> Fields:
        fields = {"svf": parameters, "ddf": resize_field(integrate_velocity(parameters, self.num_steps), size)}
        if inverse:
            fields["inverse_ddf"] = resize_field(integrate_velocity(-parameters, self.num_steps), size)
        return fields


class Displacement(Deformation):
    """phi = id + u: the parameters are the displacement itself, as in the first VoxelMorph papers; it may fold.

    The inverse is found by fixed-point iteration, without gradient; its residual (voxels, one per sample) is
    returned as "inverse_residual": where phi folds there is no inverse, and the residual says so.

    Args:
        stride: as in `StationaryVelocity`.
    """

    def __init__(self, stride: int = 1) -> None:
        self.stride = stride

    def __call__(self, parameters: Tensor, size: Sequence[int], *, inverse: bool = False) -> Fields:
        fields = {"ddf": resize_field(parameters, size)}
        if inverse:
            fields["inverse_ddf"], fields["inverse_residual"] = invert(fields["ddf"].detach())
        return fields
