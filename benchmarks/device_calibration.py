"""Teach a probabilistic network how large its errors are, on pairs whose deformation is known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.device_methods import Registration
from benchmarks.device_step import Recipe, Training
from benchmarks.device_synthesis import LINEAR, POOL, DevicePairs
from custom_components.fields import integrate_velocity, resize_field, warp

# Scales of the known velocities in voxels of their own grid, and the largest standard deviation at each.
SCALES = ((3, 0.3), (6, 0.6))


class Calibration(Training):
    """Train the head of the log variance alone; the mean stays as it is.

    A pair is one anatomy twice, once deformed by exp(-v) of a random smooth velocity v, rendered with noise of its own:
    v is the truth. The loss is the negative log likelihood of v under the network's marginals, N(mean, variance of the
    smoothed noise), the mean over the brain's voxels and the components.

    The divergence from a smoothness prior, with which the network was trained, makes the variance follow the prior and
    the images' edges; it does not compare it with an error.
    """

    names = ("likelihood", "square_error", "variance", "folding")

    def __init__(self, registration: Registration, pairs: DevicePairs, recipe: Recipe) -> None:
        for name, parameter in registration.network.named_parameters():
            parameter.requires_grad_(name.startswith("log_variance."))
        super().__init__(registration, pairs, recipe)

    def velocity(self, count: int) -> Tensor:
        """Random velocities (P, D, *ceil(S / 2)), voxels of their grid."""
        size = [-(-n // 2) for n in self.pairs.size]
        total = torch.zeros(count, len(size), *size, device=self.device)
        for scale, largest in SCALES:
            coarse = [max(2, round(n / scale) + 1) for n in size]
            noise = torch.randn(count, len(size), *coarse, device=self.device)
            std = largest * self.pairs.each(torch.rand(count, device=self.device), 1)
            total = total + std * F.interpolate(noise, size=size, mode=LINEAR[len(size)], align_corners=True)
        return total

    def terms(self, labels: Tensor, kind: Tensor) -> list[Tensor]:
        """The loss; mean square error and mean variance, which have no gradient; 0."""
        registration = self.registration
        with torch.no_grad():
            fixed = labels.chunk(2)[1]
            velocity = self.velocity(len(fixed))
            inverse = resize_field(integrate_velocity(-velocity), self.pairs.fine)
            moving = warp(fixed.unsqueeze(1).float(), inverse, mode="nearest")[:, 0].to(fixed.dtype)
            image = self.images(torch.cat([moving, fixed]), kind.chunk(2)[1].repeat(2))
            brain = (POOL[self.pairs.spatial_dims](self.pairs.brain(fixed, margin=0), 2) > 0.5).float()
        parameters = registration.parameters_of(image)
        mean = parameters.chunk(2, 1)[0].detach()
        variance = registration.deformation.velocity_sd(parameters).square().clamp(min=1e-8)
        error = (mean - velocity).square()
        share = brain / (brain.sum() * mean.shape[1]).clamp(min=1)
        likelihood = 0.5 * ((variance.log() + error / variance) * share).sum()
        shown = [(value.detach() * share).sum() for value in (error, variance)]
        return [likelihood, *shown, likelihood.new_zeros(())]
