"""What the network learns: the length of the error, on a scale on which small ones count, too."""

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
    """The mean of |log(1 + estimate) - log(1 + error)| over the voxels that count; errors are in mm, up to 15.

    The logarithm makes an error of 0.5 mm that is missed count beside one of 5 mm; without the square a few large
    errors do not rule.
    """
    error, weights = targets["error_mm"].clamp(max=LARGEST_MM), targets["counts"].float()
    apart = (pred["error_mm"].float().log1p() - error.log1p()).abs()
    loss = (weights * apart).sum() / weights.sum().clamp(min=1)
    pred["terms"] = {"log_error": loss.detach()}
    return loss


def error_score(output: Output) -> Tensor:
    """exp(-`error_loss`) of a validation's item: 1 if the error is known exactly."""
    return (-error_loss(dict(output["pred"]), output["label"])).exp()
