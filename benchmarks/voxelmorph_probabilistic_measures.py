"""Measures of a trained probabilistic VoxelMorph: accuracy, folds, and how its uncertainty agrees with known errors."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.experiments import NARROW, PEOPLE, bundle_config, shuffled
from custom_components.data.lists import load_list
from custom_components.data.phantoms import random_velocity
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import integrate_velocity, jacobian_determinant, warp
from custom_components.files import write_metrics, write_table
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.pair import pair_loss
from custom_components.methods.voxelmorph_probabilistic.deformation import GaussianVelocity
from custom_components.methods.voxelmorph_probabilistic.inference import SamplesInferer
from custom_components.transforms.load import LoadPaird

BUNDLE = "voxelmorph_probabilistic"


def measure(
    folder: Path, slices: Path, *, smoothing: float | None, samples: int, num_pairs: int, white_noise: bool, known: bool
) -> None:
    """All measures of a trained variant: FOLDER/rows.csv, a line for each pair, and FOLDER/result.json.

    Args:
        folder: holds model.pt.
        slices: folder with datalist.json.
        smoothing: of the posterior; None: the bundle's.
        samples: drawn for each pair.
        num_pairs: pairs to measure.
        white_noise: count the folds of samples whose noise is not smoothed, too.
        known: compare the uncertainty with the errors of known deformations.
    """
    config = bundle_config(BUNDLE, ["train", "train_2d"], **NARROW, smoothing=smoothing, device=torch.device("cpu"))
    network = config.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    deformation = config.get_parsed_content("deformation")
    refinements = refinements_of(config, smoothing)
    items = shuffled(load_list(slices / "datalist.json", "validation_pairs", slices), num_pairs)
    load, rows = LoadPaird(spacing=1.0), []
    for i, item in enumerate(items):
        pair = load(item)
        row = {role: Path(item[role]).name.partition("_")[0] for role in PEOPLE}
        inferer = SamplesInferer(RegistrationInferer(deformation, inverse=True), deformation, samples=samples, seed=i)
        row |= measure_pair(inferer, network, pair)
        if i < num_pairs // 3:
            row["unrefined"] = row["forward"]
            for key, refinement in refinements.items():
                row |= measure_refined(RegistrationInferer(deformation, refinement=refinement), network, pair, key)
            if white_noise:
                row["white_folded"] = white_folds(network, deformation, pair, samples, seed=i)
        rows.append(row)
    write_table(folder / "rows.csv", rows)
    result = means(rows)
    if known:
        each_slice_once = list({item["fixed"]: item for item in items}.values())[:48]
        pairs = [load(item) for item in each_slice_once]
        for key, refinement in (("uncertainty", None), ("uncertainty_refined", refinements["refined"])):
            result[key] = known_deformations(deformation, refinement, network, pairs, 10 * samples)
    write_metrics(folder / "result.json", result)


def refinements_of(config: Any, smoothing: float | None) -> dict[str, Any]:
    """The bundle's refinement (LNCC), and one with the training's own objective."""
    names = ["inference", "inference_2d"]
    inference = bundle_config(BUNDLE, names, smoothing=smoothing, optimize=20)
    inference.update({"refinement#progress": False})
    refined = inference.get_parsed_content("refinement")
    # The training's objective in one direction, for the mean alone: its smoothness term is lambda D / 4 of ours.
    weight = config.get_parsed_content("prior_precision") * config.get_parsed_content("spatial_dims") / 4
    own = copy.copy(refined)
    own.loss = pair_loss(weight, similarity=config.get_parsed_content("similarity"))
    return {"refined": refined, "refined_own": own}


def means(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean of each measure over the pairs that have it, and the numbers of pairs."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in PEOPLE]
    found: dict[str, Any] = {key: float(np.mean([row[key] for row in rows if key in row])) for key in keys}
    return found | {"pairs": len(rows), "refined_pairs": sum("refined" in row for row in rows)}


def dice(ddf: Tensor, pair: dict[str, Any], source: str = "moving", target: str = "fixed") -> float:
    warped = warp(pair[f"label_{source}"][None], ddf, mode="nearest")
    return float(mean_dice(warped, pair[f"label_{target}"][None]))


def folds(ddf: Tensor, brain: Tensor) -> float:
    """Pixels of the brain with det J <= 0."""
    return float((jacobian_determinant(ddf) <= 0)[brain].sum())


@torch.no_grad()
def measure_pair(inferer: SamplesInferer, network: Any, pair: dict[str, Any]) -> dict[str, float]:
    pred = inferer(pair["image"][None], network)
    brain = pair["label_fixed"][None] > 0
    drawn = pred["ddf_samples"][0].split(1)
    row = {
        "before": float(mean_dice(pair["label_moving"][None], pair["label_fixed"][None])),
        "forward": dice(pred["ddf"], pair),
        "inverse": dice(pred["inverse_ddf"], pair, "fixed", "moving"),
        "sample": float(np.mean([dice(ddf, pair) for ddf in drawn])),
        "folded": folds(pred["ddf"], brain),
        "sample_folded": float(np.mean([folds(ddf, brain) for ddf in drawn])),
        "sd": float(spread(pred["ddf_samples"])[brain].mean()),
    }
    return {**row, "difference": abs(row["forward"] - row["inverse"])}


@torch.no_grad()
def measure_refined(inferer: RegistrationInferer, network: Any, pair: dict[str, Any], name: str) -> dict[str, float]:
    ddf = inferer(pair["image"][None], network)["ddf"]
    return {name: dice(ddf, pair), f"{name}_folded": folds(ddf, pair["label_fixed"][None] > 0)}


@torch.no_grad()
def white_folds(network: Any, deformation: Any, pair: dict[str, Any], samples: int, seed: int) -> float:
    """Folds a sample of the same mean with white noise that spreads the displacement in the brain as much."""
    white = GaussianVelocity(deformation.num_steps, smoothing=0)
    brain = pair["label_fixed"][None] > 0
    parameters = network(pair["image"][None])
    dims = parameters.shape[1] // 2

    def draw(source: GaussianVelocity) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        fields = [source.draw(parameters, brain.shape[2:], generator=generator)["ddf"] for _ in range(samples)]
        return torch.stack(fields, 1)

    wanted = spread(draw(deformation))[brain].mean()
    for _ in range(4):
        fields = draw(white)
        parameters[:, dims:] += 2 * torch.log(wanted / spread(fields)[brain].mean())
    return float(np.mean([folds(ddf, brain) for ddf in fields[0].split(1)]))


def spread(samples: Tensor) -> Tensor:
    """Root of the summed variances of the components, (B, 1, *S), of samples (B, K, D, *S)."""
    return samples.var(1).sum(1, keepdim=True).sqrt()


@torch.no_grad()
def known_deformations(
    deformation: Any, refinement: Any, network: Any, pairs: Sequence[dict[str, Any]], samples: int, noise: float = 0.03
) -> dict[str, Any]:
    """Predicted standard deviation against the actual error, on validation slices deformed by a known map.

    Each slice is deformed by a random velocity (B-splines of 16 and 32 pixels, at most 8 pixels long), with other noise
    and brightness; only the brain counts. For the calibration, pixels are sorted by the deviation of half the samples,
    and that of the other half is reported, so that the deviations' own sampling error does not sort them.
    """
    generator = torch.Generator().manual_seed(0)
    errors, before, halves, deviations = [], [], [], []
    for i, pair in enumerate(pairs):
        fixed, brain = pair["fixed"][None], pair["label_fixed"][None] > 0
        size = fixed.shape[2:]
        velocity = random_velocity(size, amplitude=8.0, spacings=(16.0, 32.0), generator=generator)
        truth, inverse = integrate_velocity(velocity), integrate_velocity(-velocity)
        moving = warp(fixed, inverse)  # so that fixed(x) = moving(truth(x))
        gain = 1 + 0.1 * (2 * torch.rand(1, generator=generator) - 1)
        moving = (gain * moving + noise * torch.randn(size, generator=generator)).clamp(0, 1)
        target = (fixed + noise * torch.randn(size, generator=generator)).clamp(0, 1)
        registration = RegistrationInferer(deformation, refinement=refinement)
        inferer = SamplesInferer(registration, deformation, samples=samples, seed=i)
        pred = inferer(torch.cat([moving, target], 1), network)
        drawn = pred["ddf_samples"]
        errors.append((pred["ddf"] - truth).norm(dim=1, keepdim=True)[brain])
        before.append(truth.norm(dim=1, keepdim=True)[brain])
        halves.append(torch.stack([spread(half)[brain] for half in drawn.chunk(2, 1)]))
        deviations.append(spread(drawn)[brain])
    error = torch.cat(errors)
    first, second = torch.cat(halves, 1)
    bins = first.argsort().tensor_split(10)
    return {
        **agreement(before, errors, deviations),
        "bins_sd": [rms(second[i]) for i in bins],
        "bins_error": [rms(error[i]) for i in bins],
    }


def agreement(before: Sequence[Tensor], errors: Sequence[Tensor], deviations: Sequence[Tensor]) -> dict[str, Any]:
    """Predicted deviations against actual errors, in voxels or pixels: means over all, and correlations.

    Args:
        before, errors, deviations: of each pair, at its N voxels that count, (N,); `before` without registration.
    """
    both = [torch.stack(one) for one in zip(errors, deviations, strict=True)]
    error, deviation = torch.cat(both, 1)
    return {
        "pairs": len(both),
        "before": float(torch.cat(list(before)).mean()),
        "error": float(error.mean()),
        "error_rms": rms(error),
        "sd_rms": rms(deviation),
        "correlation": float(torch.corrcoef(torch.stack([error, deviation]))[0, 1]),
        "correlation_within_pair": float(np.mean([float(torch.corrcoef(one)[0, 1]) for one in both])),
        "rank_correlation_within_pair": float(np.mean([float(torch.corrcoef(ranks(one))[0, 1]) for one in both])),
    }


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def ranks(values: Tensor) -> Tensor:
    return values.argsort(1).argsort(1).float()
