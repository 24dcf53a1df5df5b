"""Deformations whose parameters are an initial momentum, integrated by geodesic shooting."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..fields import at_least_float32, per_channel, resize_field
from .base import Deformation, Fields
from .kernels import Kernel, Spacing, per_axis
from .shooting import EPDiff, Flow, StationaryFlow, shoot

if TYPE_CHECKING:
    from typing_extensions import Self


class MetricDeformation(Deformation):
    """What deformations with a metric share: a kernel whose lengths are those of the image's spacing.

    Args:
        kernel: K; its lengths are in units of the spacing, so in mm if that is in mm.
        spacing: of the image grid, one number or one for each axis; None is 1.
        stride: image voxels per voxel of the parameters' grid along each axis.
    """

    def __init__(self, kernel: Kernel, spacing: Spacing | None = None, stride: int = 2) -> None:
        self.kernel, self.spacing, self.stride = kernel, 1.0 if spacing is None else spacing, stride

    def description(self) -> dict[str, object]:
        return {**super().description(), "kernel": repr(self.kernel)}

    def parameter_spacing(self, parameters: Tensor, size: Sequence[int]) -> tuple[float, ...]:
        """Spacing of the parameters' grid, which spans an image grid of the given size."""
        image = per_axis(self.spacing, len(size))
        grids = zip(image, size, parameters.shape[2:], strict=True)
        return tuple(h * (n - 1) / (m - 1) if m > 1 else h for h, n, m in grids)

    def on_grid(self, full: Sequence[int], size: Sequence[int]) -> Self:
        # The kernel's lengths stay, so the voxels must grow.
        factors = [(n - 1) / (m - 1) if m > 1 else 1.0 for n, m in zip(full, size, strict=True)]
        coarse = copy(self)
        coarse.spacing = [h * f for h, f in zip(per_axis(self.spacing, len(size)), factors, strict=True)]
        return coarse


