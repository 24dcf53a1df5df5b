"""A network that sees the mask and a frame, and gives the velocity of the motion between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...deformations.velocity import StationaryVelocity
from ...inference.pyramid import shrink
from ...networks.voxelmorph_unet import VoxelMorphUNet
from ...repeatable import median


class MotionNetwork(VoxelMorphUNet):
    """VoxelMorph's U-Net for frames of an angiography: five levels, few features, and a velocity at half resolution.

    Shapes: input (N, 2, H, W), the mask and a frame as `network_input` makes them, output (N, 2, ceil(H/2), ceil(W/2)).

    Args:
        encoder_channels, decoder_channels: see `VoxelMorphUNet`.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int] = (8, 16, 24, 32, 32),
        decoder_channels: Sequence[int] = (32, 32, 24, 24, 16),
    ) -> None:
        super().__init__(2, encoder_channels=encoder_channels, decoder_channels=decoder_channels, half_resolution=True)


def network_input(mask: Tensor, frames: Tensor) -> Tensor:
    """Masks and frames (N, 1, H, W), logarithms of intensities, as the network sees them, (N, 2, H, W).

    From each frame its own median is taken, and from each mask its own, since exposures differ. The deviation of the
    mask is the unit of both.
    """
    unit = mask.flatten(1).std(1).clamp(min=1e-6).view(-1, 1, 1, 1)
    middles = (median(one.flatten(1), 1).view(-1, 1, 1, 1) for one in (mask, frames))
    return torch.cat([(one - middle) / unit for one, middle in zip((mask, frames), middles, strict=True)], 1)


@torch.no_grad()
def estimated_motion(network: nn.Module, mask: Tensor, frames: Tensor, coarser: int = 1) -> Tensor:
    """The displacement (N, 2, H, W) from frames to masks (N, 1, H, W), pixels, in one run of the network.

    Args:
        network: `MotionNetwork`, or any that takes and gives the same.
        mask, frames: logarithms of intensities.
        coarser: the network sees the images shrunk by this factor.
    """
    image = network_input(shrink(mask, coarser), shrink(frames, coarser))
    return StationaryVelocity()(network(image), frames.shape[2:])["ddf"]
