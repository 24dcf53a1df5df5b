"""Affine pre-alignment of two images in the world by a network.

Convention: as in `affine`, world points of the fixed image to world points of the moving image, RAS millimetres.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..affine import centred_to_voxel
from ..files import load_weights
from ..space.affine import image_weights
from ..space.grids import center_of_mass, fixed_size_grid
from ..space.resampling import resample
from ..space.volumes import Volume


class NetworkAligner:
    """Bring both images to one coarse grid, each about its own centre of mass, and ask a network how they lie.

    The grids' axes are those of the world: however a scan is stored, the network sees it upright as far as its header
    is right. An image turned by more than the network was trained for is not found.

    Args:
        network: takes a pair (1, 2, *S), moving then fixed, in [0, 1]; returns the matrix (1, D, D + 1) from fixed to
            moving, centred coordinates (see `affine.centred_to_voxel`).
        spacing: of the grid, mm. size: its voxels along each axis.
        weights: file with the network's state, read at the first call; None leaves the network as it is.
    """

    def __init__(
        self, network: nn.Module, spacing: float, size: Sequence[int], weights: str | os.PathLike | None = None
    ) -> None:
        self.network, self.spacing, self.size = network, float(spacing), tuple(size)
        self.weights = weights

    @torch.no_grad()
    def __call__(self, fixed: Volume, moving: Volume) -> np.ndarray:
        """World matrix (D + 1, D + 1), fixed to moving, of two images with intensities in [0, 1].

        Raises:
            FileNotFoundError: if there is no file of weights.
            ValueError: if an image has another number of axes than the network, or the weights are another network's.
        """
        d = len(self.size)
        images, grids = [], []
        for volume in (moving, fixed):
            if len(volume.grid.size) != d:
                raise ValueError(f"{volume.path}: expected a {d}-D image, for the affine network is {d}-D")
            center = center_of_mass(image_weights(volume.data), volume.affine)
            grids.append(fixed_size_grid(self.spacing, self.size, center))
            images.append(resample(volume.data, volume.affine, grids[-1], antialias=True))
        if self.weights is not None:
            load_weights(self.network.eval(), self.weights, "affine")
            self.weights = None
        device = next((parameter.device for parameter in self.network.parameters()), torch.device("cpu"))
        matrix = np.eye(d + 1)
        found = self.network(torch.cat(images)[None].float().to(device))
        matrix[:d] = centred_to_voxel(found.float().cpu(), self.size)[0].double().numpy()
        return grids[0].affine @ matrix @ np.linalg.inv(grids[1].affine)
