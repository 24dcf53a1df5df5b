"""Which loss compares a pair of images: it depends on whether both show the same contrast."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from ..fields import warp
from ..losses.registration import RegistrationLoss
from .level import Loss
from .pyramid import shrink

logger = logging.getLogger(__name__)


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
            batch: "moving", "fixed", (B, C, *S), in [0, 1]; optionally "mask_fixed".
            ddf: what is known of the displacement, (B, D, *S).
        """
        warped = batch["moving"] if ddf is None else warp(batch["moving"], ddf)
        same = same_contrast(warped, batch["fixed"], batch.get("mask_fixed"))
        loss = self.same if same else self.across
        named = loss.similarity if isinstance(loss, RegistrationLoss) else loss
        contrast = "the same" if same else "different"
        logger.info("refining with %s: the images are of %s contrast", type(named).__name__, contrast)
        return loss


def same_contrast(warped: Tensor, fixed: Tensor, mask: Tensor | None = None, *, threshold: float = 0.3) -> bool:
    """Whether two roughly aligned images show the same contrast: their correlation inside the object.

    The object is where both images (smoothed) exceed a tenth of their range, so that a dark background, which all
    contrasts share, does not count.

    Args:
        warped, fixed: shape (B, C, *S), in [0, 1]; all samples of a batch must pass.
        mask: where to look, (B, 1, *S).
        threshold: of the correlation.
    """
    smooth = [shrink(image, 2) for image in (warped, fixed)]
    inside = (smooth[0].amin(1, keepdim=True) > 0.1) & (smooth[1].amin(1, keepdim=True) > 0.1)
    if mask is not None:
        inside = inside & (shrink(mask.float(), 2) > 0.5)
    for i in range(fixed.shape[0]):
        a, b = (image[i].mean(0)[inside[i, 0]] for image in smooth)
        if len(a) < 2 or not float(torch.corrcoef(torch.stack([a, b]))[0, 1]) > threshold:
            return False
    return True
