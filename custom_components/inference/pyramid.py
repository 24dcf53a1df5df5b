"""Images at the coarser levels of an optimisation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


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
