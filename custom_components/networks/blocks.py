"""Layers by number of axes, and what several networks do to their inputs and initial weights.

Everything here that a network's `forward` calls works under TorchScript.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..repeatable import block_means, resize


def convolution(
    spatial_dims: int, n_in: int, n_out: int, width: int = 3, *, stride: int = 1, bias: bool = True
) -> nn.Conv2d | nn.Conv3d:
    """A convolution of 2-D or 3-D images, padded so that an odd width and stride 1 keep the size."""
    layer = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
    return layer(n_in, n_out, width, stride=stride, padding=width // 2, bias=bias)


def transposed_convolution(
    spatial_dims: int, n_in: int, n_out: int, width: int = 2, *, padding: int = 0
) -> nn.ConvTranspose2d | nn.ConvTranspose3d:
    """A transposed convolution of stride 2; a width of 2 doubles the size."""
    layer = nn.ConvTranspose3d if spatial_dims == 3 else nn.ConvTranspose2d
    return layer(n_in, n_out, width, stride=2, padding=padding)


def max_pool(spatial_dims: int, *, ceil_mode: bool = False) -> nn.Module:
    """The largest value of each block of 2 voxels along each axis."""
    layer = nn.MaxPool3d if spatial_dims == 3 else nn.MaxPool2d
    return layer(2, ceil_mode=ceil_mode)


class AveragePool(nn.Module):
    """The mean of each window of `width` voxels, an odd one with `padding`; what is padded does not count."""

    def __init__(self, width: int = 2, *, stride: int | None = None, padding: bool = False) -> None:
        super().__init__()
        self.width, self.padding = width, padding
        self.stride = width if stride is None else stride

    def forward(self, image: Tensor) -> Tensor:
        beyond = self.width // 2 if self.padding else 0
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            if image.ndim == 4:
                return F.avg_pool2d(image, self.width, self.stride, beyond, count_include_pad=False)
            return F.avg_pool3d(image, self.width, self.stride, beyond, count_include_pad=False)
        return block_means(image, [self.width] * (image.ndim - 2), stride=self.stride, padding=self.padding)


def enlarged(values: Tensor) -> Tensor:
    """Twice as many voxels along each axis, (B, C, *S) to (B, C, *2S), linearly, with a gradient that can be repeated.

    Voxel centres lie as those of averaged blocks do.
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        mode = "trilinear" if values.dim() == 5 else "bilinear"
        return F.interpolate(values, scale_factor=2.0, mode=mode, align_corners=False)
    return resize(values, scale_factor=2.0, align_corners=False)


def initialize_layers(network: nn.Module, slope: float = 0.0) -> None:
    """Start weights as He et al. (ICCV 2015) for a leaky ReLU of this negative slope, and biases at 0.

    It draws for the convolutions and dense layers in the order of `network.modules()`.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, a=slope)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_spatial_dims(spatial_dims: int) -> None:
    """Raises ValueError: unless they are 2 or 3."""
    if spatial_dims not in (2, 3):
        raise ValueError(f"expected spatial_dims 2 or 3, got {spatial_dims}")


def check_pair(image: Tensor, spatial_dims: int) -> None:
    """Refuse what is no pair of images of one channel each.

    Raises:
        ValueError: unless the shape is (B, 2, *S) with this number of axes.
    """
    if image.dim() != spatial_dims + 2 or image.shape[1] != 2:
        raise ValueError(
            f"expected a pair of {spatial_dims}-D images of one channel each, got shape {list(image.shape)}"
        )


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Zeros at the ends of (B, C, *S), up to the next multiple along each axis."""
    padding: list[int] = []
    for n in image.shape[2:][::-1]:
        padding.extend([0, (multiple - n % multiple) % multiple])
    return F.pad(image, padding)


def crop(field: Tensor, size: list[int]) -> Tensor:
    """The first voxels of (B, C, *S) along each axis: what padding at the ends added is gone."""
    for axis, n in enumerate(size):
        field = field.narrow(axis + 2, 0, n)
    return field


def half(size: list[int]) -> list[int]:
    """The size of the grid of half the resolution, rounded up."""
    return [(n + 1) // 2 for n in size]
