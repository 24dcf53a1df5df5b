"""One network applied several times in a row, its maps composed."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from monai.inferers import Inferer
from torch import Tensor

from ..deformations.base import Deformation
from ..networks.parallel import unwrap
from ..networks.zero import ZeroField
from ..vocabulary import Result
from .maps import Map
from .prediction import Masks, Network, OptimizingPredictor, Predictor, Refinement
from .registration import RegistrationInferer, as_pair, seconds_per_pair


class MultiStepInferer(Inferer):
    """Register a pair in several steps with one network, phi <- phi o phi_step (AVSM).

    Each step sees the moving image, and its mask, as the map so far warps them: always the original, warped once.

    A refinement is one more step, optimised from zero. If the network's answer is all there is, a single step, the
    refinement starts from that answer instead. Without a network (`ZeroField`) there is nothing to repeat: one step is
    optimised.

    Returns "ddf", "warped", "seconds" and, if asked for, "inverse_ddf" of the whole map; and "steps": for each step a
    dictionary of its own fields (its momentum, its energy), in which "ddf", "inverse_ddf" and "warped" are those of the
    map so far.

    Args:
        deformation: of each step.
        predict: a step's parameters, see `RegistrationInferer`.
        num_steps: at least 1.
        affine: an inferer with the deformation `AffineMap` that comes first; "affine" then holds its "matrix" and
            "warped".
        refinement: see above.
        inverse: also make the inverse field; `affine` has to make its own.
        from_first: fields of the first step that the result holds too, where the step has them.
    Raises:
        ValueError: for less than one step.
    References: Shen et al., Networks for joint affine and non-parametric image registration, CVPR 2019.
    """

    def __init__(
        self,
        deformation: Deformation,
        predict: Predictor | None = None,
        *,
        num_steps: int = 1,
        affine: Inferer | None = None,
        refinement: Refinement | None = None,
        inverse: bool = False,
        from_first: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"expected at least one step, got {num_steps}")
        self.num_steps, self.affine, self.from_first = num_steps, affine, tuple(from_first)
        self.step = RegistrationInferer(deformation, predict, inverse=inverse)
        self.single = RegistrationInferer(deformation, predict, inverse=inverse, refinement=refinement)
        self.last: list[Inferer] = []
        if refinement is not None:
            self.last = [RegistrationInferer(deformation, OptimizingPredictor(refinement), inverse=inverse)]

    def __call__(self, inputs: Tensor, network: Network, *, masks: Masks | None = None, **options: object) -> Result:
        """As `RegistrationInferer`; `affine` gets no options."""
        image, start = as_pair(inputs), time.perf_counter()
        moving, fixed = image.chunk(2, 1)
        warped = moving
        so_far: Map | None = None
        result: Result = {}
        if self.affine is not None:
            first = self.affine(image, network)
            so_far, warped = Map.of(first), first["warped"]
            result["affine"] = {key: first[key] for key in ("matrix", "warped")}
        steps: list[Result] = []
        for inferer in self._inferers(network):
            pair = torch.cat([warped, fixed], 1)
            fields = inferer(pair, network, masks=_warped(masks, so_far), **options)
            del fields["seconds"]
            so_far = Map.of(fields) if so_far is None else so_far @ Map.of(fields)
            warped = so_far.warp(moving)
            steps.append({**fields, **so_far.fields(), "warped": warped})
        result |= {key: steps[0][key] for key in self.from_first if key in steps[0]}
        result |= {key: steps[-1][key] for key in ("ddf", "inverse_ddf", "warped") if key in steps[-1]}
        return {**result, "steps": steps, "seconds": seconds_per_pair(image, start)}

    def _inferers(self, network: Network) -> list[Inferer]:
        """One for each step."""
        num_steps = 1 if isinstance(unwrap(network), ZeroField) else self.num_steps
        if num_steps == 1 and self.affine is None:
            return [self.single]
        return [self.step] * num_steps + self.last


def _warped(masks: Masks | None, so_far: Map | None) -> Masks | None:
    """The masks of the pair that a step sees: the moving one goes along with its image."""
    if masks is None or so_far is None or "mask_moving" not in masks:
        return masks
    return {**masks, "mask_moving": so_far.warp(masks["mask_moving"], mode="nearest")}
