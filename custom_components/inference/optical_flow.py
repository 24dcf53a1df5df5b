"""Optical flow of the Horn-Schunck type: a displacement is solved for, warp after warp."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..deformations.kernels import Spacing
from ..fields import per_channel, resize_field, spatial_gradient, warp
from ..losses.registration import common_mask
from .demons import relative
from .descent import diffused
from .level import Evaluation


@dataclass(frozen=True)
class HornSchunck:
    """The steps of optical flow, for a `PairwiseOptimizer` of a displacement.

    One step is one warp: around the present displacement u, with W = moving o (id + u), the increment du minimises

        sum over voxels of (g . du + W - fixed)^2 + alpha^2 |grad (u + du)|^2

    with g the mean slope of W and the fixed image. It is the whole displacement that is smooth, not each increment.
    Fixed-point iterations do it: du <- m - g (g . m + W - fixed) / (alpha^2 + |g|^2), with m the mean of u + du over
    the neighbours less u. Images must be of the same contrast. The map may fold.

    Lengths are in voxels of the level, of its shortest edge if edges differ.

    Args:
        alpha: weight of smoothness: a slope, in intensities (0 to 1) a voxel, below which images have no say.
        iterations: of each warp.
        smoothing: standard deviation of the Gaussian that smooths both images before slopes and differences are taken.
        spacing: of the voxels, one number or one for each axis; only their proportions count.
    References: Horn and Schunck, Artificial Intelligence 17, 1981. The neighbours' weights are theirs in 2-D, 1/6 and
        1/12, as parts of a separable mean, which has them in 3-D, too.
    """

    alpha: float = 0.1
    iterations: int = 20
    smoothing: float = 1.0
    spacing: Spacing = 1.0

    def __call__(self, evaluation: Evaluation, iterations: int) -> Callable[[], Tensor]:
        return lambda: self.step(evaluation)

    @torch.no_grad()
    def step(self, evaluation: Evaluation) -> Tensor:
        """One warp; returns the loss before it."""
        nodes, batch = evaluation.unknown, evaluation.batch
        fields = evaluation.deformation(nodes.detach(), evaluation.size)
        ddf = fields["ddf"]
        fields["warped"] = warped = warp(batch["moving"], ddf)
        mean = evaluation.objective(fields, batch)
        edges = relative(self.spacing, ddf)
        widths = [self.smoothing / h for h in edges]
        counts = common_mask(ddf, batch)
        new = ddf + self.increment(diffused(warped, widths), diffused(batch["fixed"], widths), ddf, counts)
        new = resize_field(new, nodes.shape[2:])
        loss = evaluation.record(mean * evaluation.voxels, nodes - new, mean)
        nodes.copy_(new)
        return loss

    def increment(self, warped: Tensor, fixed: Tensor, ddf: Tensor, counts: Tensor | None = None) -> Tensor:
        """The solution of one warp, (B, D, *S) in voxels.

        Args:
            warped, fixed: shape (B, C, *S), as smooth as they shall be; several channels pull together.
            ddf: the displacement so far, (B, D, *S), voxels.
            counts: where the images have a say, (B, 1, *S).
        """
        sides = relative(self.spacing, ddf)
        edges, shares = per_channel(sides, ddf), [0.25 / h**2 for h in sides]
        slope = (spatial_gradient(warped) + spatial_gradient(fixed)) / (2 * edges)
        difference = warped - fixed
        if counts is not None:
            slope, difference = slope * counts.sqrt().unsqueeze(1), difference * counts.sqrt()
        inverse = _inverse(slope, self.alpha**2)
        pull = (difference.unsqueeze(2) * slope).sum(1)
        total = start = ddf * edges
        for _ in range(self.iterations):
            near = self.alpha**2 * (neighbours(total, shares) - start) - pull
            total = start + (inverse * near.unsqueeze(1)).sum(2)
        return (total - start) / edges


def _inverse(slope: Tensor, least: float) -> Tensor:
    """Of least I + the sum over channels of g g^T, for slopes (B, C, D, *S): (B, D, D, *S), by rank-one updates."""
    d = slope.shape[2]
    unit = torch.eye(d, dtype=slope.dtype, device=slope.device).view(1, d, d, *[1] * d) / least
    inverse = unit.expand(slope.shape[0], d, d, *slope.shape[3:])
    for g in slope.unbind(1):
        column = (inverse * g.unsqueeze(1)).sum(2)
        outer = column.unsqueeze(1) * column.unsqueeze(2)
        inverse = inverse - outer / (1 + (column * g).sum(1, keepdim=True)).unsqueeze(1)
    return inverse


def neighbours(field: Tensor, shares: list[float]) -> Tensor:
    """The weighted mean of the voxels around each one, without itself; beyond the border the border goes on.

    Args:
        field: shape (B, C, *S).
        shares: weight of either neighbour along each axis, 1/4 or less; the rest is the voxel's own.
    """
    total, own = field, 1.0
    for axis, share in enumerate(shares, start=2):
        n = total.shape[axis]
        ahead = torch.cat([total.narrow(axis, 1, n - 1), total.narrow(axis, n - 1, 1)], axis)
        behind = torch.cat([total.narrow(axis, 0, 1), total.narrow(axis, 0, n - 1)], axis)
        total = torch.lerp(total, (ahead + behind) / 2, 2 * share)
        own *= 1 - 2 * share
    return (total - own * field) / (1 - own)
