"""From the answer of a registration to its estimated error, on any grid."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor, nn

from ...space.grids import Grid, canonical_grid, model_grid
from ...space.resampling import resample
from ...weights import FixedNetwork
from .network import ErrorUNet
from .simulation import as_input


class ErrorEstimator:
    """A network and its weights, which are loaded at the first use.

    Args:
        weights: file of the network's weights; None uses the network as it is.
        network: default: `ErrorUNet()`.
        spacing: of the network's voxels, mm.
        device: where the network runs.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        network: nn.Module | None = None,
        *,
        spacing: float = 2.0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.spacing, self.device = spacing, torch.device(device)
        network, settings = ErrorUNet() if network is None else network, {"spatial_dims": 3, "spacing": spacing}
        self.network = FixedNetwork(network, weights, "error estimation", settings)

    @torch.no_grad()
    def __call__(self, fixed: Tensor, warped: Tensor, ddf: Tensor | None, grid: Grid) -> Tensor:
        """The estimated error in mm, (1, *S), on a 3-D grid.

        Args:
            fixed, warped: images (1, *S) in [0, 1] on the grid.
            ddf: the displacement (D, *S) in voxels of the grid, or None if it is not known.
        Raises:
            FileNotFoundError, ValueError: if the weights are missing or another network's, or the images are not 3-D.
        """
        image, own = network_input(fixed, warped, ddf, grid, self.spacing)
        error = self.network.on(self.device)(image[None].to(self.device))[0].float().cpu()
        return resample(error, own.affine, grid, padding="border")


def network_input(
    fixed: Tensor, warped: Tensor, ddf: Tensor | None, grid: Grid, spacing: float = 2.0
) -> tuple[Tensor, Grid]:
    """An answer as the network sees it (2 + D, *S'), on a grid of its spacing, and this grid; arguments as for
    `ErrorEstimator`.

    Raises:
        ValueError: for images that are not 3-D.
    """
    if len(grid.size) != 3 or min(grid.size) < 2:
        raise ValueError(f"the error of a registration is estimated for 3-D images alone, got {tuple(grid.size)}")
    canonical = canonical_grid(grid)
    own = model_grid(canonical.affine, canonical.size, spacing)
    images = [resample(image.float(), grid.affine, own, antialias=True, padding="border") for image in (fixed, warped)]
    if ddf is None:
        field = torch.zeros(3, *own.size)
    else:
        steps = np.linalg.solve(own.affine[:3, :3], grid.affine[:3, :3]) * own.spacing[:, None]
        millimetres = torch.einsum("ij,j...->i...", torch.from_numpy(steps).float(), ddf.float())
        field = resample(millimetres, grid.affine, own, padding="border")
    return as_input(images[0][None], images[1][None], field[None], 1.0)[0], own
