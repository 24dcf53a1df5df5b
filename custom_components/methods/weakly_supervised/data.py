"""Pairs of one person's scans, each on a grid about its own centre."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from monai.transforms import Transform

from ...data.lists import is_pair, pair_of
from ...space.grids import fixed_size_grid
from ...space.resampling import resample
from ...space.volumes import load_image
from ...transforms.scan import LoadScand
from ...vocabulary import Data, Entry, Item


class LoadPairOfScansd(Transform):
    """Load a pair of a data list as two scans, or a scan as it is, onto a grid of fixed size.

    So a training takes pairs that belong together (two scans of one person) as well as scans to be paired. The middle
    of each image lies in the middle of the grid. Of a pair's moving image nothing is shown beyond the fixed image's
    field of view, as where a pair is registered; its labels are whole.

    Args:
        spacing, size, center: as for `transforms.scan.LoadScand`; "image" for pairs.
    """

    def __init__(self, spacing: float | Sequence[float], size: Sequence[int], center: str = "image") -> None:
        self.scan = LoadScand(spacing, size, center)

    def __call__(self, data: Data) -> Item:
        """Raises ValueError, FileNotFoundError: as `LoadScand` does."""
        entry: Entry = {str(key): value for key, value in data.items()}
        if not is_pair(entry):
            return self.scan(data)
        sides: list[Entry] = []
        for side in ("moving", "fixed"):
            given = {"image": entry.get(side), "label": entry.get(f"label_{side}"), "mask": entry.get(f"mask_{side}")}
            loaded = self.scan({key: value for key, value in given.items() if value is not None})
            sides.append({str(key): value for key, value in loaded.items() if key in given})
        moving, fixed = sides
        if "image" in moving and "image" in fixed:
            moving["image"] = moving["image"] * self._seen(str(entry["fixed"]))
        return cast(Item, pair_of(moving, fixed))

    def _seen(self, path: str) -> torch.Tensor:
        """Where an image has voxels, (1, *S), 0 or 1."""
        volume = load_image(path)
        grid = fixed_size_grid(self.scan.spacing, self.scan.size, volume.grid.center)
        return (resample(torch.ones_like(volume.data), volume.affine, grid) > 0.5).float()
