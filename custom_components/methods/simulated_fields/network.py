"""The network of `simulated_fields`: a U-Net whose finer levels can join while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...networks.blocks import (
    AveragePool,
    check_pair,
    check_spatial_dims,
    convolution,
    crop,
    enlarged,
    initialize_layers,
    pad_to_multiple,
)


class GrowingUNet(nn.Module):
    """Displacements (B, D, *S), in voxels, from two images (B, 2, *S), moving then fixed.

    The images are averaged over blocks of 2, 4, ... voxels. Each level sees its own pair and what the finer level made
    of it; on the way back each level adds a field to twice the enlarged field of the coarser one. So the network of the
    coarser levels is a network of its own, and a finer level can join it: `grow` says which levels take part, and with
    what weight the finest of them counts. With weight 0 the answer is that of the coarser network, enlarged.

    The weights of the levels are kept with the network's own: a file that was saved before a level joined gives the
    same answers in the complete network.

    Args:
        spatial_dims: 2 or 3.
        channels: features of each level, the finest first.
        half_resolution: predict at half the resolution and enlarge; the finest level then is an encoder alone.
        paths: 2 adds a second U-Net, which sees the images at half the resolution, with as many levels: its field of
            view is twice as large. Its finest features are joined with the first one's before the last field.
        match_channels: features whose correlations with those of the neighbours in the other image each level sees
            besides (`Match`); 0 for none, as in the papers.
        flow_std: standard deviation of the initial weights of the layers that make fields.
    Raises:
        ValueError: for arguments out of range, or an input that is no pair of such images.
    References: Eppenhof, Lafarge, Veta, Pluim, IEEE TMI 39(5), 2020, for the idea of growing; Sokooti et al., MICCAI
        2017, for that of two paths. The layers are ours.
    """

    if TYPE_CHECKING:  # TorchScript reads no annotation that is text
        weight_of_level: Tensor

    def __init__(
        self,
        spatial_dims: int = 3,
        channels: Sequence[int] = (16, 32, 32, 32, 32),
        half_resolution: bool = True,
        paths: int = 1,
        match_channels: int = 8,
        flow_std: float = 1e-3,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        if len(channels) < 2 or min(channels) < 1 or paths not in (1, 2):
            raise ValueError(f"expected channels of at least 2 levels and 1 or 2 paths, got {tuple(channels)}, {paths}")
        self.spatial_dims, self.levels, self.finest = spatial_dims, len(channels), int(half_resolution)
        self.multiple = 2 ** (self.levels - 2 + paths)
        self.stage = 0
        self.register_buffer("weight_of_level", torch.ones(self.levels))
        self.pool = AveragePool()
        self.trunk = Trunk(spatial_dims, channels, self.finest, match_channels)
        self.heads = nn.ModuleList(convolution(spatial_dims, n, spatial_dims) for n in channels[self.finest :][::-1])
        self.second = nn.ModuleList()
        if paths == 2:
            self.second.append(Trunk(spatial_dims, channels, 0, match_channels))
        joined = channels[0] + channels[self.finest]
        self.join = nn.ModuleList(block(spatial_dims, joined, channels[self.finest]) for _ in self.second)
        initialize_layers(self, 0.2)
        for head in self.heads:
            nn.init.normal_(head.weight, std=flow_std)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        check_pair(image, self.spatial_dims)
        size = list(image.shape[2:])
        pyramid = [pad_to_multiple(image, self.multiple)]
        for _ in range(self.levels):
            if len(pyramid) < self.levels + len(self.second):
                pyramid.append(self.pool(pyramid[-1]))
        features = self.trunk(pyramid, self.stage, self.weight_of_level)
        for second, join in zip(self.second, self.join):  # noqa: B905 (TorchScript)
            view = second(pyramid[1:], 0, torch.ones_like(self.weight_of_level))[-1]
            if self.finest == 0:
                view = enlarged(view)
            features[-1] = join(torch.cat([features[-1], view], 1))
        return crop(self.field(features), size)

    def field(self, features: list[Tensor]) -> Tensor:
        """The field of all levels that take part, at full resolution; features are the coarsest first."""
        field = torch.zeros_like(features[0][:, : self.spatial_dims]).float()
        level = self.levels
        for head in self.heads:
            level -= 1
            if level >= self.stage:
                if level < self.levels - 1:
                    field = 2 * enlarged(field)
                field = field + self.weight_of_level[level] * head(features[self.levels - 1 - level]).float()
        for _ in range(max(self.stage, self.finest)):
            field = 2 * enlarged(field)
        return field

    @torch.no_grad()
    def grow(self, stage: int, weight: float = 1.0) -> None:
        """Let the levels from `stage` on take part, 0 being the finest, which counts with a weight from 0 to 1.

        Raises:
            ValueError: if there is no such level, or the network has two paths.
        """
        if not 0 <= stage < self.levels or len(self.second):
            raise ValueError(f"expected a stage below {self.levels} of a network of one path, got {stage}")
        self.stage = stage
        self.weight_of_level[:stage] = 0
        self.weight_of_level[stage:] = 1
        self.weight_of_level[stage] = weight


class Trunk(nn.Module):
    """The features of a U-Net, (B, C, *S / 2**level), the coarsest level first, from images of each level.

    Args:
        spatial_dims: 2 or 3.
        channels: of each level, the finest first.
        finest: the finest level with features of its own on the way back; no finer one correlates.
        match_channels: as of the network.
    """

    def __init__(self, spatial_dims: int, channels: Sequence[int], finest: int, match_channels: int) -> None:
        super().__init__()
        levels = len(channels)
        self.levels, self.finest = levels, finest
        self.pool = AveragePool()
        self.inputs = nn.ModuleList(
            Reading(spatial_dims, n, match_channels if level >= finest else 0) for level, n in enumerate(channels)
        )
        self.links = nn.ModuleList(
            convolution(spatial_dims, channels[max(level - 1, 0)], n) for level, n in enumerate(channels[1:], 1)
        )
        self.down = nn.ModuleList(block(spatial_dims, n, n) for n in channels)
        self.up = nn.ModuleList(
            block(spatial_dims, channels[level] + channels[level + 1], channels[level])
            for level in range(levels - 2, finest - 1, -1)
        )

    def forward(self, pyramid: list[Tensor], stage: int, weights: Tensor) -> list[Tensor]:
        found: list[Tensor] = []  # the finest first
        for level, (read, down) in enumerate(zip(self.inputs, self.down)):  # noqa: B905 (TorchScript)
            if level >= stage:
                x = read(pyramid[level])
                for k, link in enumerate(self.links):
                    if k == level - 1 and level > stage:
                        x = x + weights[level - 1] * link(self.pool(found[-1]))
                found.append(down(F.leaky_relu(x, 0.2)))
        features = [found[-1]]
        for k, up in enumerate(self.up):
            level = self.levels - 2 - k
            if level >= stage:
                features.append(up(torch.cat([found[level - stage], enlarged(features[-1])], 1)))
        return features


class Reading(nn.Module):
    """What a level sees of its pair of images: a convolution of both and of their features' correlations."""

    def __init__(self, spatial_dims: int, channels: int, match_channels: int) -> None:
        super().__init__()
        self.match = nn.ModuleList([Match(spatial_dims, match_channels)] if match_channels else [])
        self.read = convolution(spatial_dims, 2 + (3**spatial_dims if match_channels else 0), channels)

    def forward(self, pair: Tensor) -> Tensor:
        for match in self.match:
            pair = torch.cat([pair, match(pair)], 1)
        return self.read(pair)


