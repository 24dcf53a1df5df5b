"""Affine pre-alignment of two images in the world by a network.

Convention: as in `affine`, world points of the fixed image to world points of the moving image, RAS millimetres.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ...fields import centred_to_voxel
from .affine import image_weights
from .grids import center_of_mass, fixed_size_grid
from .resampling import resample
from .volumes import Volume


class NetworkAligner:
    """Bring both images to one coarse grid, each about its own centre of mass, and ask a network how they lie.

    The grids' axes are those of the world: however a scan is stored, the network sees it upright as far as its header
    is right. An image turned by more than the network was trained for is not found.

    Args:
        network: takes a pair (1, 2, *S), moving then fixed, in [0, 1]; returns the matrix (1, D, D + 1) from fixed to
            moving, centred coordinates (see `fields.centred_to_voxel`).
        spacing: of the grid, mm. size: its voxels along each axis.
        scale: makes the intensities of an image (1, *S) lie in [0, 1].
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        spacing: float,
        size: Sequence[int],
        scale: Callable[[Tensor], Tensor],
    ) -> None:
        self.network, self.spacing, self.size, self.scale = network, float(spacing), tuple(size), scale

    @torch.no_grad()
    def __call__(self, fixed: Volume, moving: Volume) -> np.ndarray:
        """World matrix (D + 1, D + 1), fixed to moving.

        Raises:
            ValueError: if an image has another number of axes than the network.
        """
        d = len(self.size)
        images, grids = [], []
        for volume in (moving, fixed):
            if len(volume.grid.size) != d:
                raise ValueError(f"{volume.path}: expected a {d}-D image, for the affine network is {d}-D")
            center = center_of_mass(image_weights(volume.data), volume.affine)
            grids.append(fixed_size_grid(self.spacing, self.size, center))
            images.append(resample(self.scale(volume.data), volume.affine, grids[-1], antialias=True))
        matrix = np.eye(d + 1)
        found = self.network(torch.cat(images)[None].float())
        matrix[:d] = centred_to_voxel(found.float().cpu(), self.size)[0].double().numpy()
        return grids[0].affine @ matrix @ np.linalg.inv(grids[1].affine)
