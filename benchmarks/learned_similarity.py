"""Learned similarities against others: from how far a rigid start leads back, and how exactly.

    python -m benchmarks.learned_similarity MAPS --table labels.csv --weights DIR --output CSV

Pairs of one person in two renderings, of the validation people of MAPS (see `device_maps`), lie on one another. Starts
are rigid offsets of known TRE: the root mean square over a ball of 60 mm about the centre. From each start every
similarity descends in the same way (`inference.rigid_search`). CSV receives for each similarity, pair of contrasts and
TRE at the start the share of starts that end below 3 mm (captured), and the median TRE at the end.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from custom_components.inference.rigid_search import Poses
from custom_components.losses.gradients import NGF
from custom_components.losses.information import NormalizedMutualInformation
from custom_components.losses.similarity import LNCC, MIND, MutualInformation
from custom_components.methods.learned_similarity.offsets import ball_covariance, rms_displacement
from custom_components.methods.learned_similarity.similarity import FeatureDistance, LearnedSimilarity
from custom_components.space.affine_levels import Scan
from custom_components.space.grids import fixed_size_grid

RADIUS_MM, CAPTURED_MM = 60.0, 3.0
STARTS_MM = (5.0, 10.0, 20.0, 30.0, 45.0, 60.0)
AT_ONCE = {"cpu": 8, "cuda": 32}  # starts, by the kind of device


@dataclass(frozen=True)
class Measure:
    """A similarity, and the shrink factors at which it is followed."""

    similarity: nn.Module
    levels: tuple[int, ...] = (2, 1)


def classical() -> dict[str, Measure]:
    """What is not learned, by its name."""
    found = {
        "mi": MutualInformation(seed=0),
        "nmi": NormalizedMutualInformation(seed=0),
        "mind": MIND(),
        "lncc": LNCC(9),
        "ngf": NGF(),
    }
    return {name: Measure(similarity) for name, similarity in found.items()}


def learned(weights: Path, d: int) -> dict[str, Measure]:
    """What is learned, as far as DIR has weights."""
    end = "" if d == 3 else "_2d"
    files = {name: weights / f"{name}{end}.pt" for name in ("volumes", "patches", "features")}
    found: dict[str, Measure] = {}
    for form in ("volumes", "patches"):
        if files[form].is_file():
            similarity = LearnedSimilarity(form, spatial_dims=d, weights=files[form])
            found[form] = Measure(similarity, (1,) if form == "volumes" else (2, 1))
    if files["features"].is_file():
        found["features"] = Measure(FeatureDistance(spatial_dims=d, weights=files["features"]))
    return found


def tre(poses: Poses, numbers: Tensor) -> Tensor:
    """The TRE of poses (B, P) whose right answer is 0, (B,), mm."""
    matrices = poses.matrices(numbers)
    d, center = poses.d, poses.center
    shift = (matrices[:, :d, :d] @ center) + matrices[:, :d, d] - center
    return rms_displacement(torch.cat([matrices[:, :d, :d], shift[:, :, None]], 2), ball_covariance(RADIUS_MM, d))


def starts_of(poses: Poses, each: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random poses, `each` of every TRE, and their TRE."""
    wanted = torch.tensor(STARTS_MM, dtype=torch.float64).repeat_interleave(each)
    numbers = torch.randn(
        len(wanted), poses.turns + poses.d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    numbers = numbers / numbers.norm(dim=1, keepdim=True) * wanted[:, None]
    for _ in range(6):
        numbers = numbers * (wanted / tre(poses, numbers))[:, None]
    return numbers.float(), wanted


def scans(pair: Tensor, spacing: float) -> tuple[Scan, Scan]:
    """Moving and fixed image of (2, *S) on one grid."""
    grid = fixed_size_grid(spacing, tuple(pair.shape[1:]))
    moving, fixed = (Scan(image[None], torch.ones_like(image[None]), grid) for image in pair)
    return moving, fixed


def ends_of(
    measure: Measure, moving: Scan, fixed: Scan, truth: np.ndarray, *, each: int, iterations: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """TRE of the starts and of where they lead to, about the truth, mm."""
    numbers, wanted, at_once = None, None, AT_ONCE[fixed.image.device.type]
    for factor in measure.levels:
        spacing = factor * float(fixed.grid.spacing.mean())
        pair = (fixed, moving) if factor == 1 else (fixed.reduced(spacing), moving.reduced(spacing))
        poses = Poses(measure.similarity, *pair, truth, passes=4, seed=seed)
        if numbers is None:
            numbers, wanted = starts_of(poses, each, seed=seed)
        found = [poses.descend(part, iterations) for part in numbers.split(at_once)]
        numbers = torch.cat(found)
    assert wanted is not None
    assert numbers is not None
    return wanted, tre(poses, numbers)


def rows_of(name: str, contrast: str, start: Tensor, end: Tensor) -> list[dict[str, object]]:
    """A row for each TRE at the start."""
    rows = []
    for value in start.unique().tolist():
        ends = end[start == value]
        rows.append(
            {
                "similarity": name,
                "contrast": contrast,
                "start_mm": value,
                "number": len(ends),
                "captured": round(float((ends < CAPTURED_MM).float().mean()), 4),
                "median_end_mm": round(float(ends.median()), 3),
            }
        )
    return rows


def measured(
    measures: Mapping[str, Measure],
    pairs: Mapping[str, Sequence[tuple[Scan, Scan, np.ndarray]]],
    output: Path,
    *,
    each: int,
    iterations: int = 40,
    until: float = np.inf,
) -> list[dict[str, object]]:
    """Rows of all measures and pairs (moving, fixed, truth), written as they are found, until a time."""
    rows: list[dict[str, object]] = []
    longest = 0.0
    for contrast, several in pairs.items():
        for name, measure in measures.items():
            begin = time.monotonic()
            if begin + longest > until:
                return rows
            found = [
                ends_of(measure, moving, fixed, truth, each=each, iterations=iterations, seed=number)
                for number, (moving, fixed, truth) in enumerate(several)
            ]
            start, end = (torch.cat(values) for values in zip(*found, strict=True))
            rows += rows_of(name, contrast, start, end)
            with open(output, "w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
            longest = max(longest, time.monotonic() - begin)
            shown = " ".join(f"{row['captured']:.2f}" for row in rows[-len(start.unique()) :])
            print(f"{contrast} {name}: {shown} ({time.monotonic() - begin:.1f} s)", flush=True)
    return rows


def rendered_pairs(
    maps: Path, table: Path, d: int, size: int, device: torch.device, people: int = 4
) -> dict[str, list[tuple[Scan, Scan, np.ndarray]]]:
    """Aligned pairs of the validation people, whole heads, by the contrasts of moving and fixed image."""
    from benchmarks.device_offsets import Offsets
    from benchmarks.device_similarity import SPACING, Amounts, read_course

    course = read_course(maps, table, d, Amounts(people, people, size), device)
    found = {}
    for name, kinds in {"t1 to t2": (0, 1), "t1 to inverted": (0, 2), "random to random": (3, 3)}.items():
        torch.manual_seed(1)
        rest = torch.zeros(people, d, d + 1, device=device)
        rest[:, :, :d] = torch.eye(d, device=device)
        offsets = Offsets(rest, torch.zeros(people, device=device), SPACING[d])
        kind = torch.tensor(kinds, device=device)[:, None].expand(2, people).contiguous()
        image, _ = course.held_out(course.held_out.canvas(people), offsets, kind, same=0.0)
        found[name] = [(*scans(pair, SPACING[d]), np.eye(d + 1)) for pair in image]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--spatial_dims", type=int, default=3)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--each", type=int, default=4, help="starts of each TRE and pair")
    parser.add_argument("--iterations", type=int, default=40, help="at each level")
    parser.add_argument("--only", nargs="*", help="names of similarities")
    parser.add_argument("--seconds", type=float, default=np.inf)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    measures = learned(options.weights, options.spatial_dims) | classical()
    measures = {k: m for k, m in measures.items() if not options.only or k in options.only}
    device = torch.device(options.device)
    for measure in measures.values():
        measure.similarity.to(device)
    pairs = rendered_pairs(options.maps, options.table, options.spatial_dims, options.size, device, options.people)
    measured(measures, pairs, options.output, each=options.each, iterations=options.iterations, until=until)


if __name__ == "__main__":
    main()
