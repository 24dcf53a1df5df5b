"""Mutual information between samples of a fixed image and a moving image under many affine maps at once.

Convention: a map takes a fixed point x to `linear (x - centre) + target`, all world points in RAS millimetres.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..fields import sample, spatial_gradient

_SUPPORT = 4  # bins over which a cubic B-spline spreads a value


@dataclass(frozen=True)
class Maps:
    """Affine maps x -> linear (x - centre) + target: `linear` (B, D, D) and `target` (B, D), float64."""

    linear: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.linear)

    def __getitem__(self, which: Tensor | slice) -> Maps:
        return Maps(self.linear[which], self.target[which])

    def moved(self, generators: Tensor, step: Tensor) -> Maps:
        """The maps followed by small ones: exp(sum of generators) about the target and a shift.

        Args:
            generators: shape (K, D, D). step: shape (B, K + D), the weights of the generators, then the shift in mm.
        """
        count = len(generators)
        turn = torch.linalg.matrix_exp(torch.einsum("bk,kij->bij", step[:, :count], generators))
        return Maps(turn @ self.linear, self.target + step[:, count:])

    def and_turned(self, degrees: float) -> Maps:
        """The maps, and all of them followed by turns about their target, both ways about each axis."""
        d = self.linear.shape[1]
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        turns = [torch.eye(d, dtype=torch.float64)]
        for i, j in itertools.permutations(range(d), 2):
            turns.append(turns[0].clone())
            turns[-1][[i, i, j, j], [i, j, i, j]] = torch.tensor([c, -s, s, c], dtype=torch.float64)
        return Maps(torch.cat([turn @ self.linear for turn in turns]), self.target.repeat(len(turns), 1))

    @classmethod
    def joined(cls, several: Sequence[Maps]) -> Maps:
        """All of them in one batch."""
        return cls(torch.cat([maps.linear for maps in several]), torch.cat([maps.target for maps in several]))

    @classmethod
    def of(cls, matrix: np.ndarray, center: np.ndarray) -> Maps:
        """One map, from a world matrix (D + 1, D + 1)."""
        linear, target = matrix[:-1, :-1], (matrix @ np.append(center, 1))[:-1]
        return cls(torch.from_numpy(linear)[None], torch.from_numpy(target)[None])

    def matrix(self, center: np.ndarray) -> np.ndarray:
        """The first map as a world matrix (D + 1, D + 1)."""
        result = np.eye(len(center) + 1)
        result[:-1, :-1] = linear = self.linear[0].numpy()
        result[:-1, -1] = self.target[0].numpy() - linear @ center
        return result


@dataclass(frozen=True)
class Slopes:
    """How the information of maps (B,) changes with a step (B, P): its gradient and outer products of its summands'."""

    information: Tensor
    gradient: Tensor
    curvature: Tensor


