"""Distance between the surfaces of corresponding structures, from signed distance maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..fields import sample, transform_points


class SurfaceDistance(nn.Module):
    """0.5 / sigma^2 * mean squared distance of warped surface points of one image from the same surface of the other.

    Points are drawn on the surfaces of the fixed labels, anew at each call; phi takes them into the moving space, where
    the moving label's signed distance map says how far they are from its surface. Labels that one of the two images
    lacks do not count. The mean of both directions is the reference's 1 / (4 sigma^2) for each.

    Args:
        sigma_mm: standard deviation of the distance, in the maps' unit (mm, see `transforms.surfaces.SignedDistanced`).
        num_points: drawn for each sample of the batch, on all its surfaces together, large ones more often.
    References: Dalca et al., Medical Image Analysis 57, 2019.
    """

    def __init__(self, sigma_mm: float = 1.0, num_points: int = 5000) -> None:
        super().__init__()
        self.sigma_mm, self.num_points = sigma_mm, num_points

    def forward(self, ddf: Tensor, moving: Tensor, fixed: Tensor) -> Tensor:
        """The loss, a scalar; 0 if the images have no label in common.

        Args:
            ddf: shape (B, D, *S), voxels, fixed to moving.
            moving, fixed: signed distance maps of K labels, shape (B, K, *S), negative inside.
        """
        if moving.shape != fixed.shape or moving.shape[2:] != ddf.shape[2:]:
            raise ValueError(
                f"expected distance maps (B, K, *S) for a field of shape {tuple(ddf.shape)}, "
                f"got {tuple(moving.shape)} and {tuple(fixed.shape)}"
            )
        means = []
        for i in range(ddf.shape[0]):
            both = (moving[i].flatten(1).amin(1) < 0) & (fixed[i].flatten(1).amin(1) < 0)
            points, labels = draw_surface_points(fixed[i, both], self.num_points)
            if not len(points):
                continue
            warped = transform_points(points[None].to(ddf.dtype), ddf[i : i + 1])
            locations = warped.mT.unflatten(2, (-1, *[1] * (ddf.ndim - 3)))
            distance = sample(moving[i : i + 1, both], locations, padding="border")[0].flatten(1)
            means.append(distance.gather(0, labels[None]).square().mean())
        total = torch.stack(means).sum() if means else ddf.sum() * 0
        return 0.5 * total / (self.sigma_mm**2 * ddf.shape[0])


def draw_surface_points(
    distance: Tensor, num_points: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Random points of the surfaces: where a line between neighbouring voxels crosses the zero level.

    Args:
        distance: signed distance maps of K labels, shape (K, *S).
        num_points: drawn with replacement from all crossings of all labels.
    Returns:
        Points (N, D), voxels, and the index of the label of each, (N,); N = 0 if there is no surface.
    """
    crossings, points = [], []
    for axis in range(1, distance.ndim):
        n = distance.shape[axis]
        low, high = distance.narrow(axis, 0, n - 1), distance.narrow(axis, 1, n - 1)
        found = ((low < 0) != (high < 0)).nonzero()
        at = tuple(found.T)
        offset = torch.zeros(len(found), distance.ndim - 1, dtype=distance.dtype, device=distance.device)
        offset[:, axis - 1] = low[at] / (low[at] - high[at])
        crossings.append(found[:, 0])
        points.append(found[:, 1:] + offset)
    labels, positions = torch.cat(crossings), torch.cat(points)
    if len(labels):
        drawn = torch.randint(len(labels), (num_points,), generator=generator, device=labels.device)
        labels, positions = labels[drawn], positions[drawn]
    return positions, labels
