"""A Gaussian distribution of stationary velocities (probabilistic VoxelMorph)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...deformations.base import Fields
from ...deformations.velocity import StationaryVelocity
from .gaussian import default_smoothing, smooth, smoothed_variance


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

    is_random = True

    def __init__(
        self, num_steps: int = 7, stride: int = 2, *, prior_precision: float = 10.0, smoothing: float | None = None
    ) -> None:
        super().__init__(num_steps, stride)
        if prior_precision <= 0 or (smoothing is not None and smoothing < 0):
            raise ValueError(
                f"expected a prior precision above 0 and a smoothing of at least 0, got {prior_precision}, {smoothing}"
            )
        self.prior_precision, self.smoothing = prior_precision, smoothing

    def __call__(self, parameters: Tensor, size: Sequence[int], *, inverse: bool = False) -> Fields:
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
    ) -> Fields:
        """As a call, of one sample of each distribution; the inverse is that of the same sample.

        Args:
            parameters, size, inverse: as of a call.
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
