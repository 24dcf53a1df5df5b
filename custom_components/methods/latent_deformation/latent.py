"""From pairs to latent vectors and back: what registration, sampling, interpolation and transport have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from ...inference.prediction import Network, Precision

_FULL = Precision()


def posterior(network: Network, image: Tensor, precision: Precision = _FULL) -> Tensor:
    """Mean and log variance of z, (B, 2 K), of pairs (B, 2, *S), as a `LatentNetwork` says."""
    return precision.run(network, image, posterior=True)


def decode(network: Network, latent: Tensor, image: Tensor, precision: Precision = _FULL) -> Tensor:
    """The velocity (B, D, *S), voxels, of latent vectors (B, K) for moving images.

    Args:
        network: a `LatentNetwork`.
        latent: shape (B, K).
        image: (B, 2, *S), of which the moving images alone count, or (B, 1, *S), the moving images.
        precision: see `inference.prediction.Precision`.
    """
    pair = torch.cat([image, image], 1) if image.shape[1] == 1 else image
    return precision.run(network, pair, latent=latent)
