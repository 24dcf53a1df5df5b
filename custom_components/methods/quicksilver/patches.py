"""Whole images through a network of patches: where the patches lie, and the average of their answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...fields import pad_ends


def patch_starts(size: Sequence[int], patch: int, step: int) -> Iterator[tuple[int, ...]]:
    """First voxels of the patches that cover a grid: every `step` along each axis, and one that ends with the grid."""
    axes = [sorted({*range(0, n - patch + 1, step), n - patch}) for n in size]
    return itertools.product(*axes)


def pad_to_patches(image: Tensor, patch: int, stride: int) -> Tensor:
    """Zeros at the ends of (B, C, *S), so that it holds whole blocks of `stride` voxels and at least one patch."""
    return pad_ends(image, [stride * max(patch, -(-n // stride)) for n in image.shape[2:]])


def cut(values: Tensor, start: Sequence[int], patch: int, stride: int = 1) -> Tensor:
    """The patch of (C, *S) that begins at a place of the grid `stride` times coarser."""
    return values[(slice(None), *[slice(s * stride, (s + patch) * stride) for s in start])]


def brightest(image: Tensor, patch: int, stride: int) -> Tensor:
    """Largest value in each patch of padded images (B, C, *S), for every start: (B, *[S / stride - patch + 1])."""
    pool = F.max_pool2d if image.ndim == 4 else F.max_pool3d
    return pool(pool(image.float().amax(1, keepdim=True), stride), patch, 1)[:, 0]


def predict_in_patches(
    image: Tensor,
    network: Callable[[Tensor], Tensor],
    channels: int,
    *,
    patch: int = 15,
    step: int = 14,
    stride: int = 1,
    background: float = 0.0,
    batch_size: int = 64,
) -> Tensor:
    """Run a network on overlapping patches and average.

    Args:
        image: shape (B, 2C, *S), moving then fixed.
        network: patches (N, 2C, *[patch * stride]) to (N, channels, *[patch]).
        channels: of the result.
        patch: edge length on the result's grid; step: distance of neighbouring patches there.
        stride: image voxels per voxel of the result.
        background: patches where no image exceeds this are left out; the result is 0 where no other patch lies.
        batch_size: patches at a time.
    Returns:
        Shape (B, channels, *ceil(S / stride)), float32.
    """
    size = [-(-n // stride) for n in image.shape[2:]]
    image = pad_to_patches(image, patch, stride)
    coarse = [n // stride for n in image.shape[2:]]
    total = torch.zeros(len(image), channels, *coarse, device=image.device)
    count = torch.zeros(len(image), 1, *coarse, device=image.device)
    shown = (brightest(image, patch, stride) > background).cpu()
    places = [(b, s) for b in range(len(image)) for s in patch_starts(coarse, patch, step) if shown[(b, *s)]]
    for first in range(0, len(places), batch_size):
        chunk = places[first : first + batch_size]
        answers = network(torch.stack([cut(image[b], start, patch, stride) for b, start in chunk])).float()
        for (b, start), answer in zip(chunk, answers, strict=True):
            cut(total[b], start, patch).add_(answer)
            cut(count[b], start, patch).add_(1)
    inside = (slice(None), slice(None), *[slice(n) for n in size])
    return (total / count.clamp(min=1))[inside]
