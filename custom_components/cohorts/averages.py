"""One image of many that lie on one grid: their mean or median, sharpened if wanted; the votes of label maps.

The many are arrays in files, of which a slab is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_AT_ONCE = 2**26  # values in memory: 256 MB


class Spread(NamedTuple):
    """An average (C, *S) and the standard deviation about it."""

    image: Tensor
    deviation: Tensor


def averaged(paths: Sequence[Path], weights: Sequence[float], how: str = "mean", *, symmetric: bool = False) -> Spread:
    """The weighted mean or median, voxel by voxel.

    Args:
        paths: .npy files (C, *S), float32. weights: positive, one for each.
        how: "mean", or "median", which a few that fit badly do not blur.
        symmetric: of the images and their mirror images across the middle of the first axis.
    """
    average = {"mean": _mean, "median": _median}[how]

    def of_slab(slab: np.ndarray) -> np.ndarray:
        values = np.concatenate([slab, slab[:, :, ::-1]]) if symmetric else slab
        share = np.tile(np.asarray(weights, dtype=np.float32), 2 if symmetric else 1)
        share = share / share.sum()
        image = average(values, share)
        return np.stack([image, np.sqrt(_mean((values - image) ** 2, share))])

    image, deviation = torch.from_numpy(_in_slabs(paths, of_slab, axis=2))
    return Spread(image, deviation)


def voted(paths: Sequence[Path], weights: Sequence[float]) -> tuple[list[int], Tensor]:
    """The share of each label at each voxel.

    Args:
        paths: .npy files of label maps (1, *S).
        weights: positive, one for each.
    Returns:
        The labels, the background 0 first, and their shares (K, *S), which add up to 1.
    """
    labels = sorted({0, *(int(one) for path in paths for one in np.unique(np.load(path)))})

    def of_slab(slab: np.ndarray) -> np.ndarray:
        share = np.asarray(weights, dtype=np.float32) / np.sum(weights)
        return np.stack([_mean((slab[:, 0] == label).astype(np.float32), share) for label in labels])

    return labels, torch.from_numpy(_in_slabs(paths, of_slab, axis=1))


def majority(labels: Sequence[int], shares: Tensor) -> Tensor:
    """The label with the largest share, (1, *S) int32."""
    return torch.tensor(labels, dtype=torch.int32)[shares.argmax(0, keepdim=True)]


def sharpened(image: Tensor, amount: float) -> Tensor:
    """An image (C, *S) less a part of its Laplacian, which strengthens what an average has blurred.

    Args:
        amount: the part, from 0 to 1.
    """
    if not amount:
        return image
    from scipy import ndimage

    return image - amount * torch.from_numpy(np.stack([ndimage.laplace(one, mode="nearest") for one in image.numpy()]))


def _mean(values: np.ndarray, share: np.ndarray) -> np.ndarray:
    return np.tensordot(share, values, axes=1)


def _median(values: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Where the shares of the sorted values reach a half; between two values if they reach it exactly."""
    order = values.argsort(axis=0)
    reached = np.cumsum(share[order], axis=0)
    ordered = np.take_along_axis(values, order, axis=0)
    low, high = ((reached < 0.5 + sign * 1e-6).sum(0, keepdims=True) for sign in (-1, 1))
    pick = [np.take_along_axis(ordered, np.minimum(k, len(values) - 1), axis=0)[0] for k in (low, high)]
    return (pick[0] + pick[1]) / 2


def _in_slabs(paths: Sequence[Path], function: Callable[[np.ndarray], np.ndarray], axis: int) -> np.ndarray:
    """A function of the stacked arrays (N, ...) whose result has the axes of one, after a first one of its own.

    Args:
        axis: of one result, along which slabs are cut, not the first spatial one of an image that is mirrored.
    """
    maps = [np.load(path, mmap_mode="r") for path in paths]
    spatial = maps[0].shape[1:]
    cut = 1 if len(spatial) > 1 else 0  # the second spatial axis
    others = math.prod(maps[0].shape) // spatial[cut]
    width = max(1, _AT_ONCE // (len(maps) * others))
    slabs = []
    for start in range(0, spatial[cut], width):
        index = (slice(None), *[slice(None)] * cut, slice(start, start + width))
        slabs.append(function(np.stack([one[index] for one in maps])))
    return np.concatenate(slabs, axis=axis + cut)
