"""Where the images of a group lie: a grid that is nobody's own, of a volume or of one slice."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ..notices import warn
from ..space.files import write_image, write_voxels
from ..space.grids import Grid, model_grid
from ..space.planes import lift_grid, lift_steps
from ..space.resampling import Step, fading
from ..space.transform import Transform
from ..space.volumes import Volume


@dataclass(frozen=True)
class Place:
    """A grid; of slices it is 2-D, and its files lie in the plane of one of them.

    Args:
        grid: voxel axes along R, A, S.
        frame: of the plane (4, 4), see `space.planes`.
        thickness_mm: of the slice.
        is_slice: whether files are slices of the 3-D world.
    """

    grid: Grid
    frame: np.ndarray
    thickness_mm: float = 1.0
    is_slice: bool = False

    @classmethod
    def of(cls, volume: Volume, spacing_mm: float | Sequence[float] | None = None) -> Place:
        """That of an image, its axes in the order R, A, S, with its own or another spacing."""
        grid = model_grid(volume.affine, volume.grid.size, spacing_mm)
        return cls(grid, volume.frame, volume.thickness_mm if volume.is_slice else 1.0, volume.is_slice)

    def write(self, path: str | os.PathLike[str], image: Tensor) -> None:
        """An image (1, *S), or several (K, *S) along a fourth axis, on the grid."""
        if not self.is_slice:
            write_image(path, image, self.grid.affine)
            return
        array = image.numpy()
        array = array[0, ..., None] if len(array) == 1 else np.moveaxis(array, 0, -1)[:, :, None]
        write_voxels(path, array, lift_grid(self.grid, self.frame, self.thickness_mm).affine)

    def write_transforms(
        self, names: Sequence[Path], volume: Volume, steps: Sequence[Step], back: Sequence[Step]
    ) -> None:
        """The map from here to an image's points and its inverse, as they apply to the points of files (.h5).

        Without the package `itk` there are none, and the log says so.

        Args:
            names: of both files.
            volume: the image.
            steps: from the grid's points to the image's. back: the other way.
        """
        if importlib.util.find_spec("itk") is None:
            warn("no transforms are written: itk is not installed (pip install 'morphzoo[demo]')")
            return
        forth, home = fading(steps), fading(back)
        if self.is_slice or volume.is_slice:
            ends = self.frame, volume.frame
            forth = lift_steps(forth, ends[0], self.frame, ends[1], self.thickness_mm)
            home = lift_steps(home, ends[1], self.frame, ends[0], self.thickness_mm)
        for name, one in zip(names, (forth, home), strict=True):
            Transform(tuple(one)).save(name)