@dataclass(frozen=True)
class MovingScan:
    """What is looked up in a moving image: `channels` (1, D + 2, *S), `voxel_from_world` (D, D + 1).

    The channels are the intensity in bins, the weight of the voxel, and the intensity's gradient, bins per mm.
    """

    channels: Tensor
    voxel_from_world: Tensor

    @classmethod
    def of(cls, bins: Tensor, weights: Tensor, affine: Tensor) -> MovingScan:
        """From intensities in bins (1, *S), weights (1, *S) and the affine (D + 1, D + 1) from voxels to world."""
        inverse = torch.linalg.inv(affine)[:-1]
        d = len(inverse)
        along = torch.einsum("vw,v...->w...", inverse[:, :d].float(), spatial_gradient(bins[None])[0, 0])
        # The channels of a voxel beside one another in memory: looking them up takes half as long.
        beside = {3: torch.channels_last, 4: torch.channels_last_3d}[bins.ndim]
        return cls(torch.cat([bins, weights, along])[None].contiguous(memory_format=beside), inverse)

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bins (B, N), weights (B, N) and gradients (B, D, N) at world points (B, D, N); no weight outside."""
        d, size = points.shape[1], self.channels.shape[2:]
        matrix = self.voxel_from_world.to(points.dtype)
        voxels = torch.einsum("vw,bwn->vbn", matrix[:, :d], points) + matrix[:, d].view(d, 1, 1)
        found = sample(self.channels, voxels.view(1, d, -1, *[1] * (d - 1)), padding="border")
        found = found.view(d + 2, *voxels.shape[1:])
        last = torch.tensor(size, dtype=voxels.dtype).view(d, 1, 1)
        # Full weight up to the outer voxels' centres, none from half a voxel further on.
        inside = (1 + 2 * torch.minimum(voxels, last - 1 - voxels)).clamp(0, 1).amin(0)
        return found[0], found[1] * inside, found[2:].transpose(0, 1)


class SampledInformation:
    """Mutual information of samples of a fixed image with a moving one, per sample, in nats.

    A sample that a map carries out of the moving image counts, but carries no information.

    Args:
        points: shape (D, N), the samples' places relative to the centre, mm.
        bins: shape (N,), the fixed image's bin at each of them, an integer.
        weights: shape (N,).
        moving: where the maps lead to.
        num_bins: of each image.
    References: Mattes et al., PET-CT image registration in the chest using free-form deformations, TMI 2003 (the
        estimate); the outer products stand for second derivatives as in Berndt et al., Estimation and inference in
        nonlinear structural models, 1974.
    """

    def __init__(self, points: Tensor, bins: Tensor, weights: Tensor, moving: MovingScan, num_bins: int) -> None:
        self.points, self.bins, self.weights, self.moving, self.num_bins = points, bins, weights, moving, num_bins
        self.columns = num_bins + _SUPPORT - 1

    def __call__(self, maps: Maps) -> Tensor:
        """Information of each map, shape (B,)."""
        values, weights, _ = self.moving(self._mapped(maps))
        return self._table(values, weights)[0]

    def slopes(self, maps: Maps, generators: Tensor) -> Slopes:
        """Information of each map, and how a step (see `Maps.moved`) changes it."""
        points = self._mapped(maps)
        values, weights, gradients = self.moving(points)
        information, logs, places, weights = self._table(values, weights)
        slope = self._spread(values, derivative=True)
        gathered = [slope[k] * torch.gather(logs, 1, places + k) for k in range(_SUPPORT)]
        change = torch.stack(gathered).sum(0)  # of the summand of each sample with its intensity, (B, N)
        relative = points - maps.target.to(points.dtype)[..., None]
        turned = torch.einsum("bin,kij,bjn->bkn", gradients, generators.to(points.dtype), relative)
        each = torch.cat([turned, gradients], 1) * change[:, None]
        weighted = each * weights[:, None]
        return Slopes(information, weighted.sum(2).double(), (weighted @ each.transpose(1, 2)).double())

    def _mapped(self, maps: Maps) -> Tensor:
        return maps.linear.to(self.points.dtype) @ self.points + maps.target.to(self.points.dtype)[..., None]

    def _spread(self, values: Tensor, *, derivative: bool = False) -> list[Tensor]:
        """Cubic B-spline weights of the four bins around each value, or their derivatives."""
        t = values - values.floor()
        if derivative:
            return [-((1 - t) ** 2) / 2, (3 * t * t - 4 * t) / 2, (-3 * t * t + 2 * t + 1) / 2, t * t / 2]
        cube = t**3
        return [(1 - t) ** 3 / 6, (3 * cube - 6 * t * t + 4) / 6, (-3 * cube + 3 * t * t + 3 * t + 1) / 6, cube / 6]

    def _table(self, values: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Information (B,), log p(f, m) / p(m) as a table (B, F * M), first entry of each sample, weights (B, N)."""
        weights = self.weights * inside / self.weights.sum()
        places = self.bins * self.columns + values.floor().long()
        joint = values.new_zeros(len(values), self.num_bins * self.columns)
        for k, spread in enumerate(self._spread(values)):
            joint.scatter_add_(1, places + k, spread * weights)
        total = joint.sum(1, keepdim=True).clamp_min(1e-6)
        table = (joint / total).view(-1, self.num_bins, self.columns)
        rows, columns = table.sum(2, keepdim=True), table.sum(1, keepdim=True)
        tiny = torch.finfo(table.dtype).tiny
        logs = (table.clamp_min(tiny) / columns.clamp_min(tiny)).log()
        information = (table * (logs - rows.clamp_min(tiny).log())).sum((1, 2)) * total[:, 0]
        # An empty bin says nothing of which way to go.
        logs = torch.where(table > 1e-9, logs, logs.new_tensor(-20.0))
        return information, logs.flatten(1), places, weights
