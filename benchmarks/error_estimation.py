"""How well the bundle error_estimation knows the error of registrations of people it was not trained on.

    python -m benchmarks.error_estimation MAPS.npz --table labels.csv --output DIR [--weights FILE] [--cases 4]

MAPS is a file of `device_maps`; its validation people are rendered. Answers, of equal numbers: random errors of
standard deviations from 0.2 to 8 mm, and what `voxelmorph` and `synthmorph` err on pairs whose deformation is known;
moving and fixed image both T1-like, T1- and T2-like, or of random contrasts. DIR receives errors.csv, a row for each
contrast:

- within: Spearman's correlation of estimate and error over the voxels of an answer, mean over answers, by the network
  (with the field and without) and by |fixed - warped| and 1 - LNCC;
- between: that of the answers' means;
- rmse: root mean square of what the estimate misses, of the best constant for all answers, and of a constant that knows
  each answer's mean, mm; auc: how well voxels that err by more than 3 mm are told from the others.

With --deviation the answers of `voxelmorph_probabilistic` to T1-like pairs are judged, too, beside the standard
deviation of its samples.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Generator, Tensor

from benchmarks.error_estimation_training import BUNDLE, components, read_maps
from benchmarks.experiments import bundle_config
from custom_components.files import read_state, write_table
from custom_components.losses.similarity import box_sum
from custom_components.methods.error_estimation.residuals import NetworkAnswer
from custom_components.methods.error_estimation.simulation import LARGEST_MM, SimulatedErrors

CONTRASTS = {"T1/T1": ("t1", "t1", 1.0), "T1/T2": ("t1", "t2", 1.0), "random": ("t1", "t1", 0.0)}
_VOXELS = 20000  # of an answer, that are ranked


def coloured(simulation: SimulatedErrors, labels: Tensor, seed: int, contrast: str, answer: int) -> dict[str, Tensor]:
    """An answer by a network, or with -1 a random one, of images of given contrasts."""
    looks, intensities = [], simulation.contrast.intensities
    tables = intensities.tables
    for side in (0, 1):
        kind, share = CONTRASTS[contrast][side], CONTRASTS[contrast][2]
        intensities.tables = [tables[{"t1": 0, "t2": 2}[str(kind)]]]
        intensities.statistics_share = float(share)
        generator = Generator().manual_seed(1000 * seed + side)
        looks.append(simulation.contrast.draw(1, [n // 2 for n in labels.shape[2:]], generator))
    intensities.tables = tables
    draw = simulation.draw(1, labels.shape[2:], Generator().manual_seed(seed))
    mixture = torch.tensor([[0.0], [1.0]]) if answer < 0 else torch.tensor([[1.0], [0.0]])
    shown = torch.tensor([True])
    return simulation(labels, {**draw, "looks": looks, "answer": answer, "mixture": mixture, "shown": shown})


def dissimilar(image: Tensor) -> dict[str, Tensor]:
    """What differs without a network, smoothed over 5 voxels, and 1 - LNCC in windows of 9."""
    fixed, warped = image[:, :1], image[:, 1:2]
    ones = torch.ones_like(fixed)

    def mean(values: Tensor) -> Tensor:
        return box_sum(values, 9) / box_sum(ones, 9)

    a, b = fixed - mean(fixed), warped - mean(warped)
    lncc = mean(a * b).square() / (mean(a * a) * mean(b * b) + 1e-8)
    return {"difference": F.avg_pool3d((fixed - warped).abs(), 5, 1, 2), "1 - LNCC": 1 - lncc}


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the receiver's curve; NaN if all are alike."""
    count = positive.sum()
    if not 0 < count < len(positive):
        return float("nan")
    return float((rankdata(score)[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


@torch.no_grad()
def judge(network: torch.nn.Module, batch: dict[str, Tensor], more: dict[str, Tensor]) -> dict[str, Any]:
    """The ranked voxels of an answer: estimates by name, and the error."""
    image = batch["moving"]
    hidden = torch.cat([image[:, :2], torch.zeros_like(image[:, 2:])], 1)
    found = {"network": network(image), "without the field": network(hidden), **dissimilar(image), **more}
    places = batch["counts"].flatten().nonzero()[:, 0]
    places = places[:: max(1, len(places) // _VOXELS)]
    error = batch["error_mm"].clamp(max=LARGEST_MM)
    return {name: values.flatten()[places].numpy() for name, values in {**found, "error": error}.items()}


def summary(cases: list[dict[str, Any]]) -> dict[str, float]:
    """The measures of several answers."""
    names, errors = [name for name in cases[0] if name != "error"], [case["error"] for case in cases]
    row: dict[str, float] = {"answers": len(cases), "mean_error_mm": float(np.mean([e.mean() for e in errors]))}
    for name in names:
        row[f"within {name}"] = float(np.mean([spearman(case[name], case["error"]) for case in cases]))
        row[f"between {name}"] = spearman(
            np.array([c[name].mean() for c in cases]), np.array([e.mean() for e in errors])
        )
    every, all_errors = np.concatenate([case["network"] for case in cases]), np.concatenate(errors)
    row["rmse"] = float(np.sqrt(np.mean((every - all_errors) ** 2)))
    row["rmse constant"] = float(all_errors.std())
    row["rmse known means"] = float(np.sqrt(np.mean([e.var() for e in errors])))
    row["auc 3 mm"] = auc(every, all_errors > 3)
    row["auc 3 mm difference"] = auc(np.concatenate([case["difference"] for case in cases]), all_errors > 3)
    return row


def cases_of(
    simulation: SimulatedErrors, maps: Tensor, network: torch.nn.Module, contrast: str, seeds: range
) -> Iterator[dict[str, Any]]:
    for k in seeds:
        for answer in range(-1, len(simulation.answers)):
            one = maps[k % len(maps)][None]
            yield judge(network, coloured(simulation, one, k, contrast, answer), {})


def probabilistic(samples: int = 8) -> tuple[NetworkAnswer, Any]:
    """The network that says how sure it is, and its deformation."""
    config = bundle_config("voxelmorph_probabilistic", ["inference"], device=torch.device("cpu"))
    weights = BUNDLE.parent / "voxelmorph_probabilistic" / "models" / "model.pt"
    deformation = config.get_parsed_content("deformation")
    return NetworkAnswer(config.get_parsed_content("network_def"), weights, deformation), deformation


@torch.no_grad()
def deviations(
    simulation: SimulatedErrors, maps: Tensor, network: torch.nn.Module, seeds: range
) -> Iterator[dict[str, Any]]:
    """Answers of the probabilistic network with the deviation of 8 samples."""
    answer, deformation = probabilistic()
    simulation.answers = [answer]
    pairs: list[tuple[Tensor, Tensor]] = []

    def remembered(moving: Tensor, fixed: Tensor) -> Tensor:
        pairs.append((moving, fixed))
        return NetworkAnswer.__call__(answer, moving, fixed)

    simulation.answers = [remembered]  # type: ignore[list-item]
    for k in seeds:
        batch = coloured(simulation, maps[k % len(maps)][None], k, "T1/T1", 0)
        moving, fixed = pairs.pop()
        parameters = answer.network.on(moving.device)(torch.cat([moving, fixed], 1))
        generator = Generator().manual_seed(0)
        drawn = [deformation.draw(parameters, moving.shape[2:], generator=generator)["ddf"] for _ in range(8)]
        sd = torch.cat(drawn).var(0).sum(0).sqrt()[None, None]
        yield judge(network, batch, {"deviation": sd})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=BUNDLE / "models" / "model.pt")
    parser.add_argument("--cases", type=int, default=4, help="of each kind of answer")
    parser.add_argument("--seed", type=int, default=500, help="the first one")
    parser.add_argument("--deviation", action="store_true")
    options = parser.parse_args()
    network, simulation = components(options.table)
    network.load_state_dict(read_state(options.weights))
    network.eval()
    maps = read_maps(options.maps, "validation", torch.device("cpu"))
    rows, seeds = [], range(options.seed, options.seed + options.cases)
    for contrast in CONTRASTS:
        found = list(cases_of(simulation, maps, network, contrast, seeds))
        rows.append({"contrast": contrast, "kind": "all", **summary(found)})
        kinds = 1 + len(simulation.answers)
        rows.append({"contrast": contrast, "kind": "random errors", **summary(found[::kinds])})
        networks = [case for k, case in enumerate(found) if k % kinds]
        rows.append({"contrast": contrast, "kind": "networks' errors", **summary(networks)})
    if options.deviation:
        found = list(deviations(simulation, maps, network, seeds))
        rows.append({"contrast": "T1/T1", "kind": "voxelmorph_probabilistic", **summary(found)})
    options.output.mkdir(parents=True, exist_ok=True)
    write_table(options.output / "errors.csv", rows)
    for row in rows:
        print({name: value if isinstance(value, str) else round(value, 3) for name, value in row.items()}, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
