"""Teach a probabilistic network how large its errors are, on pairs whose deformation is known, and see what it learned.

    python -m benchmarks.device_training MAPS.npz --bundle voxelmorph_probabilistic --calibrate --initial W.pt ...
    python -m benchmarks.device_calibration MAPS.npz --table labels.csv W.pt

The second command compares the predicted deviation with the actual error on the validation people.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.device_methods import Registration
from benchmarks.device_slices import take_slices
from benchmarks.device_step import Recipe, Training, label_table, read_maps
from benchmarks.device_synthesis import LINEAR, POOL, Augmentation, DevicePairs
from benchmarks.voxelmorph_probabilistic_measures import agreement, spread
from custom_components.fields import integrate_velocity, resize_field, warp

LOG_VARIANCE = -1.5  # where the training begins
# Scales of the known velocities in voxels of their own grid, and the largest standard deviation at each.
SCALES = ((3, 0.5), (6, 1.2))


class Calibration(Training):
    """Train the head of the log variance alone; the mean stays as it is.

    A pair is one anatomy twice, once deformed by exp(-v) of a random smooth velocity v, rendered with noise of its own:
    v is the truth. The loss is the negative log likelihood of v under the network's marginals, N(mean, variance of the
    smoothed noise), the mean over the brain's voxels and the components.

    The divergence from a smoothness prior, with which the network was trained, makes the variance follow the prior and
    the images' edges; it does not compare it with an error.
    """

    names: tuple[str, ...] = ("likelihood", "square_error", "variance", "folding")
    all_weights = False

    def __init__(self, registration: Registration, pairs: DevicePairs, recipe: Recipe) -> None:
        for name, parameter in registration.network.named_parameters():
            parameter.requires_grad_(self.all_weights or name.startswith("log_variance."))
        super().__init__(registration, pairs, recipe)

    @torch.no_grad()
    def forget(self) -> None:
        """Begin from a constant variance: from variances that are far too small the likelihood's steps are wild."""
        for (name, parameter), mean in zip(self.network.named_parameters(), self.mean, strict=True):
            if name.startswith("log_variance."):
                mean.copy_(nn.init.constant_(parameter, 0.0 if name.endswith("weight") else LOG_VARIANCE))

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

    def known_pair(self, labels: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
        """Images (P, 2, *S) of maps (P, *2S), and the velocity that moves fixed to moving, (P, D, *ceil(S / 2))."""
        velocity = self.velocity(len(labels))
        inverse = resize_field(integrate_velocity(-velocity), self.pairs.fine)
        moving = warp(labels.unsqueeze(1).float(), inverse, mode="nearest")[:, 0].to(labels.dtype)
        return self.images(torch.cat([moving, labels]), kind.repeat(2)), velocity

    def terms(self, labels: Tensor, kind: Tensor) -> list[Tensor]:
        """The loss; mean square error and mean variance, which have no gradient; 0."""
        likelihood, *shown = self.likelihood(labels.chunk(2)[1], kind.chunk(2)[1])
        return [likelihood, *shown, likelihood.new_zeros(())]

    def likelihood(self, fixed: Tensor, kind: Tensor) -> list[Tensor]:
        """The negative log likelihood of known deformations of maps (P, *2S), mean square error, mean variance."""
        registration = self.registration
        with torch.no_grad():
            image, velocity = self.known_pair(fixed, kind)
            brain = (POOL[self.pairs.spatial_dims](self.pairs.brain(fixed, margin=0), 2) > 0.5).float()
        parameters = registration.parameters_of(image)
        mean = parameters.chunk(2, 1)[0]
        variance = registration.deformation.velocity_sd(parameters).square().clamp(min=1e-8)
        error = (mean if self.all_weights else mean.detach()).sub(velocity).square()
        share = brain / (brain.sum() * mean.shape[1]).clamp(min=1)
        likelihood = 0.5 * ((variance.log() + error / variance) * share).sum()
        return [likelihood, *[(value.detach() * share).sum() for value in (error, variance)]]


class JointCalibration(Calibration):
    """Train all weights by both: the objective for two people, the likelihood for one person of known deformation.

    The log variance learns from the likelihood alone. The mean learns from both: whoever has only seen different people
    misses most of a known deformation, and features that only find motion do not tell where it is missed. The objective
    compares the mean, not samples of it: the variance is an error's now, too large to learn from what it deforms.
    """

    names = (*Training.names, "likelihood", "square_error", "variance")
    all_weights = True
    weight = 10.0  # of the likelihood

    def __init__(self, registration: Registration, pairs: DevicePairs, recipe: Recipe) -> None:
        registration.method = replace(registration.method, drawn=False)
        super().__init__(registration, pairs, recipe)

    def terms(self, labels: Tensor, kind: Tensor) -> list[Tensor]:
        """Those of the objective; the weighted likelihood; mean square error and mean variance without gradient."""
        self.registration.learns_variance = False
        objective = super(Calibration, self).terms(labels, kind)
        self.registration.learns_variance = True
        likelihood, *shown = self.likelihood(labels.chunk(2)[0], kind.chunk(2)[0])
        return [*objective, self.weight * likelihood, *shown]


@torch.no_grad()
def compare(calibration: Calibration, samples: int, repeats: int) -> dict[str, Any]:
    """Actual errors of the displacement against the deviation of samples, in voxels, at every voxel of the brain."""
    pairs, registration = calibration.pairs, calibration.registration
    errors, deviations, before = [], [], []
    for i in range(pairs.people * repeats):
        torch.manual_seed(i)
        labels = pairs.anatomies(1)[1:]
        image, velocity = calibration.known_pair(labels, torch.zeros(1, dtype=torch.long))
        parameters, brain = registration.parameters_of(image), pairs.brain(labels, margin=0) > 0
        truth = resize_field(integrate_velocity(velocity), pairs.size)
        error = (registration.deformation(parameters, pairs.size)["ddf"] - truth).norm(dim=1, keepdim=True)[brain]
        drawn = [registration.deformation.draw(parameters, pairs.size)["ddf"] for _ in range(samples)]
        errors.append(error)
        deviations.append(spread(torch.stack(drawn, 1))[brain])
        before.append(truth.norm(dim=1, keepdim=True)[brain])
    return agreement(before, errors, deviations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--table", type=Path, required=True, help="CSV file of the labels' T1-like intensities")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="deformations of each validation person")
    parser.add_argument("--spatial_dims", type=int, choices=[2, 3], default=3)
    options = parser.parse_args()
    (maps, ids), runs = read_maps(options.maps, "validation", torch.device("cpu")), (1, 1)
    if options.spatial_dims == 2:
        maps, runs = take_slices(maps)
    known = label_table(options.table, ids, torch.device("cpu"))
    still = Augmentation(zero_background=1.0, strip=1.0, rotation_degrees=0, scaling=0, shift=0, elastic=(), flip=0)
    registration = Registration("voxelmorph_probabilistic", initial=options.weights, spatial_dims=options.spatial_dims)
    calibration = Calibration(registration, DevicePairs(maps, known, still, runs), Recipe())
    print(json.dumps(compare(calibration, options.samples, options.repeats), indent=2))


if __name__ == "__main__":
    main()
