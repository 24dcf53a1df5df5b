"""Images at the coarser levels of an optimisation."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from ..losses.landmarks import LANDMARKS, landmarks_at


def at_level(batch: Mapping[str, Tensor], factor: int) -> dict[str, Tensor]:
    """A batch whose images are shrunk by a factor, and landmarks in the voxels of the level."""
    images = {key: shrink(value, factor) for key, value in batch.items() if key not in LANDMARKS}
    sizes = [batch["fixed"].new_tensor(one["fixed"].shape[2:]) - 1 for one in (images, batch)]
    return images | landmarks_at(batch, sizes[0] / sizes[1].clamp_min(1))


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
