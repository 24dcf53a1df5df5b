"""From parameters (a network's output or an optimiser's tensor) to fields.

A deformation has no learned parameters. Called with parameters (B, P, *S') and the image size S it returns a dictionary
with "ddf" (B, D, *S), fixed to moving, and whatever else it knows: "svf", the velocity on its own grid, "inverse_ddf"
if asked for. `parameter_size(S)` is the spatial size its parameters have for images of size S. A random deformation has
`draw`, called alike: a sample instead of the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from .fields import affine_to_ddf, centred_to_voxel, integrate_velocity, invert, invert_affine, resize_field
from .gaussian import default_smoothing, smooth, smoothed_variance
from .shooting import shoot
from .smoothing import Kernel, Spacing, per_axis


class StationaryVelocity:
    """phi = exp(v): the parameters are a stationary velocity field, integrated on its own grid, then upsampled.

    Args:
        num_steps: squarings of scaling and squaring.
        stride: image voxels per velocity voxel along each axis, for parameters made here (`parameter_size`); a network
            brings its own resolution.
    References: Arsigny et al., MICCAI 2006; Dalca et al., Medical Image Analysis 57, 2019 (half-resolution velocity).
    """

    def __init__(self, num_steps: int = 7, stride: int = 2) -> None:
        self.num_steps, self.stride = num_steps, stride

    def parameter_size(self, size: Sequence[int]) -> list[int]:
        return [-(-n // self.stride) for n in size]

    def __call__(self, parameters: Tensor, size: Sequence[int], *, inverse: bool = False) -> dict[str, Tensor]:
        fields = {"svf": parameters, "ddf": resize_field(integrate_velocity(parameters, self.num_steps), size)}
        if inverse:
            fields["inverse_ddf"] = resize_field(integrate_velocity(-parameters, self.num_steps), size)
        return fields


class GaussianVelocity(StationaryVelocity):
    """A Gaussian distribution of stationary velocities: the parameters are its mean, then its log variance.

    v = mean + C (exp(log_variance / 2) * eps), eps white noise, C Gaussian smoothing (none: independent voxels).
    Called, it is exp(mean); `draw` is the exponential of a sample. Both return "posterior", the parameters
    (B, 2 D, *S'), beside the fields of `StationaryVelocity`; "svf" is the velocity that was integrated.

    Parameters of D channels are a velocity without uncertainty (pairwise optimisation from zero): it cannot be drawn.

    Args:
        num_steps, stride: as in `StationaryVelocity`.
        prior_precision: lambda of the prior the network is trained with, see `gaussian`; only the default of the
            smoothing depends on it.
        smoothing: standard deviation of C in voxels of the velocity's grid; None takes `default_smoothing`, 0 none.
    Raises:
        ValueError: if the precision is not above 0 or the smoothing is below 0; on a call, if there are neither D nor
            2 D channels.
    References: Dalca et al., Medical Image Analysis 57, 2019.
    """

    def __init__(
        self, num_steps: int = 7, stride: int = 2, *, prior_precision: float = 10.0, smoothing: float | None = None
    ) -> None:
        super().__init__(num_steps, stride)
        if prior_precision <= 0 or (smoothing is not None and smoothing < 0):
            raise ValueError(
                f"expected a prior precision above 0 and a smoothing of at least 0, got {prior_precision}, {smoothing}"
            )
        self.prior_precision, self.smoothing = prior_precision, smoothing

    def __call__(self, parameters: Tensor, size: Sequence[int], *, inverse: bool = False) -> dict[str, Tensor]:
        if parameters.shape[1] == len(size):
            return super().__call__(parameters, size, inverse=inverse)
        return {**super().__call__(self._split(parameters)[0], size, inverse=inverse), "posterior": parameters}

    def draw(
        self,
        parameters: Tensor,
        size: Sequence[int],
        *,
        inverse: bool = False,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """As a call, of one sample of each distribution; the inverse is that of the same sample.

        Args:
            generator: source of the noise, which is drawn on its device; by default torch's global one, on the
                parameters' device.
        """
        mean, log_variance = self._split(parameters)
        device = mean.device if generator is None else generator.device
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=device).to(mean.device)
        velocity = mean + smooth(torch.exp(0.5 * log_variance) * noise, self._smoothing(mean))
        return {**super().__call__(velocity, size, inverse=inverse), "posterior": parameters}

    def velocity_sd(self, parameters: Tensor) -> Tensor:
        """Standard deviation of each component of the velocity, (B, D, *S'), voxels of its own grid."""
        mean, log_variance = self._split(parameters)
        return smoothed_variance(log_variance.exp(), self._smoothing(mean)).sqrt()

    def _smoothing(self, mean: Tensor) -> float:
        return default_smoothing(self.prior_precision, mean.shape[1]) if self.smoothing is None else self.smoothing

    @staticmethod
    def _split(parameters: Tensor) -> tuple[Tensor, Tensor]:
        if parameters.shape[1] != 2 * (parameters.ndim - 2):
            raise ValueError(
                f"expected mean and log variance, {2 * (parameters.ndim - 2)} channels, "
                f"got parameters of shape {tuple(parameters.shape)}"
            )
        mean, log_variance = parameters.chunk(2, 1)
        return mean, log_variance


class Displacement:
    """phi = id + u: the parameters are the displacement itself, as in the first VoxelMorph papers; it may fold.

    The inverse is found by fixed-point iteration, without gradient; its residual (voxels, one per sample) is
    returned as "inverse_residual": where phi folds there is no inverse, and the residual says so.

    Args:
        stride: as in `StationaryVelocity`.
    """

    def __init__(self, stride: int = 1) -> None:
        self.stride = stride

    def parameter_size(self, size: Sequence[int]) -> list[int]:
        return [-(-n // self.stride) for n in size]

    def __call__(self, parameters: Tensor, size: Sequence[int], *, inverse: bool = False) -> dict[str, Tensor]:
        fields = {"ddf": resize_field(parameters, size)}
        if inverse:
            fields["inverse_ddf"], fields["inverse_residual"] = invert(fields["ddf"].detach())
        return fields


class AffineMap:
    """phi(x) = A x + b: the parameters are matrices (B, D, D + 1) in centred coordinates (`fields.centred_to_voxel`).

    Returns "ddf" and "matrix", the parameters. They are no field: `optimization` does not refine them.
    """

    def __call__(self, parameters: Tensor, size: Sequence[int], *, inverse: bool = False) -> dict[str, Tensor]:
        fields = {"ddf": affine_to_ddf(centred_to_voxel(parameters, size), size), "matrix": parameters}
        if inverse:
            fields["inverse_ddf"] = affine_to_ddf(centred_to_voxel(invert_affine(parameters), size), size)
        return fields


Grid = TypeVar("Grid", bound="MomentumGrid")


class MomentumGrid:
    """The grid of a deformation's parameters in units of length: `stride` times coarser than the image, which it spans.

    Convention: `spacing` is that of the image grid, one number or one for each axis.
    """

    spacing: Spacing
    stride: int

    def parameter_size(self, size: Sequence[int]) -> list[int]:
        return [-(-n // self.stride) for n in size]

    def parameter_spacing(self, parameters: Tensor, size: Sequence[int]) -> tuple[float, ...]:
        """Spacing of the momentum's grid, which spans an image grid of the given size."""
        image = per_axis(self.spacing, len(size))
        grids = zip(image, size, parameters.shape[2:], strict=True)
        return tuple(h * (n - 1) / (m - 1) if m > 1 else h for h, n, m in grids)

    def on_grid(self: Grid, full: Sequence[int], size: Sequence[int]) -> Grid:
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
        num_steps, stationary: see `shooting.shoot`.
        stride: as in `StationaryVelocity`.
        checkpoint: see `shooting.shoot`; None: in 3-D.
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

    def __call__(self, parameters: Tensor, size: Sequence[int], *, inverse: bool = False) -> dict[str, Tensor]:
        parameters = parameters if parameters.dtype == torch.float64 else parameters.float()
        spacing = self.parameter_spacing(parameters, size)
        unit = parameters.new_tensor(spacing).view(1, -1, *[1] * len(size))
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
