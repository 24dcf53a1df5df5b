"""Symmetric demons in the log domain: a velocity follows the difference of two images, both ways at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..deformations.base import Fields
from ..deformations.kernels import Spacing, per_axis
from ..fields import per_channel, resize_field, spatial_gradient, warp
from ..losses.multistep import swapped
from ..losses.registration import common_mask
from .descent import diffused, voxels_per_node
from .level import Evaluation
from .pyramid import without_rim


@dataclass(frozen=True)
class LogDemons:
    """The steps of symmetric log-domain demons, for a `PairwiseOptimizer` of a stationary velocity.

    With phi = exp(v), W = moving o phi, difference r = fixed - W and the mean slope g of both images, a voxel moves by

        u = r g / (|g|^2 + r^2 / longest^2),    |u| <= longest / 2.

    u is smoothed and joins the velocity by the Baker-Campbell-Hausdorff formula, v + u + [v, u] / 2; the sum is
    smoothed. The same is done with the images exchanged and -v, and half the difference of both is the new velocity.
    Therefore exchanging the images turns the velocity round. Images must be of the same contrast.

    Lengths are in voxels of the level, of its shortest edge if edges differ.

    Args:
        longest: twice the length that no voxel's move exceeds.
        fluid: standard deviation of the Gaussian that smooths the moves.
        diffusion: standard deviation of the Gaussian that smooths the velocity after each step.
        spacing: of the voxels, one number or one for each axis; only their proportions count.
    References: Vercauteren et al., MICCAI 2008 (log domain, symmetric). The force is that of Vercauteren et al.,
        MICCAI 2007, with a noise level of |r| at each voxel. The smoothing is by diffusion through closed borders.
    """

    longest: float = 2.0
    fluid: float = 1.0
    diffusion: float = 1.0
    spacing: Spacing = 1.0

    def __call__(self, evaluation: Evaluation, iterations: int) -> Callable[[], Tensor]:
        batch = evaluation.batch
        if "mask_fixed" in batch:
            # The level has done so with the moving image's: both are warped here.
            batch = {**batch, "mask_fixed": without_rim(batch["mask_fixed"])}
        return lambda: self.step(evaluation, batch)

    @torch.no_grad()
    def step(self, evaluation: Evaluation, batch: dict[str, Tensor]) -> Tensor:
        """One iteration on a level's batch; returns the loss before it, the mean of both directions."""
        velocity = evaluation.unknown
        fields = evaluation.deformation(velocity.detach(), evaluation.size, inverse=True)
        there, loss = self._moved(evaluation, fields["ddf"], batch)
        back, loss_back = self._moved(evaluation, fields["inverse_ddf"], swapped(batch))
        new = (self._joined(velocity, there, evaluation) - self._joined(-velocity, back, evaluation)) / 2
        mean = (loss + loss_back) / 2
        loss = evaluation.record(mean * evaluation.voxels, velocity - new, mean)
        velocity.copy_(new)
        return loss

    def _moved(self, evaluation: Evaluation, ddf: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The smoothed moves (B, D, *S) in voxels for a displacement, and the loss."""
        warped, fixed = warp(batch["moving"], ddf), batch["fixed"]
        fields: Fields = {"ddf": ddf, "warped": warped}
        edges = relative(self.spacing, ddf)
        move = force(warped, fixed, self.longest, per_channel(edges, ddf))
        counts = common_mask(ddf, batch)
        move = move if counts is None else move * counts
        return diffused(move, [self.fluid / h for h in edges]), evaluation.objective(fields, batch)

    def _joined(self, velocity: Tensor, move: Tensor, evaluation: Evaluation) -> Tensor:
        """The smoothed velocity of exp(velocity) o exp(move), on the velocity's grid."""
        nodes = velocity.shape[2:]
        move = resize_field(move, nodes)
        total = velocity + move + bracket(velocity, move) / 2
        edges = relative(self.spacing, velocity)
        widths = zip(edges, voxels_per_node(evaluation.size, nodes), strict=True)
        return diffused(total, [self.diffusion / (h * n) for h, n in widths])


def force(warped: Tensor, fixed: Tensor, longest: float, edges: Tensor | float = 1.0) -> Tensor:
    """Where each voxel should look for its intensity, (B, D, *S) in voxels: see `LogDemons`.

    Args:
        warped, fixed: shape (B, C, *S); several channels pull together.
        longest: twice the length that no move exceeds.
        edges: of the voxels, (1, D, 1, ...), in the unit of `longest`.
    """
    difference = (fixed - warped).unsqueeze(2)
    slope = (spatial_gradient(warped) + spatial_gradient(fixed)) / (2 * edges)
    strength = slope.square().sum((1, 2)) + difference.square().sum((1, 2)) / longest**2
    tiny = torch.finfo(strength.dtype).tiny
    return (difference * slope).sum(1) / strength.clamp(min=tiny).unsqueeze(1) / edges


def bracket(first: Tensor, second: Tensor) -> Tensor:
    """[v, w] = (Dv) w - (Dw) v of two fields (B, D, *S), so that exp(v) o exp(w) is about exp(v + w + [v, w] / 2).

    Convention: with maps composed as functions the sign is opposite to that of the bracket of derivations.
    """
    along = (spatial_gradient(first) * second.unsqueeze(1)).sum(2)
    return along - (spatial_gradient(second) * first.unsqueeze(1)).sum(2)


def relative(spacing: Spacing, field: Tensor) -> list[float]:
    """Edges of the voxels of a field (B, D, *S), in units of the shortest."""
    edges = per_axis(spacing, field.ndim - 2)
    return [h / min(edges) for h in edges]
