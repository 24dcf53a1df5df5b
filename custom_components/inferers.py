"""From a pair of images to fields and the warped image: network + deformation + warp."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from .fields import warp

Deformation = Callable[..., dict[str, Tensor]]
Refinement = Callable[..., Tensor]


class RegistrationInferer(Inferer):
    """Run a registration network on a pair and apply its deformation.

    Called as `inferer(image, network)`, with `image` (B, 2C, *S): moving, then fixed. Returns the deformation's fields
    and "warped" (B, C, *S), the moving image pulled back onto the fixed grid; "seconds" (B,) is the time a pair took.

    Args:
        deformation: turns the network's output into fields.
        inverse: also make the inverse field.
        refinement: pairwise optimisation `refinement(moving, fixed, parameters, masks)` that improves the parameters.
        precision: "float32", or "bfloat16" or "float16" to run the network (not the fields) under autocast. On CPUs
            with bfloat16 units this is faster (docs/benchmarks.md); float16 training needs the trainer's `amp=True`.
    """

    def __init__(
        self,
        deformation: Deformation,
        inverse: bool = False,
        refinement: Refinement | None = None,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        if precision not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"expected precision float32, bfloat16 or float16, got {precision!r}")
        self.deformation, self.inverse, self.refinement = deformation, inverse, refinement
        self.precision = precision

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor],
        *args: Any,
        masks: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        image = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        if image.shape[1] % 2:
            raise ValueError(f"expected moving and fixed with equal channels, got {image.shape[1]} channels in all")
        start = time.perf_counter()
        moving, fixed = image.chunk(2, 1)
        layout = torch.channels_last_3d if image.ndim == 5 else torch.channels_last
        dtype = getattr(torch, self.precision)
        with torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
            parameters = network(image.contiguous(memory_format=layout), *args, **kwargs)
        parameters = parameters.float().contiguous()
        if self.refinement is not None:
            parameters = self.refinement(moving, fixed, parameters, masks)
        pred = self.deformation(parameters, image.shape[2:], inverse=self.inverse)
        pred["warped"] = warp(moving, pred["ddf"])
        if image.is_cuda and not torch.is_grad_enabled():
            torch.cuda.synchronize()
        pred["seconds"] = torch.full((image.shape[0],), (time.perf_counter() - start) / image.shape[0])
        return pred
