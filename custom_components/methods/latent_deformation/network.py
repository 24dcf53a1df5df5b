"""The network of the bundle `latent_deformation`: a pair to a latent vector, the vector and an image to a velocity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...fields import at_least_float32
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
from ...repeatable import resize

_FLOW_STD = 0.03  # of the last layer's weights: training starts near the identity
_LOG_VARIANCE = -5.0  # of z at the start: much more would be noise that the decoder learns to ignore
_CODE, _MAP = 8, 3  # channels of what goes into a dense layer, and of what comes out of one
_REACH = 7 / 3  # of the smoothing's kernel, standard deviations


class LatentNetwork(nn.Module):
    """A conditional variational autoencoder of deformations.

    The encoder sees both images and gives mean and log variance of the latent vector z: two convolutions at full
    resolution with 16 features (LeakyReLU 0.2), for motion of less than a voxel shows nowhere else, three of stride 2
    with 16, 32 and 32, one with 8, a dense layer. The decoder sees z and the moving
    image: a dense layer makes a map at a quarter of the resolution; at 1/4, 1/2 and 1 of it the moving image is
    concatenated and convolved; a Gaussian smooths the velocity. There is no skip from encoder to decoder: all that the
    velocity knows of the fixed image goes through z.

    The dense layers have a grid of their own, `coarse`, an eighth of the resolution of the images of a training. An
    image of another size is taken as that grid stretched: what z means then differs, too.

    Convention: the velocity is in voxels of the images' grid.

    Args:
        spatial_dims: 2 or 3.
        latent: number of dimensions of z.
        coarse: the grid of the dense layers, voxels along each axis.
        features: of the convolutions; half as many in the encoder's first three, a half and a quarter at the decoder's
            scales 1/2 and 1.
        levels: scales of the decoder: 3 for 1/4, 1/2 and 1 of the resolution; with 2 or 1 the velocity of the last one
            is enlarged linearly.
        smoothing: standard deviation of the Gaussian, voxels of the last scale; 0 for none. It keeps a constant
            velocity at the border.
    Shapes: input (B, 2, *S), moving, then fixed; output (B, D, *S), the velocity of the mean of z. With `latent` (B, K)
        given, it is decoded, and the fixed image is not looked at. With `posterior` the output is (B, 2 K), mean and
        log variance of z.
    Raises:
        ValueError: for a `coarse` grid with another number of axes, or another shape of the latent vectors.
    References: Krebs et al., DLMIA 2018; IEEE Transactions on Medical Imaging 38(9), 2019. Layers after public
        re-implementations.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        latent: int = 32,
        *,
        coarse: Sequence[int] = (5, 7, 6),
        features: int = 32,
        levels: int = 3,
        smoothing: float = 1.5,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        if len(coarse) != spatial_dims or not 1 <= levels <= 3:
            raise ValueError(f"expected a coarse grid of {spatial_dims} axes and 1 to 3 levels, got {coarse}, {levels}")
        self.spatial_dims, self.latent = d, k = spatial_dims, latent
        self.coarse, self.map_size = [int(n) for n in coarse], [2 * int(n) for n in coarse]
        widths = (2, *[features // 2] * 3, features, features)
        layers: list[nn.Module] = []
        for number, (n_in, n_out) in enumerate(pairwise(widths)):
            layers += [convolution(d, n_in, n_out, stride=1 if number < 2 else 2), nn.LeakyReLU(0.2)]
        self.encoder = nn.Sequential(*layers, convolution(d, features, _CODE), nn.LeakyReLU(0.2))
        self.statistics = nn.Linear(_CODE * math.prod(self.coarse), 2 * k)
        self.map_channels = _MAP
        self.map = nn.Linear(k, _MAP * math.prod(self.map_size))
        outputs = (features, features // 2, features // 4)[:levels]
        inputs = (_MAP + 1, features + 1, features // 2 + 1)[:levels]
        self.decoder = nn.ModuleList(
            nn.Sequential(convolution(d, n_in, n_out), nn.LeakyReLU(0.2))
            for n_in, n_out in zip(inputs, outputs, strict=True)
        )
        self.pool, self.pool_twice = AveragePool(2), AveragePool(4)
        self.flow = convolution(d, outputs[-1], d)
        initialize_layers(self, 0.2)
        nn.init.normal_(self.flow.weight, std=_FLOW_STD)
        nn.init.normal_(self.statistics.weight, std=1 / math.sqrt(self.statistics.in_features))
        nn.init.zeros_(self.statistics.weight[k:])
        nn.init.constant_(self.statistics.bias[k:], _LOG_VARIANCE)
        self.register_buffer("kernel", gaussian_kernel(smoothing), persistent=False)

    def forward(self, image: Tensor, latent: Tensor | None = None, posterior: bool = False) -> Tensor:
        check_pair(image, self.spatial_dims)
        if posterior:
            return self.encode(image)
        if latent is None:
            latent = self.encode(image)[:, : self.latent]
        return self.decode(latent, image[:, :1])

    def encode(self, image: Tensor) -> Tensor:
        """Mean and log variance of z, (B, 2 K), float32, of pairs (B, 2, *S)."""
        features = _onto(self.encoder(image), self.coarse)
        return at_least_float32(self.statistics(features.flatten(1)))

    def decode(self, latent: Tensor, moving: Tensor) -> Tensor:
        """The velocity (B, D, *S), voxels, of latent vectors (B, K) for moving images (B, 1, *S)."""
        if latent.dim() != 2 or latent.shape[1] != self.latent:
            raise ValueError(f"expected latent vectors of shape (B, {self.latent}), got {list(latent.shape)}")
        seen = pad_to_multiple(moving, 4)
        half = self.pool(seen)
        levels = [self.pool_twice(seen), half, seen]
        x = self.map(latent).view([latent.shape[0], self.map_channels] + self.map_size)
        x = _onto(x, list(levels[0].shape[2:]))
        for level, block in enumerate(self.decoder):
            if level > 0:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, levels[level].to(x.dtype)], 1))
        velocity = smoothed(at_least_float32(self.flow(x)), self.kernel)  # type: ignore[arg-type]
        for _ in range(3 - len(self.decoder)):
            velocity = 2 * enlarged(velocity)
        return crop(velocity, list(moving.shape[2:]))


def gaussian_kernel(sd: float) -> Tensor:
    """Weights of unit sum, (W,), of a Gaussian of this standard deviation (voxels); one weight for 0."""
    reach = torch.arange(-round(_REACH * sd), round(_REACH * sd) + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (reach / max(sd, 1e-6)) ** 2)
    return (weights / weights.sum()).float()


def smoothed(field: Tensor, kernel: Tensor) -> Tensor:
    """A field (B, C, *S) smoothed along each axis by a kernel (W,); near the border by what lies inside."""
    width = kernel.shape[0]
    if width == 1:
        return field
    kernel = kernel.to(field.dtype)
    for axis in range(2, field.dim()):
        # Sums and not a convolution, which autocast would round.
        n = field.shape[axis]
        padding = [0] * (2 * (field.dim() - 2))
        padding[2 * (field.dim() - 1 - axis)] = padding[2 * (field.dim() - 1 - axis) + 1] = width // 2
        padded, inside = F.pad(field, padding), F.pad(torch.ones_like(kernel[:1]).expand(n), [width // 2, width // 2])
        total, share = torch.zeros_like(field), torch.zeros_like(inside[:n])
        for k in range(width):
            total = total + kernel[k] * padded.narrow(axis, k, n)
            share = share + kernel[k] * inside[k : k + n]
        field = total / share.view([n] + [1] * (field.dim() - 1 - axis))
    return field


def _onto(values: Tensor, size: list[int]) -> Tensor:
    """Maps (B, C, *S) on a grid of `size` voxels over the same extent."""
    if list(values.shape[2:]) == size:
        return values
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return F.interpolate(
            values, size=size, mode="bilinear" if values.dim() == 4 else "trilinear", align_corners=True
        )
    return resize(values, size)
