"""Registration of scans to the template for their attributes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.inferers import Inferer
from torch import Tensor

from ...deformations.velocity import StationaryVelocity
from ...fields import plain, warp
from ...inference.prediction import Masks, Network, Precision
from ...inference.registration import RegistrationInferer
from ...networks.parallel import unwrap
from ...vocabulary import Result
from .network import AtlasNetwork


class TemplateInferer(Inferer):
    """Register the template of an `AtlasNetwork` to scans.

    Called as `inferer(scan, network, attributes=...)` with scans (B, C, *S) and attributes (B, A) or None. The network
    moves the template; the result is that of a pair whose moving image is the scan and whose fixed image is the
    template, because results live on the template's grid: "ddf" there, "inverse_ddf" on the scan's grid, "warped" the
    scan on the template's. There are also "template" (the pair's "fixed", too) and, on the scan's grid,
    "warped_template", both (B, C, *S).

    If the template has labels, there are their probabilities, "template_labels" and "warped_template_labels"
    (B, K, *S), and, without gradients, the most likely labels on the scan's grid, "warped_template_label" (B, 1, *S),
    and the labels' ids, "template_label_ids" (B, K). With a mean stream there is "mean_displacement" (1, D, *S), the
    running mean of "ddf", which the call updates.

    Args:
        inferer: registers the pair; it makes inverse fields, and minus its parameters must be the inverse map.
        mean_stream: `MeanStream`, for training.
        precision: in which the template is rendered, see `Precision`.
    Raises:
        ValueError: if the inferer's deformation is not made by a velocity, or it makes no inverse fields; on a call, if
            scan and template differ in size.
    """

    def __init__(
        self,
        inferer: RegistrationInferer,
        mean_stream: Callable[[Tensor], Tensor] | None = None,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        if not isinstance(inferer.deformation, StationaryVelocity):
            name = type(inferer.deformation).__name__
            raise ValueError(f"a template needs a deformation by a velocity, got {name}")
        if not inferer.inverse:
            raise ValueError("a template needs inverse fields: let the inferer make them (inverse)")
        self.inferer, self.mean_stream, self.precision = inferer, mean_stream, Precision(precision)

    def __call__(
        self, inputs: Tensor, network: Network, *, masks: Masks | None = None, attributes: Tensor | None = None
    ) -> Result:
        """Register scans.

        Args:
            masks: "mask_moving" is that of the scan.
            attributes: raw values.
        """
        scan: Tensor = plain(inputs)
        atlas: AtlasNetwork = unwrap(network)  # type: ignore[assignment]
        with self.precision.autocast(scan):
            image, logits = atlas.template.render(attributes)
        if image.shape[1:] != scan.shape[1:]:
            raise ValueError(f"expected scans {tuple(image.shape[1:])} as the template, got {tuple(scan.shape[1:])}")
        template = image.float().expand_as(scan).clone()  # not the parameter itself
        pred = self.inferer(torch.cat([scan, template], 1), _inverted(network), masks=masks)
        pred |= {"template": template, "fixed": template, "warped_template": warp(template, pred["inverse_ddf"])}
        if logits.shape[1]:
            pred["template_labels"] = logits.float().softmax(1).expand(len(scan), -1, *scan.shape[2:])
            pred["warped_template_labels"] = warp(pred["template_labels"], pred["inverse_ddf"], padding="border")
            if not torch.is_grad_enabled():
                pred["warped_template_label"] = atlas.template.most_likely(pred["warped_template_labels"])
                ids = torch.tensor(atlas.template.label_ids, device=scan.device)
                pred["template_label_ids"] = ids.expand(len(scan), -1)
        if self.mean_stream is not None:
            pred["mean_displacement"] = self.mean_stream(pred["ddf"])
        return pred


def _inverted(network: Network) -> Network:
    """The network that moves scans to the template, made of the one that moves the template: minus its velocity."""

    def velocity(pair: Tensor) -> Tensor:
        scan, template = pair.chunk(2, 1)
        parameters = network(scan, template=template)
        mean, log_variance = parameters[:, : scan.ndim - 2], parameters[:, scan.ndim - 2 :]
        return torch.cat([-mean, log_variance], 1)

    return velocity
