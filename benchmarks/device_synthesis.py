"""Training pairs of brains, or of slices, made on the device: maps stay there, and no step waits for the host.

`custom_components.synthesis` renders maps at the network's resolution. Here the maps have twice that resolution: they
are warped and coloured there, and blocks of 2 voxels along each axis are averaged. So a voxel at a boundary holds a
mixture, as in a scan, and the structures' shares in a voxel (B, K, *S) take the place of integer labels.

Every number is drawn on the device and no shape depends on one, so that a whole training step can be captured in a CUDA
graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product

import torch
import torch.nn.functional as F
from torch import Tensor

from custom_components.synthesis.noise import gaussian_blur

LINEAR = {2: "bilinear", 3: "trilinear"}
POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True)
class LabelTable:
    """What is known of each of L labels, tensors of length L; the maps hold positions in this table.

    Attributes:
        mean, spread: T1-like intensity, 0 to 255, and its spread between people.
        group: labels of one group (left and right, say) get equal intensities.
        t2_mean: T2-like intensity.
        chosen: the structure's channel, 0 ... K - 1, or K for labels that do not count.
        cerebral: whether skull-stripping keeps the label.
        fluid: whether it is the fluid around the brain, which half of the stripped brains lose, too.
    """

    mean: Tensor
    spread: Tensor
    t2_mean: Tensor
    group: Tensor
    chosen: Tensor
    cerebral: Tensor
    fluid: Tensor


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random parts; lengths in voxels of the network's grid.

    `same_person` is the share of pairs that show one person twice, warped independently.
    """

    rotation_degrees: float = 6.0
    scaling: float = 0.1
    shift: float = 2.0
    elastic: Sequence[tuple[float, float]] = ((8, 0.5), (20, 1.2))  # (scale, largest standard deviation)
    strip: float = 0.5
    flip: float = 0.5
    blur: float = 0.6
    bias: float = 0.25
    gamma: float = 0.25
    zero_background: float = 0.5
    same_person: float = 0.0