class Match(nn.Module):
    """How alike a voxel of the fixed image and the 3**D voxels around it in the moving image are, (B, 3**D, *S).

    Features of both images by the same two convolutions, each voxel's brought to unit power, and their products. The
    offset of the last axis changes fastest.

    References: Dosovitskiy et al., FlowNet, ICCV 2015, for correlations in a network that learns known fields.
    """

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.starts = [list(one) for one in product(range(3), repeat=spatial_dims)]
        self.features = nn.Sequential(
            block(spatial_dims, 1, channels), convolution(spatial_dims, channels, channels, bias=False)
        )

    def forward(self, pair: Tensor) -> Tensor:
        features = self.features(torch.cat([pair[:, :1], pair[:, 1:]]))
        features = features * torch.rsqrt(features.square().mean(1, keepdim=True) + 1e-3)
        moving, fixed = features.chunk(2)
        around = F.pad(moving, [1, 1] * self.spatial_dims)
        found: list[Tensor] = []
        for starts in self.starts:
            part = around
            for axis, start in enumerate(starts):
                part = part.narrow(axis + 2, start, fixed.shape[axis + 2])
            found.append((part * fixed).mean(1, keepdim=True))
        return torch.cat(found, 1)


def block(spatial_dims: int, n_in: int, n_out: int) -> nn.Sequential:
    """A convolution and LeakyReLU(0.2)."""
    return nn.Sequential(convolution(spatial_dims, n_in, n_out), nn.LeakyReLU(0.2))
