"""The score by which validation chooses the best weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ..evaluation.metrics import normalized_cross_correlation
from ..evaluation.overlap import mean_dice
from ..fields import warp
from ..vocabulary import Output


def registration_score(output: Output) -> Tensor:
    """The higher, the better: mean Dice after registration where labels exist, else normalised cross-correlation.

    Args:
        output: an evaluator's output, not decollated: "label" is the targets' dictionary, "pred" the fields.
    """
    targets, pred = output["label"], output["pred"]
    if "label_moving" in targets and "label_fixed" in targets:
        warped = warp(targets["label_moving"], pred["ddf"], mode="nearest")
        return torch.as_tensor(mean_dice(warped, targets["label_fixed"])).float().nanmean()
    return torch.as_tensor(normalized_cross_correlation(pred["warped"], targets["fixed"])).float().mean()
