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
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn

from custom_components.affine import ball_displacement
from custom_components.commands.bundles import bundles_folder
from custom_components.inference.rigid_search import Poses
from custom_components.losses.gradients import NGF
from custom_components.losses.information import NormalizedMutualInformation
from custom_components.losses.similarity import LNCC, MIND, MutualInformation
from custom_components.methods.brain_extraction.network import BrainUNet
from custom_components.methods.learned_similarity.similarity import FeatureDistance, LearnedSimilarity
from custom_components.space.affine_levels import Scan, image_weights
from custom_components.space.grids import center_of_mass, fixed_size_grid
from custom_components.space.resampling import resample

BUNDLES = bundles_folder()
RADIUS_MM, CAPTURED_MM = 60.0, 3.0
SAMPLES = 10_000  # voxels of which mutual information is estimated
STARTS_MM = (5.0, 10.0, 20.0, 30.0, 45.0, 60.0)
AT_ONCE = {"cpu": 8, "cuda": 32}  # starts, by the kind of device


@dataclass(frozen=True)
class Measure:
    """Similarities that are followed one after the other, each with the shrink factor of the images, and how often a
    pose is looked at."""

    stages: tuple[tuple[nn.Module, int], ...]
    passes: int = 4

    @classmethod
    def of(cls, similarity: nn.Module, levels: Sequence[int] = (1,)) -> Measure:
        """One similarity, at one level or coarse to fine."""
        return cls(tuple((similarity, level) for level in levels))


def classical() -> dict[str, Measure]:
    """What is not learned, by its name."""
    found = {
        "mi": MutualInformation(num_samples=SAMPLES, seed=0),
        "nmi": NormalizedMutualInformation(num_samples=SAMPLES, seed=0),
        "mind": MIND(),
        "lncc": LNCC(9),
        "ngf": NGF(),
    }
    return {name: Measure.of(similarity) for name, similarity in found.items()}


def learned(weights: Path, d: int) -> dict[str, Measure]:
    """What is learned, as far as DIR has weights."""
    end = "" if d == 3 else "_2d"
    files = {name: weights / f"{name}{end}.pt" for name in ("volumes", "patches", "features")}
    found: dict[str, Measure] = {}
    for form in ("volumes", "patches"):
        if files[form].is_file():
            similarity = LearnedSimilarity(form, spatial_dims=d, weights=files[form])
            found[form] = Measure.of(similarity)
    if "volumes" in found:
        coarse, information = found["volumes"].stages[0], MutualInformation(num_samples=SAMPLES, seed=0)
        found["volumes, one pass"] = Measure((coarse,), passes=1)
        found["volumes, then mi"] = Measure((coarse, (information, 1)))
    if files["features"].is_file():
        found["features"] = Measure.of(FeatureDistance(spatial_dims=d, weights=files["features"]))
    brain = BUNDLES / "brain_extraction" / "models" / "model.pt"
    if d == 3:
        network = BrainUNet()
        stages = [nn.Sequential(network.stem, network.encode_1), network.encode_2, network.encode_3]
        found["brain_features"] = Measure.of(FeatureDistance(weights=brain, network=network, stages=stages))
    return found


@dataclass(frozen=True)
class Trial:
    """What is tried.

    Args:
        each: starts of each TRE and pair.
        iterations: of the descent.
        starts_mm: TRE at the start.
        radius_mm: of the ball over which the TRE is taken.
        captured_mm: below which a start counts as captured.
        poses: what is searched.
    """

    each: int = 4
    iterations: int = 40
    starts_mm: Sequence[float] = STARTS_MM
    radius_mm: float = RADIUS_MM
    captured_mm: float = CAPTURED_MM
    poses: type[Poses] = Poses


def tre(poses: Poses, numbers: Tensor, radius_mm: float = RADIUS_MM) -> Tensor:
    """The TRE of poses (B, P) whose right answer is 0, (B,), mm."""
    matrices = poses.matrices(numbers)
    d, center = poses.d, poses.center
    shift = (matrices[:, :d, :d] @ center) + matrices[:, :d, d] - center
    return ball_displacement(torch.cat([matrices[:, :d, :d], shift[:, :, None]], 2), radius_mm)


