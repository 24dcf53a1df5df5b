"""Random changes of the images of a pair: affine maps, contrast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...checks import check_number
from ...fields import per_channel, warp
from .networks import centred_grid


class Augmentation:
    """An affine map, a change of contrast, and noise for each image of a pair.

    Args:
        strength: of the maps, see `RandomAffine`.
        contrast: an image becomes image ** exp(c), c drawn from -contrast to contrast; 0 leaves it.
        noise: largest SD of the noise, intensities; each image draws its own.
    Raises:
        ValueError: for a negative number.
    """

    def __init__(self, strength: float = 0.1, contrast: float = 0.0, noise: float = 0.0) -> None:
        check_number("the contrast of the augmentation", contrast, least=0)
        check_number("the noise of the augmentation", noise, least=0)
        self.affine, self.contrast, self.noise = RandomAffine(strength), contrast, noise

    def __call__(self, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """The targets of a batch, changed; images from 0 to 1."""
        changed = self.affine(targets)
        for side in ("moving", "fixed"):
            image = changed[side]
            once = image.new_zeros(len(image), *[1] * (image.ndim - 1))
            power = torch.exp(self.contrast * (2 * torch.rand_like(once) - 1))
            noise = self.noise * torch.rand_like(once) * torch.randn_like(image)
            changed[side] = (image.clamp(0, 1) ** power + noise).clamp(0, 1)
        return changed


class RandomAffine:
    """Deform both images of a pair, and their label maps with them, each by an affine map of its own.

    The map takes D + 1 corners of the image, of which no D lie in one plane with the centre, inward: each coordinate,
    from -1 to 1 over the image, by a share of its own. It acts about the image's centre.

    Args:
        strength: largest share, 0 to below 1.
    Raises:
        ValueError: for another strength.
    References: Hu et al., Medical Image Analysis 49, 2018 (strength 0.1; by the authors' code the map
        acts about a corner).
    """

    def __init__(self, strength: float = 0.1) -> None:
        check_number("the strength of the augmentation", strength, least=0, below=1)
        self.strength = strength

    def __call__(self, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """The targets of a batch, `moving`, `fixed` and their label maps deformed."""
        changed = dict(targets)
        for side in ("moving", "fixed"):
            image = targets[side]
            size = image.shape[2:]
            ddf = unit_affine_displacement(self.draw(len(image), len(size), image.device), size)
            changed[side] = warp(image, ddf)
            changed[f"label_{side}"] = warp(targets[f"label_{side}"], ddf, mode="nearest")
        return changed

    def draw(self, batch: int, spatial_dims: int, device: torch.device | str | None = None) -> Tensor:
        """What is added to the identity, in coordinates from -1 to 1, (B, D, D + 1)."""
        d = spatial_dims
        # The corner (-1, ..., -1), and for each axis the one that has 1 there.
        corners = torch.cat([-torch.ones(1, d, device=device), 2 * torch.eye(d, device=device) - 1])
        moved = corners * (1 - self.strength * torch.rand(batch, d + 1, d, device=device))
        linear = (moved[:, 1:] - moved[:, :1]).transpose(1, 2) / 2
        shift = moved[:, 0] + linear.sum(2)
        return torch.cat([linear - torch.eye(d, device=device), shift[:, :, None]], 2)


def unit_affine_displacement(added: Tensor, size: Sequence[int]) -> Tensor:
    """How far an affine map in coordinates from -1 to 1 along each axis moves a grid's voxels, (B, D, *size), voxels.

    Args:
        added: what the map adds to the identity, (B, D, D + 1).
        size: of the grid.
    """
    d = len(size)
    grid = centred_grid(list(size), added)
    half = per_channel([max(n - 1, 1) / 2 for n in size], grid)
    moved = torch.einsum("bij,j...->bi...", added[:, :, :d], (grid / half)[0]) + added[:, :, d].view(-1, d, *[1] * d)
    return moved * half
