"""Samples of the velocity that a probabilistic network predicts."""

from __future__ import annotations

import torch
from monai.inferers import Inferer
from torch import Tensor

from ...deformations.base import Deformation
from ...inference.prediction import Masks, Network
from ...memory import check_memory
from ...vocabulary import Result


class SamplesInferer(Inferer):
    """Add to a registration K samples of its velocity's distribution.

    "ddf_samples" (B, K, D, *S), voxels, the samples' displacements, kept on the CPU, and "velocity_sd" (B, D, *S'), the
    velocity's standard deviation in voxels of its own grid. "seconds" is without the samples.

    Args:
        inferer: gives "posterior", the distribution's parameters.
        deformation: of the inferer.
        samples: K; 0 adds nothing.
        seed: of each batch anew, so that a pair gives the same samples in any list. The noise is drawn on the CPU, so
            that equal seeds give equal samples on any device.
    Raises:
        ValueError: for samples of a deformation without uncertainty; on a call, of a network that predicts none.
    """

    def __init__(self, inferer: Inferer, deformation: Deformation, *, samples: int = 0, seed: int = 0) -> None:
        super().__init__()
        if samples < 0 or (samples and not deformation.is_random):
            raise ValueError(
                f"expected samples of a deformation that has uncertainty, got {samples} samples of "
                f"{type(deformation).__name__}"
            )
        self.inferer, self.deformation, self.samples, self.seed = inferer, deformation, samples, seed

    def __call__(self, inputs: Tensor, network: Network, *, masks: Masks | None = None, **options: object) -> Result:
        """As the inferer inside."""
        pred: Result = self.inferer(inputs, network, masks=masks, **options)
        if not self.samples:
            return pred
        if "posterior" not in pred:
            raise ValueError("samples need a network that predicts a log variance; this one gives a velocity alone")
        parameters, size = pred["posterior"], pred["ddf"].shape[2:]
        needed = 2 * 4.0 * self.samples * pred["ddf"].numel()
        check_memory(needed, f"drawing {self.samples} samples", "give fewer --samples or a coarser --spacing")
        generator = torch.Generator().manual_seed(self.seed)
        samples = torch.empty(len(parameters), self.samples, len(size), *size)
        for k in range(self.samples):
            samples[:, k] = self.deformation.draw(parameters, size, generator=generator)["ddf"]
        return {**pred, "ddf_samples": samples, "velocity_sd": self.deformation.velocity_sd(parameters)}
