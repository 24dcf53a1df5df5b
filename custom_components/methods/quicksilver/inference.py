"""Momenta predicted in patches, their correction, and samples by dropout."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from ...deformations.base import Deformation
from ...fields import plain, warp
from ...inference.prediction import Masks, Network, Precision, Prediction
from ...inference.registration import RegistrationInferer, as_pair, seconds_per_pair
from ...networks.parallel import unwrap
from ...vocabulary import Result
from .network import QuicksilverNetwork
from .patches import predict_in_patches


class PatchInferer(Inferer):
    """Run a network on patches alone, for its training: {"prediction": the output}.

    Args:
        precision: see `Precision`.
    """

    def __init__(self, precision: str = "float32") -> None:
        super().__init__()
        self.precision = Precision(precision)

    def __call__(self, inputs: Tensor, network: Network, **options: object) -> dict[str, Tensor]:
        return {"prediction": self.precision.run(network, plain(inputs), **options)}


class PatchPredictor:
    """Momenta of a network that predicts them in patches; the answers are averaged where patches overlap (Quicksilver).

    For a correction network, the fixed image is pulled back to moving space by the predicted map, and the correction,
    from the moving image and that one, is added: m = m_P + m_C. The correction is `correction`, or, while it is
    trained, the network of the call, which then comes after `predictor`.

    Args:
        correction: a network that corrects the predictions of the call's network, or None.
        predictor: a network whose predictions the call's network corrects, or None.
        patch, step, background: see `patches.predict_in_patches`; the deformation's stride is that of the network.
        batch_size: patches at a time.
        precision: see `Precision`.
    Raises:
        ValueError: on a call, if the correction belongs to another network.
    """

    def __init__(
        self,
        *,
        correction: nn.Module | None = None,
        predictor: nn.Module | None = None,
        patch: int = 15,
        step: int = 14,
        background: float = 0.02,
        batch_size: int = 64,
        precision: str = "float32",
    ) -> None:
        self.correction, self.predictor, self.precision = correction, predictor, Precision(precision)
        self.in_patches = partial(
            predict_in_patches, patch=patch, step=step, background=background, batch_size=batch_size
        )

    def __call__(
        self,
        image: Tensor,
        network: Network,
        deformation: Deformation,
        *,
        masks: Masks | None = None,
        **options: object,
    ) -> Prediction:
        self._check_correction(network)
        image, momentum = self.before(image, deformation)
        momentum = momentum + self._predict(image, network, deformation)
        if self.correction is not None:
            seen = _pulled_back(image, momentum, deformation)
            momentum = momentum + self._predict(seen, self.correction, deformation)
        return Prediction(momentum, deformation)

    def before(self, image: Tensor, deformation: Deformation) -> tuple[Tensor, Tensor]:
        """What the call's network gets to see, and the momentum that is there already: that of the predictor."""
        if self.predictor is None:
            return image, image.new_zeros(())
        momentum = self._predict(image, self.predictor, deformation)
        return _pulled_back(image, momentum, deformation), momentum

    def _predict(self, image: Tensor, network: Network, deformation: Deformation) -> Tensor:
        # Unwrapped, because a wrapper of a distributed training would wait for the other processes at each run.
        run = partial(self.precision.run, unwrap(network))
        return self.in_patches(image, run, image.ndim - 2, stride=deformation.stride)

    def _check_correction(self, network: Network) -> None:
        network, correction = unwrap(network), self.correction
        if not isinstance(network, QuicksilverNetwork) or not isinstance(correction, QuicksilverNetwork):
            return
        if correction.corrects != network.digest():
            raise ValueError("the correction belongs to other weights: train one for these, or leave it out (none)")


class Teacher:
    """Momenta by networks that have learned already, in place of optimised ones, which take much longer.

    It is called as the optimiser is, `teacher(moving, fixed)`.

    Args:
        network: predicts the momenta.
        deformation: that they belong to.
        correction: corrects the predictions, or None.
        precision: see `Precision`.
    """

    def __init__(
        self,
        network: QuicksilverNetwork,
        deformation: Deformation,
        correction: nn.Module | None = None,
        precision: str = "float32",
    ) -> None:
        self.network, self.deformation = network, deformation
        self.predict = PatchPredictor(correction=correction, precision=precision)

    @torch.no_grad()
    def __call__(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Momenta (B, D, *S') of images (B, 1, *S)."""
        return self.predict(torch.cat([moving, fixed], 1), self.network, self.deformation).parameters


def _pulled_back(image: Tensor, momentum: Tensor, deformation: Deformation) -> Tensor:
    """The pairs with their fixed images brought to moving space by the inverse map."""
    moving, fixed = image.chunk(2, 1)
    inverse = deformation(momentum, image.shape[2:], inverse=True)["inverse_ddf"]
    return torch.cat([moving, warp(fixed, inverse)], 1)


class DropoutSamplesInferer(Inferer):
    """Register with the mean of K predictions, made with the network's dropout active, and add their deformations.

    "ddf_samples" (B, K, D, *S), voxels, are the displacements of each prediction, kept on the CPU; "velocity_sd", if K
    is above 1, is the standard deviation of their velocities. "seconds" is without these fields.

    Args:
        inferer: registers pairs.
        samples: K; 0 registers without dropout.
        seed: of the dropout, of each batch anew, on the device of the images.
    Raises:
        ValueError: for samples together with a correction; on a call, of a network without dropout.
    """

    def __init__(self, inferer: RegistrationInferer, *, samples: int = 0, seed: int = 0) -> None:
        super().__init__()
        if samples < 0:
            raise ValueError(f"expected a number of samples of at least 0, got {samples}")
        predict = inferer.predict
        if samples and isinstance(predict, PatchPredictor) and predict.correction is not None:
            raise ValueError("samples are drawn of the prediction alone: leave the correction out (correction: none)")
        self.inferer, self.samples, self.seed = inferer, samples, seed

    def __call__(self, inputs: Tensor, network: nn.Module, *, masks: Masks | None = None, **options: Any) -> Result:
        """As the inferer inside."""
        if not self.samples:
            return self.inferer(inputs, network, masks=masks, **options)
        image, start = as_pair(inputs), time.perf_counter()
        predict, deformation = self.inferer.predict, self.inferer.deformation
        with _dropout(network, self.seed, image.device):
            drawn = [predict(image, network, deformation, masks=None, **options) for _ in range(self.samples)]
            momenta = torch.stack([prediction.parameters for prediction in drawn])
        pred = self.inferer.register(image, Prediction(momenta.mean(0), deformation), masks=masks, **options)
        pred["seconds"] = seconds_per_pair(image, start)
        fields = [deformation(momentum, image.shape[2:]) for momentum in momenta]
        pred["ddf_samples"] = torch.stack([sample["ddf"].cpu() for sample in fields], 1)
        if self.samples > 1:
            pred["velocity_sd"] = torch.stack([sample["velocity"] for sample in fields]).std(0)
        return pred


@contextmanager
def _dropout(network: nn.Module, seed: int, device: torch.device) -> Iterator[None]:
    """The network's dropout active and seeded; modes and random numbers are then as before."""
    dropout = [module for module in network.modules() if isinstance(module, nn.Dropout) and module.p]
    if not dropout:
        raise ValueError("samples need a network that was trained with dropout")
    modes = [module.training for module in dropout]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            for module in dropout:
                module.train()
            yield
        finally:
            for module, mode in zip(dropout, modes, strict=True):
                module.train(mode)
