"""Training-time inference of affine networks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...fields import plain, warp
from ...inference.multistep import both_ways, split_ways
from ...inference.registration import Deformation, RegistrationInferer, seconds_per_pair


class AffineInferer(RegistrationInferer):
    """A `RegistrationInferer` for affine networks (`networks.affine_keypoints.MultiStepAffine`), for their training.

    Beside the fields of `AffineMap` there are "keypoints", of the fixed and of the moving image, if they are
    asked for, and with `symmetric` "back", the same for the swapped pair.

    Args:
        deformation: `deformations.affine.AffineMap`.
        keypoints: of a network that has them; those of the first step.
        symmetric: also register the other way round, in one batch with the pairs.
        **options: of `RegistrationInferer`; no samples, no refinement.
    Raises:
        ValueError: if samples or a refinement are asked for.
    """

    def __init__(
        self, deformation: Deformation, *, keypoints: bool = False, symmetric: bool = False, **options: Any
    ) -> None:
        super().__init__(deformation, **options)
        if self.samples or self.refinement is not None:
            raise ValueError("affine maps have no samples and no refinement")
        self.keypoints, self.symmetric = keypoints, symmetric

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        image, start = plain(inputs), time.perf_counter()
        moving, fixed = both_ways(image) if self.symmetric else image.chunk(2, 1)
        pair = torch.cat([moving, fixed], 1)
        found = self._ask(pair, network, located=True) if self.keypoints else (self._ask(pair, network),)
        fields = self.deformation(found[0].float(), image.shape[2:], inverse=self.inverse)
        ways = split_ways({**fields, "warped": warp(moving, fields["ddf"])}, len(image))
        pred: dict[str, Any] = {**ways[0], "seconds": seconds_per_pair(image, start)}
        if self.symmetric:
            pred["back"] = ways[1]
        if self.keypoints:
            pred["keypoints"] = [points[: len(image)] for points in found[1:]]
        return pred
