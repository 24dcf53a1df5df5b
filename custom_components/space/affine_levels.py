"""Two images as an affine alignment sees them at one resolution: samples of the fixed one, a moving one to look up.

Convention: world points are RAS millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..fields import sample
from ..notices import warn
from .grids import Grid
from .information import MovingScan, SampledInformation
from .volumes import Volume

_VOXELS = {2: (2**16, 2**13, 2**10), 3: (2**20, 2**17, 2**14)}  # of the fixed image: 2, 4 and 8 mm for a head


@dataclass(frozen=True)
class Scan:
    """An image (1, *S) on its grid, with the weight of each voxel (1, *S), from 0 to 1."""

    image: Tensor
    weights: Tensor
    grid: Grid

    def reduced(self, spacing_mm: float) -> Scan:
        """The same in means of blocks of voxels, along each axis as many as stay within a spacing."""
        most = (spacing_mm / self.grid.spacing + 0.25).astype(int)
        blocks = [max(1, min(n, int(block))) for n, block in zip(self.grid.size, most, strict=True)]
        if max(blocks) == 1:
            return self
        pool = F.avg_pool3d if len(blocks) == 3 else F.avg_pool2d
        image, weights = (pool(values[None], blocks)[0] for values in (self.image, self.weights))
        placed = np.diag([*map(float, blocks), 1.0])
        placed[:-1, -1] = [(block - 1) / 2 for block in blocks]
        return Scan(image, weights, Grid(self.grid.affine @ placed, tuple(image.shape[1:])))

    def foreground(self) -> Tensor:
        """How much each voxel (*S) stands out from its background, which may be dark or bright, times its weight."""
        return image_weights(self.image) * self.weights[0]

    def binned(self, num_bins: int) -> Tensor:
        """The image in bins, from 0 to num_bins - 1; a few bright voxels would leave most bins empty."""
        shown = self.image[self.weights > 0]
        low, high = float(shown.min()), float(np.percentile(shown.numpy(), 99.9))
        high = high if high > low else float(shown.max())
        return ((self.image - low) / max(high - low, 1e-12)).clamp(0, 1) * (num_bins - 1)


def image_weights(image: Tensor) -> Tensor:
    """How much each voxel (*S) of an image (1, *S) stands out from its background, which may be dark or bright."""
    image = image[0]
    inner = image[tuple(slice(1, -1) if n > 2 else slice(None) for n in image.shape)]
    border_mean = (image.sum() - inner.sum()) / max(1, image.numel() - inner.numel())
    return image.max() - image if border_mean > inner.mean() else image - image.min()


def spread_of(weights: Tensor, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre of mass (D,) and covariance (D, D) of non-negative weights (*S), RAS mm."""
    d = weights.ndim
    weights = weights.double() / weights.double().sum().clamp_min(1e-12)
    axes = [torch.arange(n, dtype=torch.float64) for n in weights.shape]
    center, second = np.zeros(d), np.zeros((d, d))
    for i in range(d):
        profile = weights.sum([other for other in range(d) if other != i])
        center[i] = float(profile @ axes[i])
        second[i, i] = float(profile @ axes[i] ** 2)
        for j in range(i):
            plane = weights.sum([other for other in range(d) if other not in (i, j)]) if d > 2 else weights
            second[i, j] = second[j, i] = float(axes[j] @ plane @ axes[i])
    covariance = second - np.outer(center, center)
    return (affine @ np.append(center, 1))[:-1], affine[:-1, :-1] @ covariance @ affine[:-1, :-1].T


@dataclass(frozen=True)
class Level:
    """Both images at one resolution."""

    fixed: Scan
    moving: Scan
    spacing_mm: float

    @property
    def steps(self) -> dict[str, float]:
        """The longest and the shortest step that is worth taking."""
        return {"longest_mm": 2 * self.spacing_mm, "shortest_mm": 0.02 * self.spacing_mm}

    @cached_property
    def center_and_radius(self) -> tuple[np.ndarray, float]:
        """Centre of mass of the fixed image (D,), RAS mm, and the root mean square distance of its mass from there."""
        center, covariance = spread_of(self.fixed.foreground(), self.fixed.grid.affine)
        return center, float(np.sqrt(np.trace(covariance)))

    def information(
        self, center: np.ndarray, *, samples: int, num_bins: int, seed: int, surround: float
    ) -> SampledInformation:
        """Samples of the fixed image where it shows something, and the moving one to compare them with.

        Samples lie between the voxels at random, so that no map is favoured for laying voxel upon voxel.

        Args:
            center: of the maps (D,), RAS mm.
            samples: how many.
            num_bins: of each image's intensities.
            seed: of the places.
            surround: share of the samples that may lie anywhere in the image.
        """
        generator = torch.Generator().manual_seed(seed)
        size = self.fixed.image.shape[1:]
        shown, used = self.fixed.foreground(), self.fixed.weights[0] > 0
        around = round(surround * samples)
        drawn = [_draw((shown > shown.mean()) & used, samples - around, generator), _draw(used, around, generator)]
        voxels = torch.stack(torch.unravel_index(torch.cat(drawn), size)).float()
        voxels += torch.rand(voxels.shape, generator=generator) - 0.5
        channels = torch.cat([self.fixed.binned(num_bins), self.fixed.weights])[None]
        bins, weights = sample(channels, voxels.view(1, len(size), -1, *[1] * (len(size) - 1)), padding="border")[0]
        affine = torch.from_numpy(self.fixed.grid.affine)
        points = affine[:-1, :-1] @ voxels.double() + affine[:-1, -1:] - torch.from_numpy(center)[:, None]
        moving = MovingScan.of(
            self.moving.binned(num_bins), self.moving.weights, torch.from_numpy(self.moving.grid.affine)
        )
        return SampledInformation(points.float(), bins.flatten().round().long(), weights.flatten(), moving, num_bins)


def _draw(where: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices (count,) of voxels that are True in a mask (*S), with repetition."""
    found = where.flatten().nonzero()[:, 0]
    if not len(found):
        raise ValueError("expected images of which the masks leave something to align, got none")
    # In the order of memory, for looking them up is most of the work.
    return found[torch.randint(len(found), (count,), generator=generator).sort().values]


def levels_of(fixed: Scan, moving: Scan) -> list[Level]:
    """Both images at the isotropic spacings at which the fixed one has few, more and many voxels, as far as it has."""
    found: list[Level] = []
    for voxels in _VOXELS[len(fixed.grid.size)]:
        spacing = (fixed.grid.extent / min(voxels, fixed.image.numel())) ** (1 / len(fixed.grid.size))
        fixed, moving = fixed.reduced(spacing), moving.reduced(spacing)
        found.insert(0, Level(fixed, moving, spacing))
    return found


def warn_of_turn(fixed: Volume, moving: Volume) -> None:
    """Say that an alignment turned a header by 90 or 180 degrees."""
    warn(
        f"{moving.path}, {fixed.path}: the header of one seems to be turned by 90 or 180 degrees, which the affine "
        "alignment undid; check it, left and right above all"
    )
