"""What the network learns: the length of the error, weighed so that small ones count, too."""

from __future__ import annotations

from monai.inferers import Inferer
from torch import Tensor, nn

from ...networks.layout import fastest_layout, in_format
from ...networks.parallel import unwrap
from ...vocabulary import Batch, Output, Result
from .simulation import LARGEST_MM


class ErrorInferer(Inferer):
    """The network's answer as a dictionary, {"error_mm": (B, 1, *S)}, to which a loss adds its `terms`."""

    def __call__(self, inputs: Tensor, network: nn.Module, *args: object, **kwargs: object) -> Result:
        layout = fastest_layout(network, inputs)
        in_format(unwrap(network), layout)
        return {"error_mm": network(inputs)}


def error_loss(pred: Result, targets: Batch) -> Tensor:
    """The mean of (estimate - error)^2 / (1 + estimate) over the voxels that count; errors are in mm, up to 15.

    The denominator has no gradient. So the best estimate is the mean of the errors that go with such images, as for the
    squares alone, but an error of 0.5 mm that is missed counts beside one of 5 mm.
    """
    error, weights = targets["error_mm"].clamp(max=LARGEST_MM), targets["counts"].float()
    estimate = pred["error_mm"].float()
    cost = (estimate - error).square() / (1 + estimate.detach())
    loss = (weights * cost).sum() / weights.sum().clamp(min=1)
    pred["terms"] = {"squares": loss.detach()}
    return loss


def error_score(output: Output) -> Tensor:
    """exp(-`error_loss`) of a validation's item: 1 if the error is known exactly."""
    return (-error_loss(dict(output["pred"]), output["label"])).exp()
