"""Momenta predicted in patches, and their correction."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...fields import plain, warp
from ...inference.registration import RegistrationInferer
from .patches import predict_in_patches


class PatchInferer(RegistrationInferer):
    """Run a network on patches alone, for its training: {"prediction": the output}."""

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {"prediction": self._run(plain(inputs), network)}


class PatchMomentumInferer(RegistrationInferer):
    """A `RegistrationInferer` for networks that predict momenta in patches (Quicksilver).

    The patches' answers are averaged where they overlap. For a correction network, the fixed image is pulled back to
    moving space by the predicted map, and the correction, from the moving image and that one, is added: m = m_P + m_C.
    It is `correction`, or, while it is trained, the network of the call that comes after `predictor`.

    With `samples`, the network's dropout is active: the momentum is the mean of so many predictions, "ddf_samples" are
    the displacements of each, "velocity_sd" the standard deviation of their velocities.

    Args:
        deformation: `VectorMomentum`, its stride that of the network.
        correction: a network that corrects the predictions of the call's network, or None.
        predictor: a network whose predictions the call's network corrects, or None.
        patch, step, background: see `patches.predict_in_patches`.
        batch_size: patches at a time.
        samples, seed: see above; the dropout is seeded for each batch anew, on the device of the images.
        **options: of `RegistrationInferer`.
    Raises:
        ValueError: if samples are wanted of a network without dropout or together with a correction, or the correction
            is another network's.
    """

    def __init__(
        self,
        deformation: Any,
        *,
        correction: Any | None = None,
        predictor: Any | None = None,
        patch: int = 15,
        step: int = 14,
        background: float = 0.02,
        batch_size: int = 64,
        samples: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(deformation, **options)
        if samples < 0:
            raise ValueError(f"expected a number of samples of at least 0, got {samples}")
        if samples and correction is not None:
            raise ValueError("samples are drawn of the prediction alone: leave the correction out (correction: none)")
        self.deformation: Any = deformation
        self.num_samples, self.correction, self.predictor = samples, correction, predictor
        self.patches: dict[str, Any] = {
            "patch": patch,
            "step": step,
            "background": background,
            "batch_size": batch_size,
        }

    def __call__(
        self,
        inputs: Tensor,
        network: Any,
        *args: Any,
        masks: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if not self.num_samples:
            return super().__call__(inputs, network, *args, masks=masks, **kwargs)
        image, start = plain(inputs), time.perf_counter()
        momenta = self._draw(image, network)
        pred = self._register(image, momenta.mean(0), start, masks, kwargs)
        samples = [self.deformation(momentum, image.shape[2:]) for momentum in momenta]
        pred["ddf_samples"] = torch.stack([sample["ddf"].cpu() for sample in samples], 1)
        if self.num_samples > 1:
            pred["velocity_sd"] = torch.stack([sample["velocity"] for sample in samples]).std(0)
        return pred

    def predict(self, image: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The momentum (B, D, *S') of pairs, before refinement."""
        inner = getattr(network, "module", network)  # of a distributed training
        if self.correction is not None and hasattr(inner, "digest") and self.correction.corrects != inner.digest():
            raise ValueError("the correction belongs to other weights: train one for these, or leave it out (none)")
        image, momentum = self.before(image)
        momentum = momentum + self._in_patches(image, network)
        if self.correction is not None:
            momentum = momentum + self._in_patches(self.pull_back(image, momentum), self.correction)
        return momentum

    def before(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What the call's network gets to see, and the momentum that is there already: that of the predictor."""
        if self.predictor is None:
            return image, image.new_zeros(())
        momentum = self._in_patches(image, self.predictor)
        return self.pull_back(image, momentum), momentum

    def pull_back(self, image: Tensor, momentum: Tensor) -> Tensor:
        """The pairs with their fixed images brought to moving space by the inverse map."""
        moving, fixed = image.chunk(2, 1)
        inverse = self.deformation(momentum, image.shape[2:], inverse=True)["inverse_ddf"]
        return torch.cat([moving, warp(fixed, inverse)], 1)

    def _in_patches(self, image: Tensor, network: Any) -> Tensor:
        # Without the wrapper of a distributed training, which would wait for the others at each run.
        run = partial(self._run, network=getattr(network, "module", network))
        return predict_in_patches(image, run, image.ndim - 2, stride=self.deformation.stride, **self.patches)

    def _draw(self, image: Tensor, network: Any) -> Tensor:
        """Momenta (K, B, D, *S') with the network's dropout active."""
        dropout = [m for m in network.modules() if isinstance(m, torch.nn.Dropout) and m.p]
        if not dropout:
            raise ValueError("samples need a network that was trained with dropout")
        modes = [module.training for module in dropout]
        with torch.random.fork_rng(devices=[image.device] if image.is_cuda else []):
            torch.manual_seed(self.seed)
            try:
                for module in dropout:
                    module.train()
                return torch.stack([self._in_patches(image, network) for _ in range(self.num_samples)])
            finally:
                for module, mode in zip(dropout, modes, strict=True):
                    module.train(mode)
