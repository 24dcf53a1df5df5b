"""How large a grid must be to hold what scans show."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .grids import center_of_mass
from .volumes import Volume, load_image

_FAINT = 0.1  # times the 99th percentile of the intensities: what is darker is air
_MOST_FILES = 20
_UNIT = 16  # voxels, to a multiple of which sizes are rounded up: networks halve a grid four times


def size_for(files: Sequence[str], spacing: object, center: object) -> list[int]:
    """The size of a grid that holds what each of the images shows, in multiples of 16 voxels.

    Args:
        files: images or label maps, of which at most 20 are read.
        spacing: of the grid, mm, one number or one per axis.
        center: where its middle lies, as `LoadScand` has it: "mass", "image", "world", or coordinates (RAS mm).
    Returns:
        Voxels by axis, RAS.
    """
    step = max(1, len(files) // _MOST_FILES)
    half = np.max([_half_extent(load_image(path), center) for path in files[::step]], axis=0)
    lengths = 2 * half / np.broadcast_to(np.array(spacing, dtype=np.float64), half.shape)
    return [max(2 * _UNIT, math.ceil(length / _UNIT) * _UNIT) for length in lengths]


def _half_extent(volume: Volume, center: object) -> np.ndarray:
    """How far what a scan shows reaches from the middle, mm along each world axis."""
    data = volume.data[0].float()
    data = data - data.min()
    corners = _corners(data > _FAINT * _percentile(data))
    points = (volume.affine @ np.column_stack([corners, np.ones(len(corners))]).T)[:-1].T
    middle = np.zeros(points.shape[1]) if isinstance(center, str) else np.array(center, dtype=np.float64)
    if center == "mass":
        middle = center_of_mass(data, volume.affine)
    elif center == "image":
        middle = volume.grid.center
    return np.abs(points - middle).max(0)


def _percentile(data: Tensor) -> float:
    values = data.flatten()
    return float(torch.quantile(values[:: max(1, len(values) // 1_000_000)], 0.99))


def _corners(shown: Tensor) -> np.ndarray:
    """The corners of the box of what is True (*S), in voxels, (2^D, D); of everything, if nothing is."""
    box = []
    for axis in range(shown.ndim):
        line = shown.movedim(axis, 0).flatten(1).any(1)
        places = torch.nonzero(line).flatten()
        box.append((0.0, shown.shape[axis] - 1.0) if len(places) == 0 else (float(places[0]), float(places[-1])))
    return np.stack([axis.ravel() for axis in np.meshgrid(*box, indexing="ij")], axis=1)
