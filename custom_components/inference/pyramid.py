"""Images at the coarser levels of an optimisation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..constants import filled
from ..losses.guidance import GUIDES
from ..losses.landmarks import LANDMARKS, landmarks_at

_NOTHING = 1e-3  # share of a voxel that counts, below which it tells nothing


def at_level(batch: Mapping[str, Tensor], factor: int) -> dict[str, Tensor]:
    """A batch whose images are shrunk by a factor, and landmarks in the voxels of the level.

    What a mask leaves out gets into no voxel that counts: an image with a mask is the mean of what counts, and the
    moving image's mask loses its rim, where interpolation blends in what lies beyond. Guides are soft maps, whose grid
    may be coarser than the images'; a level that is finer than they are has none.
    """
    images = {key: shrink(value, factor) for key, value in batch.items() if key not in (*LANDMARKS, *GUIDES)}
    for role in ("moving", "fixed"):
        if f"mask_{role}" in batch and factor > 1:
            counted, share = shrink(batch[role] * batch[f"mask_{role}"], factor), images[f"mask_{role}"]
            images[role] = torch.where(share > _NOTHING, counted / share.clamp(min=_NOTHING), images[role])
    if "mask_moving" in images:
        images["mask_moving"] = without_rim(images["mask_moving"])
    images |= _guides_at(batch, factor)
    sizes = [filled(one["fixed"].shape[2:], batch["fixed"]) - 1 for one in (images, batch)]
    return images | landmarks_at(batch, sizes[0] / sizes[1].clamp_min(1))


def _guides_at(batch: Mapping[str, Tensor], factor: int) -> dict[str, Tensor]:
    found = {key: batch[key] for key in GUIDES if key in batch}
    steps = [
        round(n / m) for value in found.values() for n, m in zip(batch["fixed"].shape[2:], value.shape[2:], strict=True)
    ]
    coarser = max(steps, default=1)
    return {key: shrink(value, factor // coarser) for key, value in found.items()} if factor >= coarser else {}


def without_rim(mask: Tensor) -> Tensor:
    """The least value of a mask (B, 1, *S) among a voxel and its direct and diagonal neighbours."""
    pool = F.max_pool2d if mask.ndim == 4 else F.max_pool3d
    return -pool(-mask.float(), 3, 1, 1)


def shrink(image: Tensor, factor: int) -> Tensor:
    """Smooth and subsample an image by a whole factor, corners staying aligned.

    Args:
        image: shape (B, C, *S).
        factor: 1 returns the image itself; so does an image of one voxel.
    Returns:
        Shape (B, C, *ceil(S / factor)).
    """
    if factor == 1 or image.shape[2:].numel() == 1:
        return image
    dims = image.ndim - 2
    pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
    width = factor + 1 - factor % 2
    smooth = image.float()
    for axis in range(dims):
        kernel, padding = [1] * dims, [0] * dims
        kernel[axis], padding[axis] = width, width // 2
        smooth = pool(smooth, kernel, 1, padding, count_include_pad=False)
    size = [-(-n // factor) for n in image.shape[2:]]
    return F.interpolate(smooth, size=size, mode="bilinear" if dims == 2 else "trilinear", align_corners=True)
