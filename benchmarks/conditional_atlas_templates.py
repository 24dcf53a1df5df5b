"""How good is a template? Sharpness, centrality, and how well people agree through it; mean and classical average."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.conditional_atlas_data import brain_of, load
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.evaluation.metrics import (
    folding_fraction,
    gradient_energy,
    normalized_cross_correlation,
    sd_log_jacobian,
)
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import compose, warp
from custom_components.inference.refinement import PairwiseOptimizer
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.overlap import label_indicators
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import GradientPenalty
from custom_components.losses.similarity import LNCC
from custom_components.methods.conditional_atlas.averaging import average_scans
from custom_components.methods.conditional_atlas.inference import TemplateInferer
from custom_components.methods.conditional_atlas.network import AtlasNetwork

LABELS = [1, 2, 3, 4]
Registration = Callable[[Tensor], dict[str, Tensor]]


def optimizer(**options: Any) -> PairwiseOptimizer:
    """Training-free, with the objective of the bundle's refinement: LNCC, weight 0.1, folding penalty."""
    loss = RegistrationLoss(LNCC(9), GradientPenalty(), 0.1, folding_weight=30.0)
    return PairwiseOptimizer(StationaryVelocity(7), loss, **options)


def by_optimization(template: Tensor) -> Registration:
    def register(scans: Tensor) -> dict[str, Tensor]:
        optimize, deformation = optimizer(), StationaryVelocity(7)
        velocities = [optimize(scan[None], template) for scan in scans]
        return deformation(torch.cat(velocities), scans.shape[2:], inverse=True)

    return register


def by_network(network: AtlasNetwork) -> Registration:
    inferer = TemplateInferer(RegistrationInferer(StationaryVelocity(7), inverse=True))
    return torch.no_grad()(lambda scans: inferer(scans, network))


@torch.no_grad()
def judge(
    template: Tensor, register: Registration, training: dict[str, Any], validation: dict[str, Any]
) -> dict[str, float]:
    """Sharpness, centrality, folding, and how well people agree through the template."""
    brain = brain_of(training)
    average = training["image"].mean(0, keepdim=True)
    fields = {name: register(scans["image"]) for name, scans in (("training", training), ("validation", validation))}
    inside = brain[0, 0]
    mean = {name: f["ddf"].mean(0).norm(dim=0)[inside] for name, f in fields.items()}
    ddf, inverse = fields["validation"]["ddf"], fields["validation"]["inverse_ddf"]
    result = {
        "sharpness": energy(template, brain) / energy(average, brain),
        "sharpness_scaled": energy(scaled(template, brain), brain) / energy(scaled(average, brain), brain),
        "central": float(mean["training"].mean()),
        "central_max": float(mean["training"].max()),
        "central_validation": float(mean["validation"].mean()),
        "displacement": float(fields["training"]["ddf"].norm(dim=1)[:, inside].mean()),
        "folded": 100 * float(folding_fraction(ddf, brain).mean()),
        "sd_log_jacobian": float(sd_log_jacobian(ddf, brain).mean()),
    }
    pairs = [(a, b) for a in range(len(ddf)) for b in range(len(ddf)) if a != b]
    through = torch.cat([compose(ddf[a : a + 1], inverse[b : b + 1]) for a, b in pairs])
    first, second = ([pair[k] for pair in pairs] for k in (0, 1))
    images = validation["image"]
    here = images[second] > 0.05
    warped = warp(images[first], through)
    result["ncc_pairs"] = float(normalized_cross_correlation(warped, images[second], here).mean())
    warped = warp(images, ddf)
    result["ncc_template"] = float(normalized_cross_correlation(warped, template.expand_as(images), brain).mean())
    if "label" in training:
        labels = validation["label"]
        warped = warp(labels[first], through, mode="nearest")
        result["dice_pairs"] = float(mean_dice(warped, labels[second], LABELS).mean())
        voted = majority(warp(training["label"], fields["training"]["ddf"], mode="nearest")).expand_as(labels)
        result["dice_voted"] = float(mean_dice(warp(voted, inverse, mode="nearest"), labels, LABELS).mean())
    return result


def majority(labels: Tensor) -> Tensor:
    """The most frequent label of the maps at each place, (1, 1, *S)."""
    return label_indicators(labels, [0, *LABELS]).float().mean(0, keepdim=True).argmax(1, keepdim=True)


def energy(images: Tensor, brain: Tensor) -> float:
    return float(gradient_energy(images, brain, spacing_mm=[1.0, 1.0]).mean())


def scaled(images: Tensor, brain: Tensor) -> Tensor:
    """Images of standard deviation 1 in the brain, so that contrast does not count as sharpness."""
    return torch.stack([image / image[brain[0]].std() for image in images])


def baselines(data: str, output: Path) -> dict[str, Any]:
    """Measures of the mean image and the classical average, registered to by optimisation."""
    training, validation = (load(data, section, output) for section in ("training", "validation"))
    scans, brain = training["image"], brain_of(training)
    mean = scans.mean(0, keepdim=True)
    start = time.process_time()
    once_more = optimizer(levels=[1], iterations=20)
    deformation = StationaryVelocity(7)
    classical, _ = average_scans(scans, optimizer(), deformation, later=once_more, rounds=10, progress=True)
    result: dict[str, Any] = {"classical_cpu_seconds": time.process_time() - start}
    torch.save(classical, output / f"{data}_classical.pt")
    for name, template in (("mean", mean), ("classical", classical)):
        result[name] = judge(template, by_optimization(template), training, validation)
    result["scans_sharpness"] = energy(scans, brain) / energy(mean, brain)
    result["scans_sharpness_scaled"] = energy(scaled(scans, brain), brain) / energy(scaled(mean, brain), brain)
    return result
