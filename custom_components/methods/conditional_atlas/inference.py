"""Registration of scans to the template for their attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...deformations.velocity import StationaryVelocity
from ...fields import warp
from ...inference.registration import Deformation, RegistrationInferer


class TemplateInferer(RegistrationInferer):
    """A `RegistrationInferer` for `AtlasNetwork`, which registers its template, as the moving image, to a scan.

    Called as `inferer(scan, network, attributes=...)` with scans (B, C, *S) and attributes (B, A) or None. The fields
    are given in the sense of a pair whose moving image is the scan and whose fixed one is the template, for results
    live on the template's grid: "ddf" there, "inverse_ddf" on the scan's grid, "warped" the scan on the template's,
    "warped_template" the template on the scan's, both (B, C, *S), and "template" (B, C, *S).
    Of a template with labels also their probabilities, "template_labels" and "warped_template_labels" (B, K, *S), and,
    without gradients, the most likely ones on the scan's grid, "warped_template_label" (B, 1, *S), and their ids,
    "template_label_ids" (B, K).
    With a mean stream "mean_displacement" (1, D, *S), the running mean of "ddf", which the call updates.

    Args:
        deformation: of a velocity: minus the velocity must be the inverse.
        mean_stream: `MeanStream`, for training.
        **options: of `RegistrationInferer`; the inverse is always made.
    Raises:
        ValueError: if the deformation is none of a velocity; on a call, if scan and template differ in size.
    """

    def __init__(
        self, deformation: Deformation, mean_stream: Callable[[Tensor], Tensor] | None = None, **options: Any
    ) -> None:
        super().__init__(deformation, **{**options, "inverse": True})
        if not isinstance(deformation, StationaryVelocity):
            raise ValueError(f"a template needs a deformation by a velocity, got {type(deformation).__name__}")
        self.mean_stream = mean_stream

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor],
        *args: Any,
        masks: dict[str, Tensor] | None = None,
        attributes: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if args or kwargs:
            raise ValueError(
                f"expected scans, network, masks and attributes, got also {len(args)} and {sorted(kwargs)}"
            )
        scan = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        atlas: Any = getattr(network, "module", network)  # of a distributed run
        dtype = getattr(torch, self.precision)
        with torch.autocast(scan.device.type, dtype, enabled=dtype != torch.float32):
            image, logits = atlas.template.render(attributes)
        if image.shape[1:] != scan.shape[1:]:
            raise ValueError(f"expected scans {tuple(image.shape[1:])} as the template, got {tuple(scan.shape[1:])}")

        def velocity(pair: Tensor, **_: Any) -> Tensor:
            scan, template = pair.chunk(2, 1)
            parameters = network(scan, template=template)
            mean, log_variance = parameters[:, : scan.ndim - 2], parameters[:, scan.ndim - 2 :]
            return torch.cat([-mean, log_variance], 1)

        template = image.float().expand_as(scan).clone()  # not the parameter itself
        pred = super().__call__(torch.cat([scan, template], 1), velocity, masks=masks)
        pred |= {"template": template, "warped_template": warp(template, pred["inverse_ddf"])}
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
