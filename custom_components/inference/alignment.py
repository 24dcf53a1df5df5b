"""Affine pre-alignment of two images in the world by a network.

Convention: as in `affine`, world points of the fixed image to world points of the moving image, RAS millimetres.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..affine import centred_to_voxel
from ..space.affine_levels import image_weights
from ..space.grids import Grid, center_of_mass, fixed_size_grid
from ..space.resampling import resample
from ..space.volumes import Volume
from ..weights import FixedNetwork


class NetworkAligner:
    """Resample both images to one coarse grid, each about its own centre of mass, and let a network align them.

    The grids' axes are those of the world: however a scan is stored, the network sees it upright if its header is
    right. The network cannot undo a larger rotation than those it was trained on.

    Args:
        network: takes a pair (1, 2, *S), moving then fixed, in [0, 1]; returns the matrix (1, D, D + 1) from fixed to
            moving, centred coordinates (see `affine.centred_to_voxel`).
        spacing: of the grid, mm.
        size: voxels of the grid along each axis.
        weights: file with the network's state, read at the first call; None leaves the network as it is.
    """

    def __init__(
        self, network: nn.Module, spacing: float, size: Sequence[int], weights: str | os.PathLike[str] | None = None
    ) -> None:
        self.spacing, self.size = float(spacing), tuple(size)
        settings = {"spatial_dims": len(self.size), "spacing": self.spacing}
        self.network = FixedNetwork(network, weights, "affine", settings)

    @torch.no_grad()
    def __call__(self, fixed: Volume, moving: Volume) -> np.ndarray:
        """World matrix (D + 1, D + 1), fixed to moving, of two images with intensities in [0, 1].

        Raises:
            FileNotFoundError: if the file of weights does not exist.
            ValueError: if an image has another number of axes than the network, or the weights do not fit the network.
        """
        d = len(self.size)
        images: list[Tensor] = []
        grids: list[Grid] = []
        for volume in (moving, fixed):
            if len(volume.grid.size) != d:
                raise ValueError(f"{volume.path}: expected a {d}-D image, for the affine network is {d}-D")
            center = center_of_mass(image_weights(volume.data), volume.affine)
            grids.append(fixed_size_grid(self.spacing, self.size, center))
            images.append(resample(volume.data, volume.affine, grids[-1], antialias=True))
        network = self.network.on()
        device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
        matrix = np.eye(d + 1)
        output: Tensor = network(torch.cat(images)[None].float().to(device))
        matrix[:d] = centred_to_voxel(output.float().cpu(), self.size)[0].double().numpy()
        return grids[0].affine @ matrix @ np.linalg.inv(grids[1].affine)
