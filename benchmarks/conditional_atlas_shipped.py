"""The shipped 3-D weights on images rendered of label maps: the template, and people who were not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.conditional_atlas_data import network_of
from benchmarks.conditional_atlas_templates import scaled
from benchmarks.experiments import BUNDLES, bundle_config
from custom_components.data.lists import load_list
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.evaluation.metrics import folding_fraction, gradient_energy, normalized_cross_correlation
from custom_components.evaluation.overlap import mean_dice
from custom_components.inference.registration import RegistrationInferer
from custom_components.methods.conditional_atlas.inference import TemplateInferer
from custom_components.methods.conditional_atlas.network import AtlasNetwork
from custom_components.transforms.scan import LoadScand

SPACING = 2.0  # mm


@torch.no_grad()
def shipped(maps: Path) -> dict[str, Any]:
    """All measures: of the template, means and rows of both sections, and how the ventricles follow the attribute."""
    network = network_of(BUNDLES / "conditional_atlas" / "models", spatial_dims=3)
    config = bundle_config("conditional_atlas", ["train", "train_labelmaps"], dataset_dir=str(maps.parent))
    synthesis, generator = config.get_parsed_content("synthesis"), torch.Generator().manual_seed(0)
    template = network.template
    sections: dict[str, list[dict[str, Any]]] = {}
    measured: list[dict[str, Any]] = []
    for section in ("training", "validation"):
        for item in load_list(maps, section, maps.parent):
            labels = LoadScand(SPACING, template.size, "world")(item)["label"][None].to(torch.int16)
            scan = synthesis(labels, synthesis.draw(1, template.size, generator))
            row, fields = measure_scan(network, scan, item["ventricles"])
            sections.setdefault(section, []).append(row)
            if section == "training":
                measured.append({**fields, "image": scan["moving"]})
    result = measure_template(template(), measured)
    for section, rows in sections.items():
        result[section] = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        result[f"{section}_rows"] = rows
    return result | ventricles_of(template)


def measure_scan(
    network: AtlasNetwork, scan: Mapping[str, Tensor], ventricles: float
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Measures of the registration to the template for the person's own attribute and to the average one.

    Returns:
        The measures, and the field and the brain of the former.
    """
    template, labels = network.template, scan["label_moving"]
    inferer = TemplateInferer(RegistrationInferer(StationaryVelocity(7), inverse=True))
    own = template.encoder.values({"ventricles": ventricles})[None]
    brain = (labels > 0) & (labels != 2)
    row: dict[str, Any] = {"ventricles": ventricles, "in_range": float(not template.encoder.outside(own[0]))}
    row["share"] = share(labels)
    row["share_template"] = share(template.most_likely(template.render(own)[1]))
    fields = {}
    for name, attributes in (("own", own), ("average", None)):
        pred = inferer(scan["moving"], network, attributes=attributes)
        identity = template.most_likely(pred["template_labels"])
        row[f"dice_{name}_before"] = float(mean_dice(identity, labels, range(1, 7)))
        row[f"dice_{name}"] = float(mean_dice(pred["warped_template_label"], labels, range(1, 7)))
        row[f"ncc_{name}"] = float(normalized_cross_correlation(pred["warped_template"], scan["moving"], brain))
        row[f"folded_{name}"] = 100 * float(folding_fraction(pred["inverse_ddf"], brain))
        row[f"displacement_{name}"] = SPACING * float(pred["inverse_ddf"].norm(dim=1)[brain[:, 0]].mean())
        fields[name] = pred["ddf"]
    return row, {"ddf": fields["own"], "brain": brain}


def measure_template(template: Tensor, scans: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """Sharpness beside the mean image's and the scans', and the length of the mean displacement, mm."""
    images = torch.cat([scan["image"] for scan in scans])
    inside = torch.cat([scan["brain"] for scan in scans]).float().mean(0, keepdim=True) > 0.5
    mean = images.mean(0, keepdim=True)
    central = SPACING * torch.cat([scan["ddf"] for scan in scans]).mean(0).norm(dim=0)[inside[0, 0]]

    def sharp(some: Tensor) -> float:
        return float(gradient_energy(some, inside, spacing_mm=[SPACING] * 3).mean())

    return {
        "sharpness": sharp(template) / sharp(mean),
        "sharpness_scaled": sharp(scaled(template, inside)) / sharp(scaled(mean, inside)),
        "sharpness_scans": sharp(images) / sharp(mean),
        "central": float(central.mean()),
        "central_max": float(central.max()),
    }


def ventricles_of(template: Any) -> dict[str, Any]:
    """Requested and rendered share of ventricles."""
    requested, rendered = np.arange(1, 7.6, 0.5), []
    for value in requested:
        logits = template.render(template.encoder.values({"ventricles": value})[None])[1]
        rendered.append(share(template.most_likely(logits)))
    return {
        "requested": requested.tolist(),
        "rendered": rendered,
        "correlation": float(np.corrcoef(requested, rendered)[0, 1]),
        "slope": float(np.polyfit(requested, rendered, 1)[0]),
    }


def share(groups: Tensor) -> float:
    """Percentage of ventricles, the fourth included, in the brain, of a map of the template's labels."""
    return 100 * float((groups == 1).sum() / ((groups > 0) & (groups != 2)).sum())
