"""The objective of each stage of DLIR."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...checks import check_number
from ...vocabulary import Batch, Result


class StageLoss(nn.Module):
    """1 - NCC(warped, fixed) + weight * bending, of the last stage there is; an affine map does not bend.

    NCC is the correlation of the intensities of the whole images, of each pair for itself; the mean over pairs.

    Args:
        weight: of the bending energy of the last stage's B-spline.
    References: de Vos et al., Medical Image Analysis 52, 2019 (without the bending energy).
    """

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__()
        check_number("weight", weight, least=0)
        self.weight = weight

    def forward(self, pred: Result, batch: Batch) -> Tensor:
        """Total loss, a scalar; the weighted, detached terms are left in `pred["terms"]` by name."""
        terms = {"similarity": 1 - correlation(pred["warped"], batch["fixed"]).mean()}
        last = pred["steps"][-1]
        if "bending" in last:
            terms["regularization"] = self.weight * last["bending"].mean()
        pred["terms"] = {name: value.detach() for name, value in terms.items()}
        return torch.stack([*terms.values()]).sum()


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Of the intensities of two images (B, C, *S), for each pair, (B,); 0 if one of them is flat."""
    a, b = ((x - x.mean(1, keepdim=True)) for x in (a.float().flatten(1), b.float().flatten(1)))
    variance = a.square().mean(1) * b.square().mean(1)
    return (a * b).mean(1) / (variance + 1e-10).sqrt()
