"""Refinement that does not follow what only one image shows: lesions, resections, implants.

Such a place has no counterpart. A registration all the same finds one for it, by squeezing or blowing up what lies
beside it. Two signs tell it: pairs of intensities that are rare in the rest of both images, where they are laid on one
another stiffly; and registrations of one image to the other and back that do not lead back to where they began.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..deformations.base import Deformation
from ..fields import compose, resize_map, warp
from ..losses.registration import common_mask
from .descent import diffused
from .prediction import Masks
from .pyramid import at_level, without_rim
from .refinement import PairwiseOptimizer

logger = logging.getLogger(__name__)

_OBJECT = 0.05  # intensity from which on a voxel is no background
_BINS = 32  # of each intensity in their joint histogram
_RARE_OVER, _APART_OVER = 3.0, 1.5  # voxels, standard deviation of the Gaussians that gather both signs
_BEGINS, _ENDS = 1.6, 2.2  # times the median of both signs where trust begins to fall, and where it ends
_PEAK = 1.9  # times the median, that a place must reach somewhere
_BRIDGE = 3.0  # voxels of the velocity, standard deviation of the Gaussian that bridges a place without trust


@dataclass(frozen=True)
class Trust:
    """How far two images can be trusted to show the same, place by place.

    Args:
        loose: registers the images from zero, coarsely.
        stiff: the same with a much smoother field.
    """

    loose: PairwiseOptimizer
    stiff: PairwiseOptimizer

    def __call__(self, moving: Tensor, fixed: Tensor, masks: Masks | None = None) -> Tensor:
        """From 0 to 1 on the fixed image's grid, (B, 1, *S): 1 where both show the same.

        Args:
            moving, fixed: shape (B, C, *S), in [0, 1].
            masks: as for `PairwiseOptimizer`; landmarks and guides do not count.
        """
        given = {key: value for key, value in (masks or {}).items() if "landmark" not in key and "guide" not in key}
        there, stiff = (self._field(optimizer, moving, fixed, given) for optimizer in (self.loose, self.stiff))
        back = self._field(self.loose, fixed, moving, _swapped(given))
        a, b = warp(moving, stiff).mean(1, keepdim=True), fixed.mean(1, keepdim=True)
        inside = (torch.maximum(a, b) > _OBJECT).float()
        counts = common_mask(stiff, given)
        inside = inside if counts is None else inside * (counts > 0.5)
        apart = compose(back, there).norm(dim=1, keepdim=True)
        signs = (rarity(a, b, inside), _gathered(apart, inside, _APART_OVER))
        sign = (_in_medians(signs[0], inside) * _in_medians(signs[1], inside)).sqrt()
        places = grown(sign > _PEAK, sign > _BEGINS)
        trust = torch.where(places, ((_ENDS - sign) / (_ENDS - _BEGINS)).clamp(0, 1), 1.0)
        return without_rim(without_rim(trust))  # a lesion of the moving image moves a little yet

    @staticmethod
    def _field(optimizer: PairwiseOptimizer, moving: Tensor, fixed: Tensor, masks: Masks) -> Tensor:
        parameters = optimizer(moving, fixed, None, masks)
        return optimizer.deformation(parameters, fixed.shape[2:])["ddf"]


class RobustOptimizer:
    """Refine with what can be trusted: a `PairwiseOptimizer` whose fixed image has its `Trust` as a mask.

    Where there is no trust the start is bridged from around, for a network bends its field about a lesion, too.

    Args:
        optimizer: refines.
        trust: see there; found on the grid of the start.
        bridged: whether the parameters are a field that can be bridged, as velocities and displacements can.
    """

    def __init__(self, optimizer: PairwiseOptimizer, trust: Trust, *, bridged: bool = True) -> None:
        self.optimizer, self.trust, self.bridged = optimizer, trust, bridged

    def __call__(
        self,
        moving: Tensor,
        fixed: Tensor,
        parameters: Tensor | None = None,
        masks: Masks | None = None,
        constants: Mapping[str, Tensor] | None = None,
        deformation: Deformation | None = None,
        finer: int = 1,
    ) -> Tensor:
        """As the optimiser is called."""
        if parameters is not None and not any(self.optimizer.iterations):
            return parameters
        with torch.no_grad():
            level = at_level({"moving": moving, "fixed": fixed, **(masks or {})}, finer)
            given = {key: value for key, value in level.items() if key not in ("moving", "fixed")}
            trust = self.trust(level["moving"], level["fixed"], given)
            logger.info("%.1f %% of the fixed image is not trusted to show the same", 100 * float(1 - trust.mean()))
            start = bridged(parameters, trust) if self.bridged and parameters is not None else parameters
            trust = resize_map(trust, fixed.shape[2:])
            masks = {**(masks or {})}
            masks["mask_fixed"] = trust * masks["mask_fixed"] if "mask_fixed" in masks else trust
        return self.optimizer(moving, fixed, start, masks, constants, deformation, finer)


def rarity(a: Tensor, b: Tensor, inside: Tensor) -> Tensor:
    """How rare the pairs of intensities are around each voxel, in nats, (B, 1, *S).

    That is the logarithm of how many times more often the same intensity of one image goes with the one of the other
    that it mostly goes with; the larger one of both directions, gathered by a Gaussian.

    Args:
        a, b: intensities in [0, 1] of any two contrasts. inside: 1 where they count, else 0; all (B, 1, *S).
    """
    bins = [(image * _BINS).long().clamp(0, _BINS - 1) for image in (a, b)]
    found = torch.zeros_like(a)
    for i, pairs in enumerate(bins[0] * _BINS + bins[1]):
        counts = torch.bincount(pairs.flatten(), inside[i].flatten(), _BINS**2).view(1, 1, _BINS, _BINS)
        table = diffused(counts, [1.0, 1.0])[0, 0].clamp(min=0) + 0.1
        shares = torch.minimum(table / table.amax(0, keepdim=True), table / table.amax(1, keepdim=True))
        found[i] = -shares.log().flatten()[pairs]
    return _gathered(found, inside, _RARE_OVER)


def grown(seeds: Tensor, allowed: Tensor) -> Tensor:
    """The connected parts of what is allowed that hold a seed; all boolean, (B, 1, *S)."""
    found = seeds & allowed
    while True:
        wider = (-without_rim(-found.float()) > 0) & allowed
        if bool((wider == found).all()):
            return found
        found = wider


def bridged(field: Tensor, trust: Tensor) -> Tensor:
    """A field (B, C, *S') that is smoothly filled from around where there is no trust (B, 1, *S).

    Channels beyond those of a vector stay as they are.
    """
    d = field.ndim - 2
    vectors, others = field[:, :d], field[:, d:]
    weights = resize_map(trust, field.shape[2:])
    around = diffused(vectors * weights, [_BRIDGE] * d) / diffused(weights, [_BRIDGE] * d).clamp(min=0.01)
    return torch.cat([weights * vectors + (1 - weights) * around, others], 1)


def _gathered(values: Tensor, inside: Tensor, deviation: float) -> Tensor:
    deviations = [deviation] * (values.ndim - 2)
    return inside * diffused(values * inside, deviations) / diffused(inside, deviations).clamp(min=0.5)


def _in_medians(values: Tensor, inside: Tensor) -> Tensor:
    """Each sample as multiples of its median inside; 0 if there is none."""
    medians = [
        one[where > 0].median() if bool((where > 0).any()) else one.new_zeros(())
        for one, where in zip(values, inside, strict=True)
    ]
    scale = torch.stack(medians).view(-1, *[1] * (values.ndim - 1))
    return torch.where(scale > 0, values / scale.clamp(min=torch.finfo(values.dtype).tiny), 0.0)


def _swapped(masks: Masks) -> dict[str, Tensor]:
    other = {"mask_moving": "mask_fixed", "mask_fixed": "mask_moving"}
    return {other.get(key, key): value for key, value in masks.items()}
