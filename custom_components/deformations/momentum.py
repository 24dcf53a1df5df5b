"""Deformations whose parameters are an initial momentum, integrated by geodesic shooting."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from ..fields import at_least_float32, per_channel, resize_field
from .base import Deformation, Fields
from .kernels import Kernel, Spacing, per_axis
from .shooting import shoot

if TYPE_CHECKING:
    from typing_extensions import Self


class MomentumGrid(Deformation):
    """The grid of a deformation's parameters in units of length: `stride` times coarser than the image, which it spans.

    Convention: `spacing` is that of the image grid, one number or one for each axis.
    """

    spacing: Spacing

    def parameter_spacing(self, parameters: Tensor, size: Sequence[int]) -> tuple[float, ...]:
        """Spacing of the momentum's grid, which spans an image grid of the given size."""
        image = per_axis(self.spacing, len(size))
        grids = zip(image, size, parameters.shape[2:], strict=True)
        return tuple(h * (n - 1) / (m - 1) if m > 1 else h for h, n, m in grids)

    def on_grid(self, full: Sequence[int], size: Sequence[int]) -> Self:
        """The same deformation for images resampled from one size to another over the same extent."""
        factors = [(n - 1) / (m - 1) if m > 1 else 1.0 for n, m in zip(full, size, strict=True)]
        coarse = copy(self)
        coarse.spacing = [h * f for h, f in zip(per_axis(self.spacing, len(size)), factors, strict=True)]
        return coarse


class VectorMomentum(MomentumGrid):
    """Geodesic shooting (LDDMM): the parameters are the initial momentum, in voxels of its own grid; see `shooting`.

    Returns "ddf", "momentum" (the parameters), "velocity" (K m at time 0, voxels of its own grid), "energy" (B,), the
    mean of <m, K m> over the voxels in squared units of the spacing, to be regularised, and if asked for "inverse_ddf".
    With `stationary`, v = K m does not change on the way (vSVF).

    Momenta belong to the kernel: with another one they mean another deformation.

    Args:
        kernel: K; its lengths are in units of the spacing, so in mm if that is in mm.
        spacing: of the image grid, one number or one for each axis; None is 1.
        num_steps, stationary: see `deformations.shooting.shoot`.
        stride: as in `StationaryVelocity`.
        checkpoint: see `deformations.shooting.shoot`; None: in 3-D.
        floor: see `to_unknown`, a share of the kernel's gain.
        quantity: of the parameters: "momentum"; "velocity" at time 0, of which K^-1 is the momentum (for a kernel with
            an inverse, see `Kernel.powered`); or "root", that of `to_unknown`, which a network learns sooner.
    """

    def __init__(
        self,
        kernel: Kernel,
        spacing: Spacing | None = None,
        num_steps: int = 10,
        stride: int = 2,
        *,
        stationary: bool = False,
        checkpoint: bool | None = None,
        floor: float = 0.01,
        quantity: str = "momentum",
    ) -> None:
        if quantity not in ("momentum", "velocity", "root"):
            raise ValueError(f"expected quantity momentum, velocity or root, got {quantity!r}")
        self.floor, self.quantity = floor, quantity
        self.kernel, self.spacing = kernel, 1.0 if spacing is None else spacing
        self.num_steps, self.stride = num_steps, stride
        self.stationary, self.checkpoint = stationary, checkpoint

    def __call__(self, parameters: Tensor, size: Sequence[int], *, inverse: bool = False) -> Fields:
        parameters = at_least_float32(parameters)
        spacing = self.parameter_spacing(parameters, size)
        unit = per_channel(spacing, parameters)
        if self.quantity == "velocity":
            parameters = self.kernel.powered(parameters * unit, -1.0, spacing) / unit
        elif self.quantity == "root":
            kernel = replace(self.kernel, padding="none")
            parameters = kernel.powered(parameters * unit, -0.5, spacing, floor=self.floor) / unit
        shot = shoot(
            parameters * unit,
            self.kernel,
            spacing=spacing,
            num_steps=self.num_steps,
            stationary=self.stationary,
            inverse=inverse,
            checkpoint=len(size) == 3 if self.checkpoint is None else self.checkpoint,
        )
        fields = {"ddf": resize_field(shot.ddf, size), "momentum": parameters, "energy": shot.energy}
        fields["velocity"] = shot.velocity / unit
        if shot.inverse_ddf is not None:
            fields["inverse_ddf"] = resize_field(shot.inverse_ddf, size)
        return fields

    def to_unknown(self, parameters: Tensor, size: Sequence[int]) -> Tensor:
        """(K + floor)^(1/2) m: what an optimiser had better search. The energy is its square (but for the floor), so
        that no scale is stiffer than another; steps in the momentum itself would move the coarsest scales alone."""
        if self.quantity == "root":
            return parameters
        kernel = replace(self.kernel, padding="none")
        return kernel.powered(parameters, 0.5, self.parameter_spacing(parameters, size), floor=self.floor)

    def from_unknown(self, unknown: Tensor, size: Sequence[int]) -> Tensor:
        """The parameters of `to_unknown`."""
        if self.quantity == "root":
            return unknown
        kernel = replace(self.kernel, padding="none")
        return kernel.powered(unknown, -0.5, self.parameter_spacing(unknown, size), floor=self.floor)
