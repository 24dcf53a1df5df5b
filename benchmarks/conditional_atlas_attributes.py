"""Does a template follow its attributes? Shapes of given size and elongation; brains of given ventricles."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.conditional_atlas_data import HELD_OUT, HELD_OUT_VENTRICLES, SHAPES, dark_share, ellipse, within
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.evaluation.metrics import normalized_cross_correlation
from custom_components.fields import identity_grid
from custom_components.inference.registration import RegistrationInferer
from custom_components.methods.conditional_atlas.inference import TemplateInferer
from custom_components.methods.conditional_atlas.network import AtlasNetwork


@torch.no_grad()
def shapes(network: AtlasNetwork) -> dict[str, Any]:
    """How the rendered size and elongation of shapes agree with the requested ones, held-out values included."""
    rows = []
    for size in np.arange(12.5, 21.6, 0.5):
        for elongation in np.arange(0.825, 1.38, 0.05):
            image = network.template(
                network.template.encoder.values({"size": 10 + 3 * size, "elongation": elongation})[None]
            )
            new = within(size, HELD_OUT["size"]), within(elongation, HELD_OUT["elongation"])
            rows.append([*moments(ellipse(size, elongation)), *moments(image), *new])
    table = np.array(rows, dtype=float)
    result: dict[str, Any] = {}
    for key, chosen in (
        ("all", table[:, 0] > 0),
        ("held_out", (table[:, 4] + table[:, 5]) > 0),
        ("both", table[:, 4] * table[:, 5] > 0),
    ):
        some = table[chosen]
        for k, attribute in enumerate(("size", "elongation")):
            slope = np.polyfit(some[:, k], some[:, k + 2], 1)[0] if np.ptp(some[:, k]) else float("nan")
            varies = np.ptp(some[:, k + 2]) > 1e-6
            result[f"{key}_{attribute}"] = {
                "correlation": float(np.corrcoef(some[:, k], some[:, k + 2])[0, 1]) if varies else 0.0,
                "slope": float(slope),
                "mean_error": float(np.abs(some[:, k] - some[:, k + 2]).mean()),
                "number": len(some),
            }
    return result


def moments(image: Tensor) -> tuple[float, float]:
    """Size and elongation of a shape, from the second moments of the region above a third of its range.

    Loading maps the noise's minimum to 0, so templates have a brighter background than the shapes themselves.
    """
    low, high = image.quantile(0.05), image.max()
    mask, x = (image[0, 0] > low + (high - low) / 3).float(), identity_grid(SHAPES)
    area = mask.sum().clamp(min=1)
    center = (x * mask).flatten(1).sum(1) / area
    variance = ((x - center.view(2, 1, 1)).square() * mask).flatten(1).sum(1) / area
    return 2 * float(variance.prod()) ** 0.25, float(variance[0] / variance[1].clamp(min=1e-6)) ** 0.25


@torch.no_grad()
def ventricles(network: AtlasNetwork, validation: dict[str, Any]) -> dict[str, Any]:
    """Requested and rendered share of dark deep pixels, and how similar people are to the template of their share."""
    template = network.template
    values = np.arange(3.0, 15.01, 0.5)
    rendered = [dark_share(template(template.encoder.values({"ventricles": v})[None])[0, 0].numpy()) for v in values]
    held = np.array([within(v, HELD_OUT_VENTRICLES) for v in values])
    found = np.array(rendered)
    result: dict[str, Any] = {"requested": values.tolist(), "rendered": rendered, "is_held_out": held.tolist()}
    for key, chosen in (("all", held | True), ("held_out", held)):
        result[key] = {
            "correlation": float(np.corrcoef(values[chosen], found[chosen])[0, 1]),
            "slope": float(np.polyfit(values[chosen], found[chosen], 1)[0]),
            "mean_error": float(np.abs(values[chosen] - found[chosen]).mean()),
        }
    result["monotone"] = bool((np.diff(found) > 0).all())
    inferer = TemplateInferer(RegistrationInferer(StationaryVelocity(7), inverse=True))
    rows = [template.encoder.values({"ventricles": item["ventricles"]}) for item in validation["items"]]
    for key, attributes in (("own", torch.stack(rows)), ("average", None)):
        pred = inferer(validation["image"], network, attributes=attributes)
        image, scan = template(attributes).expand_as(pred["template"]), validation["image"]
        result[f"ncc_{key}_before"] = float(normalized_cross_correlation(image, scan, scan > 0.05).mean())
        result[f"ncc_{key}_after"] = float(
            normalized_cross_correlation(pred["warped_template"], scan, scan > 0.05).mean()
        )
        result[f"displacement_{key}"] = float(pred["ddf"].norm(dim=1).mean())
    return result
