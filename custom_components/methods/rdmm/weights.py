"""Weights of spatially varying metrics: their maps, their smoothing, and what makes them of raw numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...deformations.kernels import Spacing, gaussian_kernel
from ...fields import at_least_float32, per_channel


def smooth_weights(weights: Tensor, sigma: float, spacing: Spacing = 1.0) -> Tensor:
    """G applied to each channel of (B, N, *S): a Gaussian of unit sum on the grid mirrored at its ends.

    It is symmetric and leaves constants as they are. `sigma` is in the unit of the spacing, 0 returns the weights.
    """
    if sigma == 0:
        return weights
    return gaussian_kernel(sigma, padding="reflect").each(weights.unsqueeze(1), spacing)[:, 0]


def border_mask(
    size: Sequence[int],
    margin: int | Sequence[int],
    sigma: float,
    spacing: Spacing = 1.0,
    *,
    like: Tensor | None = None,
) -> Tensor:
    """The square of a smoothed indicator of the interior, (1, 1, *size): a factor that stops velocities at the border.

    Args:
        margin: voxels at each end that are not interior, one number or one for each axis.
        sigma: standard deviation of the Gaussian, in the unit of the spacing; beyond the grid the indicator is 0.
        like: a tensor of the wanted type and device.
    Raises:
        ValueError: if no interior is left.
    """
    margins = [margin] * len(size) if isinstance(margin, int) else list(margin)
    if any(m < 0 or 2 * m >= n for m, n in zip(margins, size, strict=True)):
        raise ValueError(f"expected a margin that leaves an interior of {tuple(size)} voxels, got {margin}")
    inside = torch.zeros(1, 1, *size) if like is None else like.new_zeros(1, 1, *size)
    inside[(slice(None), slice(None), *[slice(m, n - m) for m, n in zip(margins, size, strict=True)])] = 1
    if sigma == 0:
        return inside
    return gaussian_kernel(sigma, padding="zeros").each(inside.unsqueeze(1), spacing)[:, 0].square()


def softmax_weights(x: Tensor, base: Sequence[float], *, squared: bool = False, limit: float = 1.5) -> Tensor:
    """Weights proportional to base_i exp(l_i), l = limit * tanh(x / limit): x = 0 gives the base.

    Args:
        x: shape (B, N, *S).
        base: N positive weights; they are divided by their sum.
        squared: the squares of the result sum to one, sqrt(base_i) exp(l_i), and x = 0 gives the roots of the base.
            This is softmax(l') / |softmax(l')| with l'_i = 1/2 log base_i + l_i.
        limit: of the logits.
    Raises:
        ValueError: if the base is not positive or has another number of weights.
    References: Shen et al., NeurIPS 2019; a smooth limit instead of a hard one, and on what x adds to the base.
    """
    shares = _base(base, x)
    logits = limit * torch.tanh(at_least_float32(x) / limit)
    weights = torch.softmax(shares.log() + (2 if squared else 1) * logits, 1)
    return weights.sqrt() if squared else weights


def weighted_linear_softmax(
    x: Tensor, base: Sequence[float], *, squared: bool = False, minimum: float = 1e-3, limit: float = 1.5
) -> Tensor:
    """Weights base_i + x_i - mean(x), clamped to [0, 1] and divided by their sum: x = 0 gives the base.

    Args:
        x: shape (B, N, *S).
        base: N positive weights; they are divided by their sum.
        squared: the squares of the result sum to one: the roots of the base take the place of the base, the root of the
            sum of squares that of the sum.
        minimum: of the result.
        limit: x is first clamped to [-limit, limit].
    Raises:
        ValueError: if the base is not positive, has another number of weights, or one that the minimum would raise.
    References: Niethammer et al., CVPR 2019 (minimum, limit and squares are those of the authors' code).
    """
    shares = _base(base, x)
    power, start = (2, shares.sqrt()) if squared else (1, shares)
    # What is set to this before the weights are divided by their sum is not below the minimum after.
    rest = 1 - shares.numel() * minimum**power
    lowest = minimum / rest ** (1 / power) if rest > 0 else float("inf")
    least = min(base) / sum(base)
    if minimum < 0 or (math.sqrt(least) if squared else least) < lowest:
        raise ValueError(
            f"expected a minimum of at least 0 and below the base {[round(b, 6) for b in shares.flatten().tolist()]}"
            f"{' (its roots)' if squared else ''}, got {minimum}"
        )
    x = at_least_float32(x).clamp(-limit, limit)
    weights = (start + x - x.mean(1, keepdim=True)).clamp(0, 1)
    weights = normalized(weights, power)
    return normalized(weights.clamp(min=lowest), power)


def label_weights(
    labels: Tensor,
    regions: Mapping[int, Sequence[float]],
    elsewhere: Sequence[float],
    *,
    sigma: float = 0.0,
    spacing: Spacing = 1.0,
) -> Tensor:
    """Pre-weights from the moving image's label map: each label's weights, smoothed; their squares sum to one.

    Args:
        labels: integer label map (B, 1, *S).
        regions: N weights for each label that has its own, at least 0; they are divided by their sum, and the roots
            taken.
        elsewhere: those of all other labels.
        sigma: standard deviation of a Gaussian that smooths the steps between them, in the unit of the spacing.
    Returns:
        Shape (B, N, *S).
    Raises:
        ValueError: if weights are negative, all 0, or of different number.
    References: Shen et al., NeurIPS 2019 (pre-defined regulariser).
    """
    for name, weights in [("the rest", elsewhere), *((f"label {key}", regions[key]) for key in regions)]:
        if len(weights) != len(elsewhere) or min(weights, default=-1) < 0 or sum(weights) == 0:
            raise ValueError(f"expected {len(elsewhere)} weights of at least 0 for {name}, got {tuple(weights)}")

    def roots(weights: Sequence[float]) -> Tensor:
        values = per_channel(weights, labels.float())
        return (values / values.sum()).sqrt()

    result = roots(elsewhere).expand(labels.shape[0], -1, *labels.shape[2:])
    for label, weights in regions.items():
        result = torch.where(labels == label, roots(weights), result)
    return normalized(smooth_weights(result, sigma, spacing), 2)


def normalized(weights: Tensor, power: int) -> Tensor:
    """Weights (B, N, *S) whose `power`-th powers, 1 or 2, sum to one."""
    if power == 1:
        return weights / weights.sum(1, keepdim=True)
    return weights / weights.square().sum(1, keepdim=True).sqrt()


def _base(base: Sequence[float], x: Tensor) -> Tensor:
    """The base as shares, (1, N, 1, ...), of the type of x but at least float32."""
    if len(base) != x.shape[1] or min(base) <= 0:
        raise ValueError(f"expected {x.shape[1]} positive base weights for x of shape {tuple(x.shape)}, got {base}")
    shares = per_channel(base, at_least_float32(x))
    return shares / shares.sum()
