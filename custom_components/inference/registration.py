"""From a pair of images to fields and the warped image: network + deformation + warp."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from ..deformations import base
from ..fields import plain, warp

Deformation = Callable[..., dict[str, Tensor]]


Refinement = Callable[..., Tensor]


class RegistrationInferer(Inferer):
    """Run a registration network on a pair and apply its deformation.

    Called as `inferer(image, network)`, with `image` (B, 2C, *S): moving, then fixed. Returns the deformation's fields
    and "warped" (B, C, *S), the moving image pulled back onto the fixed grid; "seconds" (B,) is the time a pair took,
    without the samples.
    With `samples`, also "ddf_samples" (B, K, D, *S), displacements of samples of the velocity, and "velocity_sd"
    (B, D, *S'), its standard deviation in voxels of its own grid.

    Args:
        deformation: turns the network's output into fields; for training a probabilistic model, its `draw`.
        inverse: also make the inverse field.
        refinement: pairwise optimisation `refinement(moving, fixed, parameters, masks, constants=...)` that improves
            the parameters; the constants are the network's own keyword arguments ("hyper").
        precision: "float32", or "bfloat16" or "float16" to run the network (not the fields) under autocast. On CPUs
            with bfloat16 units this is faster (docs/benchmarks.md); float16 training needs the trainer's `amp=True`.
        samples: number K of samples to draw of a probabilistic deformation.
        seed: of the samples, for each batch anew: a pair gives the same in any list. The noise is drawn on the CPU, so
            that equal seeds give equal samples on any device; the samples' displacements are kept there, too.
    Raises:
        ValueError: if the precision is unknown, or samples are wanted of a deformation that has no uncertainty.
    """

    def __init__(
        self,
        deformation: Deformation,
        inverse: bool = False,
        refinement: Refinement | None = None,
        precision: str = "float32",
        samples: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if precision not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"expected precision float32, bfloat16 or float16, got {precision!r}")
        self.deformation, self.inverse, self.refinement = deformation, inverse, refinement
        is_random = isinstance(deformation, base.Deformation) and deformation.is_random
        if samples < 0 or (samples and not is_random):
            raise ValueError(
                f"expected samples of a deformation that has uncertainty, got {samples} samples of "
                f"{type(deformation).__name__}"
            )
        self.precision, self.samples, self.seed = precision, samples, seed

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor],
        *args: Any,
        masks: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        image = plain(inputs)
        if image.shape[1] % 2:
            raise ValueError(f"expected moving and fixed with equal channels, got {image.shape[1]} channels in all")
        start = time.perf_counter()
        parameters = self.predict(image, network, *args, **kwargs)
        pred = self._register(image, parameters, start, masks, kwargs)
        if self.samples:
            pred |= self._sample(pred["posterior"], image.shape[2:])
        return pred

    def _register(
        self,
        image: Tensor,
        parameters: Tensor,
        start: float,
        masks: dict[str, Tensor] | None,
        constants: dict[str, Any],
        deformation: Deformation | None = None,
    ) -> dict[str, Any]:
        """Refinement, fields, warped image, and the seconds since the start; a pair can have a deformation of its
        own."""
        moving, fixed = image.chunk(2, 1)
        if self.refinement is not None:
            own = {} if deformation is None else {"deformation": deformation}
            parameters = self.refinement(moving, fixed, parameters, masks, constants=constants, **own)
        pred = (deformation or self.deformation)(parameters, image.shape[2:], inverse=self.inverse)
        pred["warped"] = warp(moving, pred["ddf"])
        pred["seconds"] = seconds_per_pair(image, start)
        return pred

    def predict(self, image: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The deformation's parameters for pairs (B, 2C, *S), before refinement."""
        parameters = self._run(image, network, *args, **kwargs)
        if self.samples and parameters.shape[1] != 2 * (image.ndim - 2):
            raise ValueError("samples need a network that predicts a log variance; this one gives a velocity alone")
        return parameters

    def _run(self, image: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The network's output, computed in the wanted precision."""
        return self._ask(image, network, *args, **kwargs).float().contiguous()

    def _ask(self, image: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the network answers in the wanted precision, as it comes."""
        layout = torch.channels_last_3d if image.ndim == 5 else torch.channels_last
        dtype = getattr(torch, self.precision)
        with torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
            return network(image.contiguous(memory_format=layout), *args, **kwargs)

    def _sample(self, parameters: Tensor, size: torch.Size) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        deformation: Any = self.deformation
        samples = torch.empty(len(parameters), self.samples, len(size), *size)
        for i in range(self.samples):
            samples[:, i] = deformation.draw(parameters, size, generator=generator)["ddf"]
        return {"ddf_samples": samples, "velocity_sd": deformation.velocity_sd(parameters)}


def seconds_per_pair(image: Tensor, start: float) -> Tensor:
    """Time a pair of the batch took, (B,)."""
    if image.is_cuda and not torch.is_grad_enabled():
        torch.cuda.synchronize()
    return torch.full((image.shape[0],), (time.perf_counter() - start) / image.shape[0])
