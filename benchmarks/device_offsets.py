"""Pairs of one anatomy in two renderings, moved against one another by known offsets, made on a device.

The fixed image shows the anatomy at P x and the moving one at P (x + u(x)), with a random pose P and u(x) = T x - x +
a smooth elastic part. Both are looked up in the label map by nearest neighbour at twice the resolution of the images,
so that no image is interpolated and |u| is known everywhere.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.device_synthesis import LINEAR, DevicePairs
from custom_components.affine import rotation_matrix
from custom_components.methods.learned_similarity.offsets import draw_tre, offsets_of

RADIUS_MM = 60.0  # of the ball whose points' error is the TRE

TURN_DEGREES, SHIFT_MM, SCALE = 15.0, 10.0, 0.1  # of the pose


@dataclass(frozen=True)
class Offsets:
    """How the images of a batch lie.

    Attributes:
        rigid: (B, D, D + 1), about the grid's centre, mm.
        elastic: (B,), standard deviation of the elastic part, mm.
        spacing: of the images, mm.
    """

    rigid: Tensor
    elastic: Tensor
    spacing: float


def wide(count: int, largest_mm: float, spacing: float, device: torch.device, d: int = 3) -> Offsets:
    """Rigid offsets, uniform in TRE: see `draw_tre`."""
    rigid = offsets_of(draw_tre(count, largest_mm, device), RADIUS_MM, d)
    return Offsets(rigid, torch.zeros(count, device=device), spacing)


def narrow(count: int, spacing: float, device: torch.device, d: int = 3) -> Offsets:
    """Half of the pairs aligned within a quarter of a voxel; the others off by 0.7 to 12 voxels, half elastically."""
    chance, other, size = torch.rand(3, count, device=device)
    voxels = torch.where(chance < 0.5, 0.25 * size, 0.7 * (12 / 0.7) ** size)
    elastic = (chance > 0.5) & (other < 0.5)
    tre = (spacing * voxels * torch.where(elastic, 0.3, 1.0)).clamp(max=RADIUS_MM)
    rigid = offsets_of(tre, RADIUS_MM, d)
    return Offsets(rigid, 0.6 * spacing * voxels * elastic, spacing)


class OffsetPairs:
    """Pairs of images of size `size`, of people and contrasts that `pairs` draws.

    Args:
        pairs: the label maps, their table and the random parts of a rendering.
        size: voxels of the images.
        unit_mm: voxel of the label maps.
        varied: bend the people elastically, which takes longer than all else on a CPU.
    """

    def __init__(self, pairs: DevicePairs, size: int, unit_mm: float, *, varied: bool = True) -> None:
        self.pairs, self.unit, self.varied = pairs, unit_mm, varied
        self.renderer = copy.copy(pairs)
        self.renderer.size = (size,) * pairs.spatial_dims
        self.renderer.fine = (2 * size,) * pairs.spatial_dims

    def canvas(self, people: int) -> Tensor:
        """Label positions of people (P, *2S)."""
        pairs, device = self.pairs, self.pairs.maps.device
        which = torch.randint(len(pairs.maps), (people,), device=device)
        if not self.varied:
            return pairs.maps[which].view(-1, *pairs.fine)
        return pairs._warped(which, torch.rand(people, device=device) < pairs.augmentation.flip)

    def __call__(self, canvas: Tensor, offsets: Offsets, kinds: Tensor, same: float = 0.1) -> tuple[Tensor, Tensor]:
        """Images (B, 2, *S), moving then fixed, and |u| in mm (B, 1, *S).

        Args:
            canvas: (P, *2S), of which each serves B / P pairs.
            kinds: contrasts of the moving and the fixed images, (2, B), see `DevicePairs.means`.
            same: share of the pairs of which both images have the same intensities.
        """
        labels, distance = self.looked_up(canvas, offsets)
        count, device = kinds.shape[1], kinds.device
        labels = self._stripped(labels, torch.rand(count, device=device).repeat(2))
        equal = torch.rand(count, 1, device=device) < same
        moving, fixed = self.pairs.means(2 * count, kinds.flatten()).chunk(2)
        noise = torch.where(kinds == 3, 32.0, 16.0) * torch.rand(2, count, device=device)
        image = self.renderer.render(labels, torch.cat([torch.where(equal, fixed, moving), fixed]), noise.flatten())
        return torch.cat(image.chunk(2), 1), distance

    def _stripped(self, labels: Tensor, chance: Tensor) -> Tensor:
        """Without what lies outside the brain where a chance (2 B,) says so, half of those without its fluid, too."""
        pairs, chance = self.pairs, self.pairs.each(chance)
        strip, dry = chance < pairs.augmentation.strip, chance < pairs.augmentation.strip / 2
        index = labels.long()
        return labels * (pairs.table.cerebral[index] | ~strip) * ~(pairs.table.fluid[index] & dry)

    def looked_up(self, canvas: Tensor, offsets: Offsets) -> tuple[Tensor, Tensor]:
        """Labels (2 B, *2S), moving ones first, and |u| in mm (B, 1, *S) where the images' voxels lie."""
        d, device, fine = self.pairs.spatial_dims, canvas.device, self.renderer.fine
        rigid, count = offsets.rigid, len(offsets.rigid)
        step = offsets.spacing / 2
        axes = [(torch.arange(n, device=device) - (n - 1) / 2) * step for n in fine]
        here = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
        there = rigid[:, :, :d] @ here + rigid[:, :, d:] + self._elastic(offsets).flatten(2)
        distance = (there - here).square().sum(1).sqrt().view(count, 1, *fine)
        pose, shift = self._pose(count, offsets.spacing)
        labels = [self._nearest(canvas, pose @ points + shift) for points in (there, here.expand(count, -1, -1))]
        return torch.cat(labels).view(2 * count, *fine), distance[(..., *[slice(0, None, 2)] * d)]

    def _elastic(self, offsets: Offsets) -> Tensor:
        """Smooth noise (B, D, *2S), mm, on control points 24 mm apart."""
        d, fine = self.pairs.spatial_dims, self.renderer.fine
        coarse = [max(3, math.ceil(n * offsets.spacing / 2 / 24) + 1) for n in fine]
        noise = torch.randn(len(offsets.rigid), d, *coarse, device=offsets.rigid.device)
        noise = noise * offsets.elastic.view(-1, *[1] * (d + 1))
        return F.interpolate(noise, size=fine, mode=LINEAR[d], align_corners=True)

    def _pose(self, count: int, spacing: float) -> tuple[Tensor, Tensor]:
        """Affine maps (B, D, D) and shifts (B, D, 1), mm: further where the images show a small part of the maps."""
        d, device = self.pairs.spatial_dims, self.pairs.maps.device
        turn = math.radians(TURN_DEGREES) * (2 * torch.rand(count, 3 if d == 3 else 1, device=device) - 1)
        free = [0.35 * (n * self.unit - self.renderer.size[0] * spacing) for n in self.pairs.fine]
        most = torch.tensor([max(SHIFT_MM, one) for one in free]).to(device, non_blocking=True)
        scale = 1 + SCALE * (2 * torch.rand(count, d, 1, device=device) - 1)
        mirror = torch.ones(count, d, 1, device=device)
        mirror[:, 0] = torch.where(torch.rand(count, 1, device=device) < self.pairs.augmentation.flip, -1.0, 1.0)
        return scale * mirror * rotation_matrix(turn), ((2 * torch.rand(count, d, device=device) - 1) * most)[
            :, :, None
        ]

    def _nearest(self, canvas: Tensor, points: Tensor) -> Tensor:
        """Labels (B, N) of a canvas (P, *2S) at points (B, D, N), mm from its centre; 0 outside."""
        size, count = canvas.shape[1:], len(points)
        index = torch.zeros(points.shape[::2], dtype=torch.int32, device=points.device)
        inside = torch.ones_like(index, dtype=torch.bool)
        for axis, n in enumerate(size):
            voxel = (points[:, axis] / self.unit + (n - 1) / 2).round().int()
            inside &= (voxel >= 0) & (voxel < n)
            index = index * n + voxel.clamp(0, n - 1)
        each = len(canvas)
        found = canvas.flatten(1).gather(1, index.view(each, -1).long())
        return (found.view(count, -1) * inside).contiguous()


def draw_kinds(count: int, device: torch.device, table_share: float = 0.5) -> Tensor:
    """Contrasts of moving and fixed images (2, B): T1, T2 or inverted T1, or random."""
    table = torch.randint(3, (2, count), device=device)
    return table.masked_fill(torch.rand(2, count, device=device) > table_share, 3)
