"""What the network learns: the classes of voxels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from torch import Tensor, nn

from ...losses.label_sums import label_sums
from ...networks.layout import fastest_layout, in_format
from ...networks.parallel import unwrap
from ...vocabulary import Batch, Output, Result

_LEAST = 0.01  # Dice that a structure has at least in the logarithm


class SegmentationInferer(Inferer):
    """The network's answer as a dictionary, {"logits": (B, K, *S)}, to which a loss adds its `terms`."""

    def __call__(self, inputs: Tensor, network: nn.Module, *args: object, **kwargs: object) -> Result:
        layout = fastest_layout(network, inputs)
        in_format(unwrap(network), layout)
        return {"logits": network(inputs)}


class SegmentationLoss:
    """Cross-entropy + dice_weight * the mean of -log(soft Dice + 0.01) of the structures that a batch shows.

    By the logarithm a structure that is hardly found weighs as much as one that is found well.

    Args:
        dice_weight: of the second term.
        stride: the loss looks at every `stride`-th plane along the first axis, from a random one on: a softmax over all
            voxels and classes takes as long as a third of the network.
    """

    def __init__(self, dice_weight: float = 0.5, stride: int = 3) -> None:
        self.dice_weight, self.stride = dice_weight, stride

    def __call__(self, pred: Result, targets: Batch) -> Tensor:
        """The loss of {"logits": (B, K, *S)} for {"label_moving": (B, 1, *S)}, classes."""
        first = int(torch.randint(self.stride, (1,))) if self.stride > 1 else 0
        logits = pred["logits"][:, :, first :: self.stride].flatten(2)
        classes = targets["label_moving"][:, :, first :: self.stride].flatten(2).long()
        logs = logits.float().log_softmax(1)
        entropy = -logs.gather(1, classes).mean()
        dice, shown = _soft_dice(logs.exp(), classes)
        number = shown.sum().clamp(min=1)
        pred["terms"] = {"cross_entropy": entropy.detach(), "dice": (dice.detach() * shown).sum() / number}
        return entropy - self.dice_weight * ((dice + _LEAST).log() * shown).sum() / number


def _soft_dice(shares: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The Dice of each structure (not of background) of shares (B, K, N) and classes (B, 1, N), and which occur."""
    number = shares.shape[1]
    hit = shares.gather(1, classes)[:, 0]
    both = label_sums(hit, classes[:, 0], number).sum(0)
    there = label_sums(torch.ones_like(hit), classes[:, 0], number).sum(0)
    dice = 2 * both / (shares.sum((0, 2)) + there).clamp(min=1e-6)
    return dice[1:], there[1:] > 0


def segmentation_score(output: Output) -> Tensor:
    """Mean Dice of the structures that a validation's item shows, each voxel given to its most likely class."""
    logits, classes = output["pred"]["logits"], output["label"]["label_moving"].long()
    best = F.one_hot(logits.argmax(1).flatten(1), logits.shape[1]).movedim(-1, 1).float()
    dice, shown = _soft_dice(best, classes.flatten(2))
    return (dice * shown).sum() / shown.sum()