class DevicePairs:
    """Pairs of people out of label maps (N, *2S), uint8, on the device.

    Args:
        maps: positions in the table, in 2-D or 3-D; sizes along all axes are even.
        table: of the labels.
        augmentation: the random parts.
        runs: of slices: how many runs of neighbours there are of each person, one after the other, and how many slices
            in a run; a pair is of one slice or of two neighbours. (1, 1): a map is a person.
    """

    def __init__(
        self, maps: Tensor, table: LabelTable, augmentation: Augmentation | None = None, runs: tuple[int, int] = (1, 1)
    ) -> None:
        self.maps, self.table, self.run, self.levels = maps.flatten(1), table, runs[1], runs[0] * runs[1]
        self.people = len(maps) // self.levels
        self.fine = tuple(maps.shape[1:])
        self.size, self.spatial_dims = tuple(n // 2 for n in self.fine), len(self.fine)
        self.augmentation = augmentation or Augmentation()
        # Read once: reading a number later would make the host wait in every step.
        self.num_groups, self.num_structures = int(table.group.max()) + 1, int(table.chosen.max())

    def anatomies(self, pairs: int) -> Tensor:
        """Label positions (2 P, *2S), moving ones first."""
        device, count = self.maps.device, self.people
        moving = torch.randint(count, (pairs,), device=device)
        fixed = (moving + torch.randint(1, count, (pairs,), device=device)) % count
        if self.augmentation.same_person:
            fixed = torch.where(torch.rand(pairs, device=device) < self.augmentation.same_person, moving, fixed)
        people = torch.cat([moving, fixed])
        if self.levels > 1:
            level = torch.randint(self.levels, (pairs,), device=device)
            place = (level % self.run + torch.randint(-1, 2, (pairs,), device=device)).clamp(0, self.run - 1)
            people = people * self.levels + torch.cat([level, level // self.run * self.run + place])
        flip = (torch.rand(pairs, device=device) < self.augmentation.flip).repeat(2)
        labels = self._warped(people, flip)
        chance = self.each(torch.rand(pairs, device=device).repeat(2))
        strip, dry = chance < self.augmentation.strip, chance < self.augmentation.strip / 2
        index = labels.long()
        return labels * (self.table.cerebral[index] | ~strip) * ~(self.table.fluid[index] & dry)

    def given(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Label positions (2 P, *2S) of the people as they are, moving ones first; stripped if all in training are."""
        labels = self.maps[torch.cat([moving, fixed])].view(-1, *self.fine)
        return labels * self.table.cerebral[labels.long()] if self.augmentation.strip >= 1 else labels

    def each(self, values: Tensor, channels: int = 0) -> Tensor:
        """Numbers (B,) as (B, 1, ...), to go with maps, or with `channels` = 1 with images."""
        return values.view(-1, *[1] * (self.spatial_dims + channels))

    def _warped(self, people: Tensor, flip: Tensor) -> Tensor:
        """Maps under a random affine and elastic displacement, by nearest neighbour; 0 outside."""
        device, a = self.maps.device, self.augmentation
        batch, d = len(people), self.spatial_dims
        matrix, shift = random_affine(batch, a, device, d)
        axes = [torch.arange(n, device=device) - (n - 1) / 2 for n in self.fine]
        index = torch.zeros(batch, *self.fine, dtype=torch.int32, device=device)
        inside = torch.ones(batch, *self.fine, dtype=torch.bool, device=device)
        for row, n in enumerate(self.fine):
            position = self.each(shift[:, row] * 2 + (n - 1) / 2)
            for column, axis in enumerate(axes):
                shape = [1] * (d + 1)
                shape[column + 1] = -1
                position = position + self.each(matrix[:, row, column]) * axis.view(shape)
            for scale, largest in a.elastic:
                std = 2 * largest * self.each(torch.rand(batch, device=device), 1)
                coarse = [max(2, round(m / (2 * scale)) + 1) for m in self.fine]
                noise = std * torch.randn(batch, 1, *coarse, device=device)
                position = position + F.interpolate(noise, size=self.fine, mode=LINEAR[d], align_corners=True)[:, 0]
            if row == 0:
                position = torch.where(self.each(flip), n - 1 - position, position)
            voxel = position.round().int()
            inside &= (voxel >= 0) & (voxel < n)
            index = index * n + voxel.clamp(0, n - 1)
        found = self.maps[people].gather(1, index.flatten(1).long()).view(batch, *self.fine)
        return found * inside

    def means(self, batch: int, kind: Tensor) -> Tensor:
        """Mean intensity of each label (B, L), 0 to 255.

        Args:
            kind: (B,), 0 T1-like, 1 T2-like, 2 inverted T1-like, 3 random.
        """
        device, table = self.maps.device, self.table
        labels = len(table.mean)
        normal = torch.randn(batch, self.num_groups, device=device)[:, table.group]
        t1 = (table.mean + table.spread * normal).clamp(0, 255)
        t2 = (table.t2_mean + table.spread * normal).clamp(0, 255)
        background = torch.arange(labels, device=device) == 0
        inverted = torch.where(background, t1, 255 - t1)
        alone = 25 + 200 * torch.rand(batch, labels, device=device)
        together = (25 + 200 * torch.rand(batch, self.num_groups, device=device))[:, table.group]
        drawn = torch.where(torch.rand(batch, 1, device=device) < 0.5, alone, together)
        drawn = torch.where(background, 225 * torch.rand(batch, 1, device=device), drawn)
        kind = kind.view(-1, 1)
        return torch.where(kind == 0, t1, torch.where(kind == 1, t2, torch.where(kind == 2, inverted, drawn)))

    def render(self, labels: Tensor, means: Tensor, noisy: Tensor) -> Tensor:
        """Images (B, 1, *S) in [0, 1].

        Args:
            labels: (B, *2S) positions. means: (B, L).
            noisy: (B,), the largest standard deviation of the noise, 0 to 255.
        """
        device, a, batch, d = self.maps.device, self.augmentation, len(labels), self.spatial_dims
        index = labels.flatten(1).long()
        std = noisy.view(-1, 1) * (0.25 + 0.75 * torch.rand(batch, means.shape[1], device=device))
        std[:, 0] *= 0.5
        white = torch.randn(batch, 1, *self.fine, device=device)
        texture = torch.randn(batch, 1, *[n // 4 for n in self.fine], device=device)
        noise = white + F.interpolate(texture, size=self.fine, mode=LINEAR[d], align_corners=False)
        image = torch.addcmul(means.gather(1, index), std.gather(1, index), noise.flatten(1)).view(-1, 1, *self.fine)
        zero = self.each(torch.rand(batch, device=device), 1) < a.zero_background
        image = image.masked_fill((labels == 0).unsqueeze(1) & zero, 0)
        image = POOL[d](image, 2)
        image = gaussian_blur(image, a.blur * torch.rand(batch, d, device=device), radius=2)
        coarse = [max(2, round(n / 30) + 1) for n in self.size]
        field = a.bias * self.each(torch.rand(batch, device=device), 1) * torch.randn(batch, 1, *coarse, device=device)
        field = F.interpolate(field, size=self.size, mode=LINEAR[d], align_corners=True)
        image = (image * field.exp()).clamp(min=0)
        low, high = (self.each(getattr(image.flatten(1), name)(1), 1) for name in ("amin", "amax"))
        exponent = (a.gamma * self.each(torch.randn(batch, device=device), 1)).exp()
        return ((image - low) / (high - low).clamp(min=1e-6)) ** exponent

    def clean(self, labels: Tensor) -> Tensor:
        """T1-like images (B, 1, *S) of the table's means, without noise, in [0, 1]."""
        return POOL[self.spatial_dims]((self.table.mean / 255)[labels.long()].unsqueeze(1), 2)

    def shares(self, labels: Tensor) -> Tensor:
        """Each structure's share of a voxel, (B, K, *S)."""
        channel = self.table.chosen[labels.long()]
        shares = torch.zeros(len(labels), self.num_structures + 1, *self.size, device=labels.device)
        part = shares.new_full([1] * shares.ndim, 0.5**self.spatial_dims)
        for corner in product((0, 1), repeat=self.spatial_dims):
            index = channel[(slice(None), *[slice(start, None, 2) for start in corner])].unsqueeze(1)
            shares.scatter_add_(1, index, part.expand(index.shape))
        return shares[:, : self.num_structures]

    def brain(self, labels: Tensor, margin: int = 2) -> Tensor:
        """The brain and a margin of voxels around it, (B, 1, *S), 0 or 1."""
        cerebral = (self.table.cerebral[labels.long()] & (labels > 0)).float().unsqueeze(1)
        pool = F.max_pool3d if self.spatial_dims == 3 else F.max_pool2d
        return pool(pool(cerebral, 2), 2 * margin + 1, stride=1, padding=margin)


def random_affine(batch: int, a: Augmentation, device: torch.device, spatial_dims: int = 3) -> tuple[Tensor, Tensor]:
    """Linear parts (B, D, D) about the grid's centre, and shifts (B, D), in voxels."""

    def uniform(largest: float, *shape: int) -> Tensor:
        return largest * (2 * torch.rand(*shape, device=device) - 1)

    d = spatial_dims
    one, zero = torch.ones(batch, device=device), torch.zeros(batch, device=device)
    matrix = torch.diag_embed(1 + uniform(a.scaling, batch, d))
    for i, j in combinations(range(d), 2):
        angle = uniform(torch.pi / 180 * a.rotation_degrees, batch)
        entries = [[one if row == column else zero for column in range(d)] for row in range(d)]
        entries[i][i], entries[i][j], entries[j][i], entries[j][j] = angle.cos(), -angle.sin(), angle.sin(), angle.cos()
        matrix = torch.stack([torch.stack(row, -1) for row in entries], -2) @ matrix
    return matrix, uniform(a.shift, batch, d)
