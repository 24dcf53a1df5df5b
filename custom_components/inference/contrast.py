"""Which loss compares a pair of images: it depends on whether both show the same contrast.

A correlation of whole images tells little: background, skull and air agree in all contrasts. What counts is the sign of
local correlations within tissue: in T1 and T2, PD or FLAIR the border of grey and white matter has opposite signs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fields import warp
from ..losses.registration import common_mask
from ..losses.similarity import local_correlation
from .level import Loss
from .pyramid import shrink

logger = logging.getLogger(__name__)

_WINDOW = 7  # voxels at half resolution
_BRIGHT = 0.8  # of the object's mean: darker voxels are air, bone and fluid, whose borders agree in many contrasts
_STRUCTURE = 4e-4  # least variance of a window in which there is something to compare
_CLEAR = 0.5  # least absolute correlation whose sign is believed
_AGREEMENT = 0.88  # share of positive signs from which on the contrast is the same
_EVIDENCE = 0.15  # least share of windows that are clear


class LossByContrast:
    """One loss for pairs of the same contrast and one for all others; which one was taken is logged.

    Args:
        same: for images of one contrast (see `same_contrast`).
        across: for all others.
    """

    def __init__(self, same: Loss, across: Loss) -> None:
        self.same, self.across = same, across

    @torch.no_grad()
    def choose(self, batch: Mapping[str, Tensor], ddf: Tensor | None = None) -> Loss:
        """The loss for a batch of roughly aligned pairs.

        Args:
            batch: "moving", "fixed", (B, C, *S), in [0, 1]; optionally "mask_moving", "mask_fixed".
            ddf: what is known of the displacement, (B, D, *S).
        """
        moving, fixed = batch["moving"], batch["fixed"]
        # Before any motion, too: a network's answer may have brought edges together that do not belong together.
        zero = fixed.new_zeros(fixed.shape[0], fixed.ndim - 2, *fixed.shape[2:])
        same = same_contrast(moving, fixed, common_mask(zero, batch))
        if same and ddf is not None:
            same = same_contrast(warp(moving, ddf), fixed, common_mask(ddf, batch))
        loss = self.same if same else self.across
        named = getattr(loss, "similarity", loss)
        contrast = "the same" if same else "different"
        logger.info("refining with %s: the images are of %s contrast", type(named).__name__, contrast)
        return loss


def same_contrast(warped: Tensor, fixed: Tensor, mask: Tensor | None = None) -> bool:
    """Whether two roughly aligned images show the same contrast: local correlations in bright tissue are positive.

    At half resolution, in windows of bright tissue of both images with structure in both, at least 88 % of the clear
    correlations (|r| > .5) must be positive, and 15 % of the windows clear; else the answer is no, as it is for most
    pairs that cannot be compared. Over people and after affine alignment, T1 to T1 has 92 to 100 %, FLAIR to T1 up to
    83 %, all other pairs of contrasts below 50 % (docs/contrasts.md).

    Args:
        warped, fixed: shape (B, C, *S), in [0, 1]; all samples of a batch must pass.
        mask: where to look, (B, 1, *S).
    """
    small = [shrink(image.float().mean(1, keepdim=True), 2) for image in (warped, fixed)]
    seen = torch.ones_like(small[0]) if mask is None else (shrink(mask.float(), 2) > 0.9).float()
    pool = F.avg_pool2d if fixed.ndim == 4 else F.avg_pool3d
    means = [pool(image, 3, 1, 1) for image in small]
    inside = (means[0] > 0.1) & (means[1] > 0.1) & (seen > 0)
    for i in range(len(fixed)):
        where = inside[i]
        for mean in means:
            where = where & (mean[i] > _BRIGHT * mean[i][inside[i]].mean())
        r, variances = local_correlation(small[0][i : i + 1], small[1][i : i + 1], where[None].float(), _WINDOW)
        r = r[where[None] & (variances > _STRUCTURE)]
        clear = r[r.abs() > _CLEAR]
        if len(clear) <= _EVIDENCE * len(r) or float((clear > 0).float().mean()) < _AGREEMENT:
            return False
    return True
