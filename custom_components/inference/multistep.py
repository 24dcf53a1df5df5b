"""One network applied several times in a row, its maps composed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..deformations.affine import AffineMap
from ..fields import compose, plain, warp
from .registration import Deformation, RegistrationInferer, seconds_per_pair


class MultiStepInferer(RegistrationInferer):
    """A `RegistrationInferer` that applies one network several times in a row (AVSM).

    Each step sees the moving image as the map so far warps it. That is always the original image, warped once: the
    fields are composed, `phi <- phi o phi_step`. A refinement starts from the network's answer if that is all there is,
    a single step; else it is one more step, optimised from zero.

    Beside the fields of the whole, without the parameters of a single step, there are "steps": for each, a dictionary
    with the step's own fields (its momentum and energy) and "ddf", "inverse_ddf" and "warped" of the map so far. A
    metric's "sigma" is that of the first step, on the moving image. With
    `affine`, "affine" holds "matrix" and "warped" of the affine map that comes first. With `symmetric`, "back" holds
    the same for the swapped pair.

    Args:
        deformation: see `RegistrationInferer`.
        num_steps: at least 1.
        symmetric: also register the other way round, in one batch with the pairs.
        affine: start from the answer of the network's part "affine" (`methods.avsm.networks.AffineMomentumNetwork`).
        **options: of `RegistrationInferer`; no samples.
    Raises:
        ValueError: for less than one step, or samples.
    References: Shen et al., Networks for joint affine and non-parametric image registration, CVPR 2019.
    """

    def __init__(
        self,
        deformation: Deformation,
        *,
        num_steps: int = 1,
        symmetric: bool = False,
        affine: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(deformation, **options)
        if num_steps < 1 or self.samples:
            raise ValueError(f"expected at least one step and no samples, got {num_steps} and {self.samples}")
        self.num_steps, self.symmetric, self.affine = num_steps, symmetric, affine

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor],
        *args: Any,
        masks: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        image, start = plain(inputs), time.perf_counter()
        moving, fixed = both_ways(image) if self.symmetric else image.chunk(2, 1)
        so_far: dict[str, Tensor] = {"warped": moving}
        first: dict[str, Tensor] = {}
        if self.affine:
            matrix = self._run(torch.cat([moving, fixed], 1), network, part="affine")
            so_far = AffineMap()(matrix, image.shape[2:], inverse=self.inverse)
            so_far["warped"] = warp(moving, so_far["ddf"])
            first = {key: so_far[key] for key in ("matrix", "warped")}
        steps: list[dict[str, Tensor]] = []
        single = self.refinement is not None and self.num_steps == 1 and not self.affine
        for _ in range(self.num_steps):
            parameters = self._run(torch.cat([so_far["warped"], fixed], 1), network, *args, **kwargs)
            if single and self.refinement is not None:
                parameters = self.refinement(moving, fixed, parameters, masks, constants=kwargs)
            so_far = self._compose(moving, parameters, so_far)
            steps.append(so_far)
        if self.refinement is not None and not single:
            # Masks would have to move along with the image; the fixed one stays where it is.
            kept = {key: value for key, value in (masks or {}).items() if key == "mask_fixed"}
            parameters = self.refinement(so_far["warped"], fixed, None, kept, constants=kwargs)
            steps.append(self._compose(moving, parameters, so_far))
        ways: list[dict[str, Any]] = []
        for each in zip(*(split_ways(step, len(image)) for step in steps), strict=True):
            whole = {key: each[-1][key] for key in ("ddf", "inverse_ddf", "warped") if key in each[-1]}
            if "sigma" in each[0]:
                whole["sigma"] = each[0]["sigma"]
            ways.append({**whole, "steps": list(each)})
        for way, part in zip(ways, split_ways(first, len(image)), strict=False):
            if part:
                way["affine"] = part
        pred = {**ways[0], "seconds": seconds_per_pair(image, start)}
        return {**pred, "back": ways[1]} if self.symmetric else pred

    def _compose(self, moving: Tensor, parameters: Tensor, before: dict[str, Tensor]) -> dict[str, Tensor]:
        step = self.deformation(parameters, moving.shape[2:], inverse=self.inverse)
        if "ddf" in before:
            step["ddf"] = compose(before["ddf"], step["ddf"])
            if self.inverse:
                step["inverse_ddf"] = compose(step["inverse_ddf"], before["inverse_ddf"])
        step["warped"] = warp(moving, step["ddf"])
        return step


def both_ways(image: Tensor) -> tuple[Tensor, Tensor]:
    """Moving and fixed images of the pairs, then of the swapped pairs."""
    moving, fixed = image.chunk(2, 1)
    return torch.cat([moving, fixed]), torch.cat([fixed, moving])


def split_ways(fields: dict[str, Tensor], batch: int) -> list[dict[str, Tensor]]:
    """The fields of the pairs and, where they are there, of the swapped pairs."""
    total = max((len(value) for value in fields.values()), default=batch)
    return [{key: value[i : i + batch] for key, value in fields.items()} for i in range(0, total, batch)]
