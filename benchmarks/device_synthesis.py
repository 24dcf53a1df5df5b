"""Training pairs of brains made on the device: label maps stay there, and no step waits for the host.

`custom_components.synthesis` renders maps at the network's resolution. Here the maps have twice that resolution: they
are warped and coloured there, and blocks of 2 voxels along each axis are averaged. So a voxel at a boundary holds a
mixture, as in a scan, and the structures' shares in a voxel (B, K, *S) take the place of integer labels.

Every number is drawn on the device and no shape depends on one, so that a whole training step can be captured in a CUDA
graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from custom_components.synthesis.noise import gaussian_blur


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
    """Ranges of the random parts; lengths in voxels of the network's grid."""

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


class DevicePairs:
    """Pairs of different people out of label maps (N, *2S), uint8, on the device.

    Args:
        maps: positions in the table; sizes along all axes are even.
        table: of the labels.
        augmentation: the random parts.
    """

    def __init__(self, maps: Tensor, table: LabelTable, augmentation: Augmentation | None = None) -> None:
        self.maps, self.table = maps.flatten(1), table
        self.fine = tuple(maps.shape[1:])
        self.size = tuple(n // 2 for n in self.fine)
        self.augmentation = augmentation or Augmentation()
        # Read once: reading a number later would make the host wait in every step.
        self.num_groups, self.num_structures = int(table.group.max()) + 1, int(table.chosen.max())

    def anatomies(self, pairs: int) -> Tensor:
        """Label positions (2 P, *2S), moving ones first."""
        device, count = self.maps.device, len(self.maps)
        moving = torch.randint(count, (pairs,), device=device)
        fixed = (moving + torch.randint(1, count, (pairs,), device=device)) % count
        flip = (torch.rand(pairs, device=device) < self.augmentation.flip).repeat(2)
        labels = self._warped(torch.cat([moving, fixed]), flip)
        chance = torch.rand(pairs, device=device).repeat(2).view(-1, 1, 1, 1)
        strip, dry = chance < self.augmentation.strip, chance < self.augmentation.strip / 2
        index = labels.long()
        return labels * (self.table.cerebral[index] | ~strip) * ~(self.table.fluid[index] & dry)

    def given(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Label positions (2 P, *2S) of the people as they are, moving ones first."""
        return self.maps[torch.cat([moving, fixed])].view(-1, *self.fine)

    def _warped(self, people: Tensor, flip: Tensor) -> Tensor:
        """Maps under a random affine and elastic displacement, by nearest neighbour; 0 outside."""
        device, a = self.maps.device, self.augmentation
        batch = len(people)
        matrix, shift = random_affine(batch, a, device)
        axes = [torch.arange(n, device=device) - (n - 1) / 2 for n in self.fine]
        index = torch.zeros(batch, *self.fine, dtype=torch.int32, device=device)
        inside = torch.ones(batch, *self.fine, dtype=torch.bool, device=device)
        for row, n in enumerate(self.fine):
            position = (shift[:, row] * 2 + (n - 1) / 2).view(-1, 1, 1, 1)
            for column, axis in enumerate(axes):
                shape = [1] * 4
                shape[column + 1] = -1
                position = position + matrix[:, row, column].view(-1, 1, 1, 1) * axis.view(shape)
            for scale, largest in a.elastic:
                std = 2 * largest * torch.rand(batch, 1, 1, 1, 1, device=device)
                coarse = [max(2, round(m / (2 * scale)) + 1) for m in self.fine]
                noise = std * torch.randn(batch, 1, *coarse, device=device)
                position = position + F.interpolate(noise, size=self.fine, mode="trilinear", align_corners=True)[:, 0]
            if row == 0:
                position = torch.where(flip.view(-1, 1, 1, 1), n - 1 - position, position)
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
        device, a, batch = self.maps.device, self.augmentation, len(labels)
        index = labels.flatten(1).long()
        std = noisy.view(-1, 1) * (0.25 + 0.75 * torch.rand(batch, means.shape[1], device=device))
        std[:, 0] *= 0.5
        white = torch.randn(batch, 1, *self.fine, device=device)
        texture = torch.randn(batch, 1, *[n // 4 for n in self.fine], device=device)
        noise = white + F.interpolate(texture, size=self.fine, mode="trilinear", align_corners=False)
        image = torch.addcmul(means.gather(1, index), std.gather(1, index), noise.flatten(1)).view(-1, 1, *self.fine)
        zero = torch.rand(batch, 1, 1, 1, 1, device=device) < a.zero_background
        image = image.masked_fill((labels == 0).unsqueeze(1) & zero, 0)
        image = F.avg_pool3d(image, 2)
        image = gaussian_blur(image, a.blur * torch.rand(batch, 3, device=device), radius=2)
        coarse = [max(2, round(n / 30) + 1) for n in self.size]
        field = a.bias * torch.rand(batch, 1, 1, 1, 1, device=device) * torch.randn(batch, 1, *coarse, device=device)
        field = F.interpolate(field, size=self.size, mode="trilinear", align_corners=True)
        image = (image * field.exp()).clamp(min=0)
        low, high = (getattr(image.flatten(1), name)(1).view(-1, 1, 1, 1, 1) for name in ("amin", "amax"))
        exponent = (a.gamma * torch.randn(batch, 1, 1, 1, 1, device=device)).exp()
        return ((image - low) / (high - low).clamp(min=1e-6)) ** exponent

    def clean(self, labels: Tensor) -> Tensor:
        """T1-like images (B, 1, *S) of the table's means, without noise, in [0, 1]."""
        return F.avg_pool3d((self.table.mean / 255)[labels.long()].unsqueeze(1), 2)

    def shares(self, labels: Tensor) -> Tensor:
        """Each structure's share of a voxel, (B, K, *S)."""
        channel = self.table.chosen[labels.long()]
        shares = torch.zeros(len(labels), self.num_structures + 1, *self.size, device=labels.device)
        eighth = shares.new_full((1, 1, 1, 1, 1), 0.125)
        for i, j, k in product((0, 1), repeat=3):
            part = channel[:, i::2, j::2, k::2].unsqueeze(1)
            shares.scatter_add_(1, part, eighth.expand(part.shape))
        return shares[:, : self.num_structures]

    def brain(self, labels: Tensor, margin: int = 2) -> Tensor:
        """The brain and a margin of voxels around it, (B, 1, *S), 0 or 1."""
        cerebral = (self.table.cerebral[labels.long()] & (labels > 0)).float().unsqueeze(1)
        return F.max_pool3d(F.max_pool3d(cerebral, 2), 2 * margin + 1, stride=1, padding=margin)


def random_affine(batch: int, a: Augmentation, device: torch.device) -> tuple[Tensor, Tensor]:
    """Linear parts (B, 3, 3) about the grid's centre, and shifts (B, 3), in voxels."""

    def uniform(largest: float, *shape: int) -> Tensor:
        return largest * (2 * torch.rand(*shape, device=device) - 1)

    angles = uniform(torch.pi / 180 * a.rotation_degrees, batch, 3)
    one, zero = torch.ones(batch, device=device), torch.zeros(batch, device=device)
    matrix = torch.diag_embed(1 + uniform(a.scaling, batch, 3))
    for axis in range(3):
        c, s = angles[:, axis].cos(), angles[:, axis].sin()
        entries = [[one, zero, zero], [zero, one, zero], [zero, zero, one]]
        i, j = [n for n in range(3) if n != axis]
        entries[i][i], entries[i][j], entries[j][i], entries[j][j] = c, -s, s, c
        matrix = torch.stack([torch.stack(row, -1) for row in entries], -2) @ matrix
    return matrix, uniform(a.shift, batch, 3)
