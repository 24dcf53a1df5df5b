"""Velocities that change in time without an equation of motion: each moment has its own (time-dependent LDDMM).

Convention: d phi_t / dt = v_t(phi_t). phi_{s,t} takes a point from where it is at time s to where it is at time t, and
phi_{1,0} is the pull-back: our "ddf" is phi_{1,0} - id. Velocities are in voxels per unit time, constant over steps of
1 / N.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..fields import at_least_float32, per_channel, resize_field, warp
from .base import Fields
from .kernels import Kernel, Spacing
from .momentum import MetricDeformation

# Reads a field at displaced places, as `fields.warp`.
Look = Callable[[Tensor, Tensor], Tensor]

_FIXED_POINT = 5  # iterations


def at_border(field: Tensor, ddf: Tensor) -> Tensor:
    """Linear interpolation of a field that keeps its border value."""
    return warp(field, ddf, padding="border")


def maps_to_start(velocities: Sequence[Tensor], look: Look = at_border) -> list[Tensor]:
    """Displacements of phi_{t,0} at the times 0, 1 / N, ..., 1.

    Args:
        velocities: N of shape (B, D, *S), voxels per unit time.
        look: interpolation.
    Returns:
        N + 1 of shape (B, D, *S), voxels; the first is zero.
    """
    maps = [torch.zeros_like(velocities[0])]
    for velocity in velocities:
        back = _path(velocity, -1 / len(velocities), look)
        maps.append(back + look(maps[-1], back))
    return maps


def maps_to_end(velocities: Sequence[Tensor], look: Look = at_border) -> list[Tensor]:
    """Displacements of phi_{t,1} at the times 0, 1 / N, ..., 1; as `maps_to_start`, but the last is zero."""
    maps = [torch.zeros_like(velocities[0])]
    for velocity in reversed(velocities):
        ahead = _path(velocity, 1 / len(velocities), look)
        maps.append(ahead + look(maps[-1], ahead))
    return maps[::-1]


def _path(velocity: Tensor, duration: float, look: Look) -> Tensor:
    """The way of a point over one step: the velocity at its middle."""
    path = torch.zeros_like(velocity)
    for _ in range(_FIXED_POINT):
        path = duration * look(velocity, path / 2)
    return path


class TimeVelocity(MetricDeformation):
    """phi_{1,0} of a velocity for each of N steps: the parameters (B, N D, *S'), step by step, voxels of their grid.

    Returns "ddf", if asked for "inverse_ddf" (phi_{0,1}), and "energy" (B,), the mean over time and voxels of <L'L v,
    v> in squared units of the spacing, with K = (L'L)^-1: that of a geodesic is the same number as that of its
    `VectorMomentum`.

    Args:
        kernel: K, one with an inverse (`HelmholtzKernel`).
        spacing: of the image grid, one number or one for each axis; None is 1.
        num_steps: N.
        stride: image voxels per voxel of the velocity's grid along each axis.
    Raises:
        ValueError: for fewer than one step.
    References: Beg et al., IJCV 61(2), 2005.
    """

    look: Look = staticmethod(at_border)

    def __init__(self, kernel: Kernel, spacing: Spacing | None = None, num_steps: int = 10, stride: int = 2) -> None:
        if num_steps < 1:
            raise ValueError(f"expected num_steps of at least 1, got {num_steps}")
        super().__init__(kernel, spacing, stride)
        self.num_steps = num_steps

    def description(self) -> dict[str, object]:
        return {**super().description(), "num_steps": self.num_steps}

    def __call__(self, parameters: Tensor, size: Sequence[int], *, inverse: bool = False) -> Fields:
        velocities = self.velocities(parameters)
        fields = {"ddf": resize_field(maps_to_start(velocities, self.look)[-1], size)}
        fields["energy"] = self.energy(velocities, size)
        if inverse:
            fields["inverse_ddf"] = resize_field(maps_to_end(velocities, self.look)[0], size)
        return fields

    def velocities(self, parameters: Tensor) -> list[Tensor]:
        """N of shape (B, D, *S'), voxels of their grid; one that is given alone stays over all steps.

        Raises:
            ValueError: for another number of channels.
        """
        d = parameters.ndim - 2
        if parameters.shape[1] == d:
            parameters = parameters.repeat(1, self.num_steps, *[1] * d)
        if parameters.shape[1] != self.parameter_channels(d):
            raise ValueError(f"expected {self.num_steps} velocities of {d} channels, got {tuple(parameters.shape)}")
        return list(at_least_float32(parameters).split(d, 1))

    def momenta(self, velocities: Sequence[Tensor], size: Sequence[int]) -> list[Tensor]:
        """L'L v, in the length unit of the spacing, for an image of the given size."""
        spacing = self.parameter_spacing(velocities[0], size)
        unit = per_channel(spacing, velocities[0])
        return [self.kernel.powered(velocity * unit, -1.0, spacing) for velocity in velocities]

    def energy(self, velocities: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """The mean over time and voxels of <L'L v, v>, (B,)."""
        unit = per_channel(self.parameter_spacing(velocities[0], size), velocities[0])
        pairs = zip(self.momenta(velocities, size), velocities, strict=True)
        return torch.stack([(m * v * unit).sum(1).flatten(1).mean(1) for m, v in pairs]).mean(0)

    def parameter_channels(self, spatial_dims: int) -> int:
        return self.num_steps * spatial_dims

    def resize(self, parameters: Tensor, size: Sequence[int]) -> Tensor:
        return torch.cat([resize_field(velocity, size) for velocity in self.velocities(parameters)], 1)
