"""The network of the bundle `error_estimation`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from ...networks.blocks import check_spatial_dims, convolution, crop, pad_to_multiple
from ...repeatable import resize


class ErrorUNet(nn.Module):
    """The error of a registration, mm, (B, 1, *S), from its answer (B, 2 + D, *S); images of any size.

    Convention: the channels are the fixed image, the warped image, and the displacement along each axis in units of
    10 mm; where it is not known it is 0.

    Two convolutions compare the images at their own resolution. A U-Net of three levels works at 1/2, 1/4 and 1/8 of
    it; its skips are sums. The answer is found at 1/2 and enlarged linearly: errors are smooth.

    Args:
        spatial_dims: 2 or 3.
        compared: features at the images' own resolution.
        channels: of the three levels.
    """

    def __init__(self, spatial_dims: int = 3, compared: int = 8, channels: Sequence[int] = (24, 40, 64)) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        a, b, c = channels
        self.compare = nn.Sequential(
            convolution(spatial_dims, 2 + spatial_dims, compared),
            nn.LeakyReLU(0.1),
            convolution(spatial_dims, compared, compared),
            nn.LeakyReLU(0.1),
        )
        self.encode_1 = nn.Sequential(_block(spatial_dims, compared, a, strides=2), _block(spatial_dims, a, a))
        self.encode_2 = nn.Sequential(_block(spatial_dims, a, b, strides=2), _block(spatial_dims, b, b))
        self.encode_3 = nn.Sequential(_block(spatial_dims, b, c, strides=2), _block(spatial_dims, c, c))
        self.reduce_2, self.reduce_1 = convolution(spatial_dims, c, b, 1), convolution(spatial_dims, b, a, 1)
        self.decode_2, self.decode_1 = _block(spatial_dims, b, b), _block(spatial_dims, a, a)
        self.last = convolution(spatial_dims, a, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Errors, at least 0, of answers."""
        size = list(image.shape[2:])
        first = self.encode_1(self.compare(pad_to_multiple(image, 8)))
        second = self.encode_2(first)
        third = self.encode_3(second)
        second = self.decode_2(second + enlarged(self.reduce_2(third)))
        first = self.decode_1(first + enlarged(self.reduce_1(second)))
        return crop(enlarged(F.softplus(self.last(first).float())), size)


def enlarged(values: Tensor) -> Tensor:
    """(B, C, *S) -> (B, C, *2S), linearly."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        mode = "trilinear" if values.dim() == 5 else "bilinear"
        return F.interpolate(values, scale_factor=2.0, mode=mode, align_corners=False)
    return resize(values, scale_factor=2.0, align_corners=False)


def _block(spatial_dims: int, n_in: int, n_out: int, *, strides: int = 1) -> nn.Module:
    return Convolution(
        spatial_dims,
        n_in,
        n_out,
        strides=strides,
        norm=("INSTANCE", {"affine": True}),
        act=("LEAKYRELU", {"negative_slope": 0.1}),
        adn_ordering="NA",
        bias=False,
    )
