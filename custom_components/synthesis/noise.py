"""Random numbers of synthesis: uniform draws, smooth noise, Gaussian blur."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Draw = dict[str, Tensor]
Range = tuple[float, float]


def smooth_noise(
    size: Sequence[int], scale: float, std: float | Tensor, generator: Generator, *, channels: int = 1
) -> Tensor:
    """Gaussian noise with one value in about `scale` voxels, linearly interpolated.

    Args:
        std: of the values before interpolation; a tensor (B,) gives a batch of B, a number a batch of 1.
    Returns:
        Shape (B, channels, *size), on the generator's device.
    """
    std = torch.as_tensor(std, device=generator.device).view(-1, *[1] * (len(size) + 1))
    coarse = [max(2, round(n / scale) + 1) for n in size]
    noise = torch.randn(std.shape[0], channels, *coarse, generator=generator, device=generator.device)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return F.interpolate(std * noise, size=tuple(size), mode=mode, align_corners=True)


def gaussian_blur(image: Tensor, sigma: float | Tensor, *, radius: int | None = None) -> Tensor:
    """Separable Gaussian smoothing of (B, C, *S), border values continued.

    Args:
        image: shape (B, C, *S).
        sigma: in voxels: one number, or a tensor (B, D), a value for each sample and axis; at least 0.
        radius: of the kernel in voxels; default 3 sigma, to be given with a tensor (reading one stalls a GPU).
    Raises:
        ValueError: for sigmas in a tensor without a radius.
    """
    axes = image.ndim - 2
    if not isinstance(sigma, Tensor):
        radius = math.ceil(3 * sigma) if radius is None else radius
        sigma = image.new_full((1, axes), sigma)
    if radius is None:
        raise ValueError("expected a radius for sigmas given as a tensor")
    if radius == 0:
        return image
    sigma = sigma.to(image)
    offsets = torch.arange(-radius, radius + 1, device=image.device)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3).unsqueeze(-1)) ** 2)
    kernel = (kernel / kernel.sum(-1, keepdim=True)).view(*sigma.shape, -1, *[1] * (axes + 1))
    for axis in range(axes):
        n = image.shape[axis + 2]
        index = torch.arange(-radius, n + radius, device=image.device).clamp(0, n - 1)
        padded = image.index_select(axis + 2, index)
        weights = kernel[:, axis].unbind(1)
        image = weights[0] * padded.narrow(axis + 2, 0, n)
        for i, weight in enumerate(weights[1:], 1):
            image = torch.addcmul(image, weight, padded.narrow(axis + 2, i, n))
    return image


def uniform(bounds: Sequence[float], shape: Sequence[int], generator: Generator) -> Tensor:
    """Draws from U(low, high), float32, on the generator's device."""
    low, high = bounds
    return low + (high - low) * torch.rand(*shape, generator=generator, device=generator.device)


def pass_over(generator: Generator, *shapes: Sequence[int]) -> None:
    """Leave a generator as draws from U(0, 1) of these shapes would."""
    for shape in shapes:
        torch.rand(*shape, generator=generator, device=generator.device)
