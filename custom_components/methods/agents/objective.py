"""What an agent learns: the gain of each action of each step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from torch import Tensor, nn

from ...inference.prediction import Precision
from ...vocabulary import Batch, Output, Result
from .moves import Moves
from .walk import Walk


class ValueInferer(Inferer):
    """The network's values as a dictionary, {"values": (B, steps, actions)}, to which a loss adds its `terms`."""

    def __init__(self, precision: str = "float32") -> None:
        self.precision = Precision(precision)

    def __call__(self, inputs: Tensor, network: nn.Module, *args: object, **kwargs: object) -> Result:
        return {"values": self.precision.ask(network, inputs).float()}


class WalkInferer(Inferer):
    """The ends of an agent's walks, {"state": (B, ...)}, see `Moves`: for validation."""

    def __init__(self, moves: Moves, precision: str = "float32") -> None:
        self.walk = Walk(moves, limit=60, precision=precision)

    def __call__(self, inputs: Tensor, network: nn.Module, *args: object, **kwargs: object) -> Result:
        return {"state": torch.stack([way[-1] for way in self.walk(inputs, network)])}


class GainLoss(nn.Module):
    """The mean of Huber's function of values - gains, both in units of the step: sum_a H(Q(s, a) - Q*(s, a)).

    The target is the gain of the action itself (a discount of 0): with no discount, values of all actions that can
    still reach the goal would be equal.

    Args:
        delta: from this difference on the function is linear.
    References: Liao et al., An artificial agent for robust image registration, AAAI 2017 (gains in the distance of
        the parameters, greedily supervised); Huber's function and the distance of points are ours.
    """

    def __init__(self, delta: float = 0.5) -> None:
        super().__init__()
        self.delta = delta

    def forward(self, pred: Result, targets: Batch) -> Tensor:
        loss = F.huber_loss(pred["values"], targets["gains"], delta=self.delta)
        pred["terms"] = {"gains": loss.detach()}
        return loss


class WalkScore:
    """exp(-distance / 4 voxels) of where a validation's walk ends, from where it should: 1 at the true state."""

    def __init__(self, moves: Moves) -> None:
        self.moves = moves

    def __call__(self, output: Output) -> Tensor:
        found, truth = output["pred"]["state"], output["label"]["offset"].to(output["pred"]["state"])
        if found.ndim < self.moves.start(1).ndim:
            found, truth = found[None], truth[None]
        distance = self.moves.distance(self.moves.missing(found, truth))
        return (-distance / 4).exp().mean()
