"""The dictionary transform that loads single scans, for training sets, onto a grid of fixed size.

Convention: a loaded item holds tensors (1, *S) on one grid under `image`, `contrast`, `label` and `mask`, as far as it
names them, `*_path`, and the grid's `grid_affine`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.transforms import Transform

from ..space.dialects import read_affine_transform
from ..space.fit import checked_grid
from ..space.grids import center_of_mass, fixed_size_grid
from ..space.resampling import resample
from ..space.volumes import Volume, load_image, load_labels
from ..vocabulary import Data, Item
from .intensities import scale_intensity
from .labels import load_labels_for


class LoadScand(Transform):
    """Load one scan and its labels onto a RAS grid of fixed size, for training sets that share a template space.

    The entries `image`, `label` and `mask` hold paths; any may be absent, but not all. `contrast` may hold the path of
    another image, aligned with the first. An item's entry `affine` names a transform file that maps template points to
    the scan's points (as written by a registration with the template as fixed image); the scan is then read through
    it, with one interpolation.

    Args:
        spacing: mm, one number or one per axis. size: voxels per axis.
        center: the world point in the middle of the grid: "world" (the origin), "image" (the middle of the file's
            grid), "mass" (centre of mass of the intensities, or of the labels' voxels without image), or coordinates.
    Raises:
        ValueError: for another word as center.
    """

    def __init__(
        self, spacing: float | Sequence[float], size: Sequence[int], center: str | Sequence[float] = "world"
    ) -> None:
        if isinstance(center, str) and center not in ("world", "image", "mass"):
            raise ValueError(f"expected center 'world', 'image', 'mass' or coordinates, got {center!r}")
        self.spacing = spacing
        self.size = size
        self.center = center

    def __call__(self, data: Data) -> Item:
        """Raises ValueError, FileNotFoundError: if a file is no image, or the item has neither image nor labels."""
        result = dict(data)
        images = {key: load_image(str(data[key])) for key in ("image", "contrast") if data.get(key)}
        image = images.get("image")
        maps = {}
        for key in ("label", "mask"):
            if data.get(key):
                path = str(data[key])
                maps[key] = load_labels(path) if image is None else load_labels_for(path, image)
        if image is None and not maps:
            raise ValueError(f"expected an item with image, label or mask, got the keys {sorted(map(str, data))}")
        matrix = read_affine_transform(str(data["affine"])) if data.get("affine") else None
        shown = image or next(iter(maps.values()))
        grid = checked_grid(fixed_size_grid(self.spacing, self.size, self._center(shown)), shown)
        for key, volume in images.items():
            result[key] = resample(
                scale_intensity(volume.data), volume.affine, grid, world_matrix=matrix, antialias=True
            )
            result[f"{key}_path"] = volume.path
        for key, labels in maps.items():
            result[key] = resample(labels.data, labels.affine, grid, world_matrix=matrix, mode="nearest")
            result[f"{key}_path"] = labels.path
        result["grid_affine"] = torch.from_numpy(grid.affine)
        return result

    def _center(self, volume: Volume) -> np.ndarray | None:
        if not isinstance(self.center, str):
            return np.asarray(self.center, dtype=np.float64)
        if self.center == "world":
            return None
        if self.center == "image":
            return volume.grid.center
        data = volume.data[0]
        return center_of_mass(data - data.min() if data.is_floating_point() else data != 0, volume.affine)
