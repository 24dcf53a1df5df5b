"""The network of the bundle `brain_extraction`: a U-Net at half of its input's resolution, and a look at the input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from ...networks.blocks import check_spatial_dims, crop, enlarged, pad_to_multiple


class BrainUNet(nn.Module):
    """Logits (B, num_classes, *S) of each voxel of images (B, 1, *S); images of any size are padded with zeros.

    A convolution of stride 2 goes to half the resolution, a U-Net of three levels works there, and its last layer gives
    features for all 2**D voxels of each of its own. With them, which tell where a voxel is and how tissues look around
    it, three thin layers read the image at its own resolution. Instance normalisation makes the contrast's scale
    irrelevant. What is skipped is added and not concatenated. All this is for speed on a CPU.

    Args:
        spatial_dims: 2 or 3.
        num_classes: background, then the structures.
        channels: of the three levels, at 1/2, 1/4 and 1/8 of the input's resolution.
        width: channels of the U-Net's last layer.
        features: of each voxel that the U-Net hands on.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        num_classes: int = 18,
        channels: Sequence[int] = (20, 32, 48),
        width: int = 32,
        features: int = 12,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        self.features = features
        a, b, c = channels
        plain = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        self.stem = plain(1, a, 2, stride=2)
        self.encode_1 = _block(spatial_dims, a, a)
        self.encode_2 = nn.Sequential(_block(spatial_dims, a, b, strides=2), _block(spatial_dims, b, b))
        self.encode_3 = nn.Sequential(
            _block(spatial_dims, b, c, strides=2), _block(spatial_dims, c, c), _block(spatial_dims, c, c, dilation=2)
        )
        self.reduce_2, self.reduce_1 = plain(c, b, 1), plain(b, a, 1)
        self.decode_2 = _block(spatial_dims, b, b)
        self.decode_1 = _block(spatial_dims, a, width)
        self.spread = plain(width, features * 2**spatial_dims, 1)
        self.read = nn.Sequential(
            plain(features + 1, 16, 3, padding=1),
            nn.LeakyReLU(0.1),
            plain(16, 24, 1),
            nn.LeakyReLU(0.1),
            plain(24, num_classes, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image (B, 1, *S) in [0, 1]."""
        size = list(image.shape[2:])
        image = pad_to_multiple(image, 8)
        first = self.encode_1(self.stem(image))
        second = self.encode_2(first)
        third = self.encode_3(second)
        second = self.decode_2(second + enlarged(self.reduce_2(third)))
        first = self.decode_1(first + enlarged(self.reduce_1(second)))
        return crop(self.read(torch.cat([shuffle(self.spread(first), self.features), image], 1)), size)


def _block(spatial_dims: int, n_in: int, n_out: int, *, strides: int = 1, dilation: int = 1) -> nn.Module:
    return Convolution(
        spatial_dims,
        n_in,
        n_out,
        strides=strides,
        dilation=dilation,
        norm=("INSTANCE", {"affine": True}),
        act=("LEAKYRELU", {"negative_slope": 0.1}),
        adn_ordering="NA",
        bias=False,
    )


def shuffle(packed: Tensor, channels: int) -> Tensor:
    """(B, channels * 2**D, *S) -> (B, channels, *2S): the values of a voxel become a block of 2 voxels along each axis.

    The channel of class k and voxel (i, j, l) of the block is 8 k + 4 i + 2 j + l in 3-D, 4 k + 2 i + j in 2-D.
    """
    b = packed.shape[0]
    if packed.dim() == 5:
        x, y, z = packed.shape[2], packed.shape[3], packed.shape[4]
        blocks = packed.reshape(b, channels, 2, 2, 2, x, y, z).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return blocks.reshape(b, channels, 2 * x, 2 * y, 2 * z)
    x, y = packed.shape[2], packed.shape[3]
    return packed.reshape(b, channels, 2, 2, x, y).permute(0, 1, 4, 2, 5, 3).reshape(b, channels, 2 * x, 2 * y)