class MomentumDeformation(MetricDeformation):
    """What all shooting shares: units, the quantity that stands for the momentum, and the variable of an optimiser.

    The first D channels of the parameters are the momentum, in voxels of their own grid, or the quantity that stands
    for it. A subclass says which equation of motion it follows (`flow`).

    Returns "ddf", "momentum" (voxels of its grid), "velocity" at time 0 (voxels of its grid), "energy" (B,), the mean
    of <m, v> over the voxels in squared units of the spacing, if asked for "inverse_ddf", and the flow's own fields.

    Momenta belong to the kernel: with another one they mean another deformation.

    Args:
        kernel: K; its lengths are in units of the spacing, so in mm if that is in mm.
        spacing: of the image grid, one number or one for each axis; None is 1.
        num_steps: see `shooting.shoot`.
        stride: image voxels per voxel of the momentum's grid along each axis.
        checkpoint: see `shooting.shoot`; None: in 3-D.
        floor: see `to_unknown`, a share of the kernel's gain.
        quantity: what the first D channels are: "momentum", or "root", (K + floor)^(1/2) m, which a network learns
            sooner, and which an optimiser searches as it is.
    Raises:
        ValueError: for an unknown quantity; on a call, if channels are missing.
    """

    quantities: tuple[str, ...] = ("momentum", "root")

    # See `shooting.shoot`.
    checked: bool = True

    def __init__(
        self,
        kernel: Kernel,
        spacing: Spacing | None = None,
        num_steps: int = 10,
        stride: int = 2,
        *,
        checkpoint: bool | None = None,
        floor: float = 0.01,
        quantity: str = "momentum",
    ) -> None:
        if quantity not in self.quantities:
            known = f"{', '.join(self.quantities[:-1])} or {self.quantities[-1]}"
            raise ValueError(f"expected quantity {known}, got {quantity!r}")
        super().__init__(kernel, spacing, stride)
        self.num_steps, self.checkpoint = num_steps, checkpoint
        self.floor, self.quantity = floor, quantity

    def description(self) -> dict[str, object]:
        return {**super().description(), "quantity": self.quantity}

    @abstractmethod
    def flow(self, parameters: Tensor, spacing: tuple[float, ...]) -> tuple[Flow, Fields]:
        """The equation of motion on the parameters' grid, of the given spacing, and further fields to return."""

    def __call__(self, parameters: Tensor, size: Sequence[int], *, inverse: bool = False) -> Fields:
        self._check(parameters, size)
        parameters = given = at_least_float32(parameters).view_as(parameters)
        spacing = self.parameter_spacing(parameters, size)
        with torch.autocast(parameters.device.type, enabled=False):
            momentum = self._momentum(parameters[:, : len(size)], spacing)
            unit = per_channel(spacing, momentum)
            flow, own = self.flow(parameters, spacing)
            checkpoint = len(size) == 3 if self.checkpoint is None else self.checkpoint
            shot = shoot(
                flow,
                momentum * unit,
                num_steps=self.num_steps,
                inverse=inverse,
                checkpoint=checkpoint,
                checked=self.checked,
            )
            is_sound = shot.is_sound
            if is_sound is not None and given.requires_grad:
                # What has diverged on the way has a gradient that is no number.
                given.register_hook(lambda gradient: torch.where(is_sound, gradient, torch.zeros_like(gradient)))
            fields = {"ddf": resize_field(shot.ddf, size), "momentum": momentum, "energy": shot.energy}
            fields |= {"velocity": shot.velocity / unit, **own}
            if shot.inverse_ddf is not None:
                fields["inverse_ddf"] = resize_field(shot.inverse_ddf, size)
        return fields

    def to_unknown(self, parameters: Tensor, size: Sequence[int]) -> Tensor:
        """(K + floor)^(1/2) m. The energy is its square (but for the floor), so that no scale is stiffer than another;
        steps in the momentum itself would move the coarsest scales alone."""
        if self.quantity == "root":
            return parameters
        return self._powered(parameters, 0.5, self.parameter_spacing(parameters, size))

    def from_unknown(self, unknown: Tensor, size: Sequence[int]) -> Tensor:
        if self.quantity == "root":
            return unknown
        return self._powered(unknown, -0.5, self.parameter_spacing(unknown, size))

    def _check(self, parameters: Tensor, size: Sequence[int]) -> None:
        d, channels = len(size), self.parameter_channels(len(size))
        if parameters.ndim != d + 2 or parameters.shape[1] != channels:
            raise ValueError(
                f"expected parameters of {channels} channels, the first {d} a momentum, in {d}-D, "
                f"got shape {tuple(parameters.shape)}"
            )

    def _momentum(self, vectors: Tensor, spacing: tuple[float, ...]) -> Tensor:
        """The momentum that the first D channels stand for."""
        if self.quantity == "root":
            unit = per_channel(spacing, vectors)
            return self._powered(vectors * unit, -0.5, spacing) / unit
        return vectors

    def _powered(self, vectors: Tensor, exponent: float, spacing: tuple[float, ...]) -> Tensor:
        # Only a periodic kernel has powers. As a preconditioner, or between a root and its momentum, it will do.
        kernel = replace(self.kernel, padding="none")
        return kernel.powered(vectors, exponent, spacing, floor=self.floor)


class VectorMomentum(MomentumDeformation):
    """Geodesic shooting (LDDMM) with one kernel everywhere: the D parameters are the initial momentum, see `shooting`.

    Args:
        stationary: v = K m does not change on the way (vSVF), `shooting.StationaryFlow` in place of `EPDiff`.
        quantity: also "velocity" at time 0, of which K^-1 is the momentum (for a kernel with an inverse, see
            `Kernel.powered`).
        kernel, spacing, num_steps, stride, checkpoint, floor: see `MomentumDeformation`.
    """

    quantities = ("momentum", "velocity", "root")

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
        super().__init__(kernel, spacing, num_steps, stride, checkpoint=checkpoint, floor=floor, quantity=quantity)
        self.stationary = stationary

    def description(self) -> dict[str, object]:
        return {**super().description(), "stationary": self.stationary}

    def flow(self, parameters: Tensor, spacing: tuple[float, ...]) -> tuple[Flow, Fields]:
        return (StationaryFlow if self.stationary else EPDiff)(self.kernel, spacing), {}

    def _momentum(self, vectors: Tensor, spacing: tuple[float, ...]) -> Tensor:
        if self.quantity == "velocity":
            unit = per_channel(spacing, vectors)
            return self.kernel.powered(vectors * unit, -1.0, spacing) / unit
        return super()._momentum(vectors, spacing)
