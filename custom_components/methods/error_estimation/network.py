"""The network of the bundle `error_estimation`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from ...networks.blocks import (
    AveragePool,
    check_spatial_dims,
    convolution,
    crop,
    enlarged,
    initialize_layers,
    pad_to_multiple,
)


class ErrorUNet(nn.Module):
    """The error of a registration, mm, (B, 1, *S), from its answer (B, 2 + D, *S); images of any size.

    Convention: the channels are the fixed image, the warped image, and the displacement along each axis in units of
    10 mm; where it is not known it is 0.

    Two convolutions compare the images at their own resolution, and `LocalMatch` tells where the warped image would
    fit better if it were moved a little. A U-Net of three levels works with both at 1/2, 1/4 and 1/8 of the resolution;
    its skips are sums. The answer is found at 1/2 and enlarged linearly: errors are smooth. Nothing is normalised: how
    well images match on the whole tells how large the errors are.

    Args:
        spatial_dims: 2 or 3.
        compared: features at the images' own resolution.
        shifts: voxels that the warped image is moved by, both ways along each axis.
        channels: of the three levels.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        compared: int = 8,
        shifts: Sequence[int] = (1, 2, 4),
        channels: Sequence[int] = (24, 32, 48),
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        a, b, c = channels
        self.match = LocalMatch(shifts)
        self.compare = nn.Sequential(
            convolution(spatial_dims, 2 + spatial_dims, compared),
            nn.LeakyReLU(0.1),
            convolution(spatial_dims, compared, compared),
            nn.LeakyReLU(0.1),
        )
        self.shrink = _block(spatial_dims, compared, a, strides=2)
        self.encode_1 = _block(spatial_dims, a + 1 + 2 * spatial_dims * len(shifts), a)
        self.encode_2 = nn.Sequential(_block(spatial_dims, a, b, strides=2), _block(spatial_dims, b, b))
        self.encode_3 = nn.Sequential(_block(spatial_dims, b, c, strides=2), _block(spatial_dims, c, c))
        self.reduce_2, self.reduce_1 = convolution(spatial_dims, c, b, 1), convolution(spatial_dims, b, a, 1)
        self.decode_2, self.decode_1 = _block(spatial_dims, b, b), _block(spatial_dims, a, a)
        self.last = convolution(spatial_dims, a, 1, 1)
        initialize_layers(self, 0.1)
        nn.init.normal_(self.last.weight, std=1e-2)

    def forward(self, image: Tensor) -> Tensor:
        """Errors, at least 0, of answers."""
        size = list(image.shape[2:])
        image = pad_to_multiple(image, 8)
        first = self.encode_1(torch.cat([self.shrink(self.compare(image)), self.match(image)], 1))
        second = self.encode_2(first)
        third = self.encode_3(second)
        second = self.decode_2(second + enlarged(self.reduce_2(third)))
        first = self.decode_1(first + enlarged(self.reduce_1(second)))
        return crop(enlarged(F.softplus(self.last(first).float())), size)


class LocalMatch(nn.Module):
    """Squared local correlation of a fixed image with a warped one, as it is and moved along each axis.

    Of images (B, 2 or more, *S), fixed and warped first, (B, 1 + 2 D len(shifts), *S / 2), from 0 to 1, in windows of 5
    voxels. A squared correlation asks for no equal contrast. Nothing is learned here.
    """

    def __init__(self, shifts: Sequence[int] = (1, 2, 4)) -> None:
        super().__init__()
        self.shifts = [int(shift) for shift in shifts]
        self.window = AveragePool(5, stride=2, padding=True)

    def forward(self, image: Tensor) -> Tensor:
        fixed, warped = image[:, :1].float(), image[:, 1:2].float()
        moved = [warped]
        for shift in self.shifts:
            for axis in range(2, image.dim()):
                n = warped.shape[axis]
                k = min(shift, n - 1)
                ends = [
                    torch.cat([warped.narrow(axis, 0, 1)] * k, axis),
                    torch.cat([warped.narrow(axis, n - 1, 1)] * k, axis),
                ]
                moved.append(torch.cat([ends[0], warped.narrow(axis, 0, n - k)], axis))
                moved.append(torch.cat([warped.narrow(axis, k, n - k), ends[1]], axis))
        others = torch.cat(moved, 1)
        mean, means = self.window(fixed), self.window(others)
        variance = self.window(fixed * fixed) - mean * mean + 1e-4
        variances = self.window(others * others) - means * means + 1e-4
        covariance = self.window(others * fixed) - means * mean
        return covariance * covariance / (variance * variances)


def _block(spatial_dims: int, n_in: int, n_out: int, *, strides: int = 1) -> nn.Module:
    return Convolution(
        spatial_dims,
        n_in,
        n_out,
        strides=strides,
        norm=None,
        act=("LEAKYRELU", {"negative_slope": 0.1}),
        adn_ordering="A",
    )
