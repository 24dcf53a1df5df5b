"""From pairs to latent vectors and back: what registration, sampling, interpolation and transport have in common."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ...inference.prediction import Network, Precision

_FULL = Precision()


def posterior(network: Network, image: Tensor, precision: Precision = _FULL) -> Tensor:
    """Mean and log variance of z, (B, 2 K), of pairs (B, 2, *S), as a `LatentNetwork` says."""
    return precision.run(network, image, posterior=True)


def decode(network: Network, latent: Tensor, image: Tensor, precision: Precision = _FULL) -> Tensor:
    """The velocity (B, D, *S), voxels, of latent vectors (B, K) for moving images.

    Args:
        image: (B, 2, *S), of which the moving images alone count, or (B, 1, *S), the moving images.
    """
    pair = torch.cat([image, image], 1) if image.shape[1] == 1 else image
    return precision.run(network, pair, latent=latent)


def sampled(network: Network, moving: Tensor, latent: int, generator: Generator | None = None) -> Tensor:
    """Velocities (B, D, *S) drawn from the prior z ~ N(0, I) for moving images (B, 1, *S).

    Args:
        latent: number of dimensions of z.
        generator: of the noise, which is drawn on the CPU.
    """
    noise = torch.randn(moving.shape[0], latent, generator=generator)
    return decode(network, noise.to(moving), moving)


def interpolated(network: Network, first: Tensor, second: Tensor, t: float) -> Tensor:
    """The velocity of (1 - t) z_1 + t z_2 for the moving images of the first pairs.

    Args:
        first, second: pairs (B, 2, *S), of one size.
        t: 0 is the first pairs' own velocity, 1 that of the second ones, transported.
    """
    ends = [posterior(network, image).chunk(2, 1)[0] for image in (first, second)]
    return decode(network, torch.lerp(ends[0], ends[1], t), first)


def transported(network: Network, image: Tensor, moving: Tensor) -> Tensor:
    """One subject's deformation for another's anatomy: z of pairs (B, 2, *S), decoded with `moving` (B, 1, *S')."""
    return decode(network, posterior(network, image).chunk(2, 1)[0], moving)