def starts_of(poses: Poses, trial: Trial, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random poses, as many of every TRE as are tried, and their TRE."""
    wanted = torch.tensor(trial.starts_mm, dtype=torch.float64).repeat_interleave(trial.each)
    numbers = torch.randn(
        len(wanted), poses.turns + poses.d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    numbers = numbers / numbers.norm(dim=1, keepdim=True) * wanted[:, None]
    for _ in range(6):
        numbers = numbers * (wanted / tre(poses, numbers, trial.radius_mm))[:, None]
    return numbers.float(), wanted


def scans(pair: Tensor, spacing: float) -> tuple[Scan, Scan]:
    """Moving and fixed image of (2, *S) on one grid."""
    grid = fixed_size_grid(spacing, tuple(pair.shape[1:]))
    moving, fixed = (Scan(image[None], torch.ones_like(image[None]), grid) for image in pair)
    return moving, fixed


def ends_of(
    measure: Measure, moving: Scan, fixed: Scan, truth: np.ndarray, trial: Trial, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """TRE of the starts and of where they lead to, about the truth, mm."""
    numbers, wanted, at_once = None, None, AT_ONCE[fixed.image.device.type]
    for similarity, factor in measure.stages:
        spacing = factor * float(fixed.grid.spacing.mean())
        pair = (fixed, moving) if factor == 1 else (fixed.reduced(spacing), moving.reduced(spacing))
        poses = trial.poses(similarity, *pair, truth, passes=measure.passes, seed=seed)
        if numbers is None:
            numbers, wanted = starts_of(poses, trial, seed=seed)
        found = [poses.descend(part, trial.iterations) for part in numbers.split(at_once)]
        numbers = torch.cat(found)
    assert wanted is not None
    assert numbers is not None
    return wanted, tre(poses, numbers, trial.radius_mm)


def rows_of(name: str, contrast: str, start: Tensor, end: Tensor, captured_mm: float) -> list[dict[str, object]]:
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
                "captured": round(float((ends < captured_mm).float().mean()), 4),
                "median_end_mm": round(float(ends.median()), 3),
            }
        )
    return rows


def measured(
    measures: Mapping[str, Measure],
    pairs: Mapping[str, Sequence[tuple[Scan, Scan, np.ndarray]]],
    output: Path,
    trial: Trial,
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
                ends_of(measure, moving, fixed, truth, trial, seed=number)
                for number, (moving, fixed, truth) in enumerate(several)
            ]
            start, end = (torch.cat(values) for values in zip(*found, strict=True))
            rows += rows_of(name, contrast, start, end, trial.captured_mm)
            with open(output, "w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
            longest = max(longest, time.monotonic() - begin)
            shown = " ".join(f"{row['captured']:.2f}" for row in rows[-len(start.unique()) :])
            print(f"{contrast} {name}: {shown} ({time.monotonic() - begin:.1f} s)", flush=True)
    return rows


def rendered_pairs(
    maps: Path, table: Path, d: int, *, size: int, spacing: float, device: torch.device, people: int = 4
) -> dict[str, list[tuple[Scan, Scan, np.ndarray]]]:
    """Aligned pairs of the validation people, whole heads, by the contrasts of moving and fixed image."""
    from benchmarks.device_offsets import Offsets
    from benchmarks.device_similarity import Amounts, read_course

    course = read_course(maps, table, d, Amounts(people, people, size), device)
    found = {}
    for name, kinds in {"t1 to t2": (0, 1), "random to random": (3, 3)}.items():
        torch.manual_seed(1)
        rest = torch.zeros(people, d, d + 1, device=device)
        rest[:, :, :d] = torch.eye(d, device=device)
        offsets = Offsets(rest, torch.zeros(people, device=device), spacing)
        kind = torch.tensor(kinds, device=device)[:, None].expand(2, people).contiguous()
        image, _ = course.held_out(course.held_out.canvas(people), offsets, kind, same=0.0)
        found[name] = [(*scans(pair, spacing), np.eye(d + 1)) for pair in image]
    return found


def real_pairs(data: Path, d: int, *, size: int, spacing: float) -> dict[str, list[tuple[Scan, Scan, np.ndarray]]]:
    """Real images of two contrasts whose map is known: T1 and T2 slices of 12 people, or a CT to a T1 template and a
    person's T1 to an EPI, as brains are and as heads are; the latter two are known to some 2 mm."""
    if d == 2:
        folder = data / "t1t2_slices"
        entries = json.loads((folder / "datalist.json").read_text())
        pairs = [
            [folder / e[f"image_{k}"] for k in ("t1", "t2")] for p in ("training", "validation") for e in entries[p]
        ]
        return {"real t1 to t2": [_scans_of(*pair, np.eye(3), size, spacing) for pair in pairs]}
    from nilearn import datasets

    t1 = datasets.load_mni152_template(resolution=2)
    source = data / "subject_to_template"
    truth = np.array(json.loads((source / "transforms.json").read_text())["S1_EPI_fullhead"]["EPI_world_to_T1_world"])
    epi = _scans_of(source / "S1_T1.nii.gz", source / "S1_EPI_fullhead.nii.gz", truth, size, spacing)
    return {
        "ct to t1": [_scans_of(data / "ct_mr_templates" / "ct_brain.nii.gz", t1, np.eye(4), size, spacing)],
        "t1 to epi": [epi],
    }


def _scans_of(
    moving: Path | Any, fixed: Path | Any, truth: np.ndarray, size: int, spacing: float
) -> tuple[Scan, Scan, np.ndarray]:
    """Both images on grids about their centres, from 0 to 1 between their percentiles."""
    found = []
    for image in (moving, fixed):
        image = nib.load(image) if isinstance(image, Path) else image
        values = torch.as_tensor(np.asarray(image.dataobj, dtype=np.float32))[None].nan_to_num()
        d = values.ndim - 1
        affine = image.affine if d == 3 else image.affine[np.ix_([0, 1, 3], [0, 1, 3])]
        low, high = np.percentile(values.numpy(), [0.5, 99.5])
        values = ((values - low) / (high - low)).clamp(0, 1)
        center = center_of_mass(image_weights(values), affine)
        grid = fixed_size_grid(spacing, (size,) * d, center)
        values = resample(values, affine, grid, antialias=True)
        found.append(Scan(values, torch.ones_like(values), grid))
    return found[0], found[1], truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path, help="a file of maps, or with --real the folder of test data")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--real", action="store_true", help="real images in place of rendered ones")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--spatial_dims", type=int, default=3)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--spacing", type=float, default=6.0)
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--each", type=int, default=4, help="starts of each TRE and pair")
    parser.add_argument("--iterations", type=int, default=40, help="at each level")
    parser.add_argument("--contrasts", nargs="*", help="names of pairs of contrasts")
    parser.add_argument("--only", nargs="*", help="names of similarities")
    parser.add_argument("--seconds", type=float, default=np.inf)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    measures = learned(options.weights, options.spatial_dims) | classical()
    measures = {k: m for k, m in measures.items() if not options.only or k in options.only}
    device = torch.device(options.device)
    for measure in measures.values():
        for similarity, _ in measure.stages:
            similarity.to(device)
    shape = {"size": options.size, "spacing": options.spacing}
    if options.real:
        pairs = real_pairs(options.maps, options.spatial_dims, **shape)
    else:
        given = {**shape, "device": device, "people": options.people}
        pairs = rendered_pairs(options.maps, options.table, options.spatial_dims, **given)
    pairs = {k: p for k, p in pairs.items() if not options.contrasts or k in options.contrasts}
    measured(measures, pairs, options.output, Trial(options.each, options.iterations, STARTS_MM), until)


if __name__ == "__main__":
    main()
