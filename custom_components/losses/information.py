"""Normalised mutual information, which hardly depends on how much of the images overlaps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .similarity import checked_images

_TINY = 1e-10


class NormalizedMutualInformation(nn.Module):
    """-(H(warped) + H(fixed)) / H(warped, fixed), from -2 (one is a function of the other) to -1 (independent).

    Each voxel's intensity is spread over the neighbouring bins by a cubic B-spline.

    Args:
        num_bins: histogram bins over [0, 1], the range the images must have.
        num_samples: voxels drawn for each call and sample of the batch; all voxels if there are fewer.
        seed: the same voxels are drawn at each call if given; new ones from torch's global generator if None.
    Raises:
        ValueError: for fewer than 4 bins.
    References: Studholme, Hill, Hawkes, An overlap invariant entropy measure of 3D medical image alignment, Pattern
        Recognition 32(1), 1999.
    """

    def __init__(self, num_bins: int = 32, num_samples: int = 50_000, seed: int | None = None) -> None:
        super().__init__()
        if num_bins < 4:
            raise ValueError(f"expected at least 4 bins, got {num_bins}")
        self.num_bins, self.num_samples, self.seed = num_bins, num_samples, seed

    def forward(self, warped: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        warped, fixed, mask = checked_images(warped, fixed, mask)
        device = warped.device
        generator = None if self.seed is None else torch.Generator(device).manual_seed(self.seed)
        values = []
        for i in range(len(warped)):
            pair = torch.stack([warped[i].flatten(), fixed[i].flatten()])
            weights = torch.ones_like(pair[1]) if mask is None else mask.expand_as(warped)[i].flatten()
            if pair.shape[1] > self.num_samples:
                drawn = torch.randint(pair.shape[1], (self.num_samples,), device=device, generator=generator)
                pair, weights = pair[:, drawn], weights[drawn]
            values.append(self._value(pair, weights))
        return torch.stack(values).mean()

    def _value(self, pair: Tensor, weights: Tensor) -> Tensor:
        shares = self._shares(pair)
        joint = (shares[0] * weights[:, None]).T @ shares[1]
        joint = joint / joint.sum().clamp(min=_TINY)
        both = _entropy(joint.sum(0)) + _entropy(joint.sum(1))
        return -both / _entropy(joint.flatten()).clamp(min=1e-6)

    def _shares(self, pair: Tensor) -> Tensor:
        """How much each value counts in each bin, (2, N, bins)."""
        centers = torch.arange(self.num_bins, dtype=pair.dtype, device=pair.device)
        # The outer bins are left for the spline's reach.
        places = 1 + pair.clamp(0, 1) * (self.num_bins - 3)
        far = (places[:, :, None] - centers).abs()
        return torch.where(far < 1, 2 / 3 - far.square() + far**3 / 2, (2 - far).clamp(min=0) ** 3 / 6)


def _entropy(shares: Tensor) -> Tensor:
    return -(shares * (shares + _TINY).log()).sum()
