"""Train the networks of `learned_similarity` for a given time, all of it on one device.

    python -m benchmarks.device_similarity MAPS --table labels.csv --seconds 240 --output DIR

MAPS is a file of `device_maps`. The networks learn in turn from pairs that `device_offsets` makes: "volumes" estimates
distances at 3 mm; "patches" classifies patches at spacings of 1 to 8 mm; "features" restores the same images from noisy
ones; and the same three in 2-D, on slices. DIR receives for each `<name>.pt` (the weights' running mean, in half
precision) and `<name>.csv` (the curve, with figures of the validation people), every 30 s and at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.device_offsets import OffsetPairs, Offsets, draw_kinds, narrow, wide
from benchmarks.device_slices import PLANE, take_slices
from benchmarks.device_step import label_table, read_maps
from benchmarks.device_synthesis import Augmentation, DevicePairs
from benchmarks.device_training import Curve
from custom_components.files import save_tensors
from custom_components.methods.learned_similarity.network import AlignmentNetwork, PatchAutoencoder, small
from custom_components.methods.learned_similarity.objective import (
    at_cells,
    correspondence_loss,
    distance_loss,
    distance_of,
    structure_of,
)

SPACING = {3: 3.0, 2: 2.0}  # of the volumes
LARGEST_MM = 30.0
SPACINGS = (1.0, 1.5, 2.0, 2.0, 3.0, 4.0, 6.0, 8.0)  # of the patches, each as often: those of a pyramid's levels
NOISE = 0.05  # that is added to what the autoencoder sees


@dataclass(frozen=True)
class Amounts:
    """People and pairs of a step, and voxels of the images along an axis."""

    people: int
    pairs: int
    size: int


class Learner:
    """A network, its optimiser and the running mean of its weights.

    Args:
        name: of its files.
        network: what learns.
        loss: from images (B, 2, *S) and distances (B, 1, *S) in voxels to a scalar.
        rate: the largest learning rate.
    """

    def __init__(
        self, name: str, network: nn.Module, loss: Callable[[nn.Module, Tensor, Tensor], Tensor], rate: float = 2e-3
    ) -> None:
        self.name, self.network, self.loss, self.rate = name, network, loss, rate
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-4)
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
        self.mean = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=average, use_buffers=True)
        self.sum = torch.zeros(2, device=next(network.parameters()).device)

    def step(self, image: Tensor, distance: Tensor, progress: float) -> None:
        """One step; the rate rises over the first 3 % of the time and falls to 0 by a cosine."""
        rate = self.rate * min(1.0, progress / 0.03 + 0.02) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        self.optimizer.param_groups[0]["lr"] = rate
        self.network.train()
        with torch.autocast(image.device.type, torch.bfloat16, enabled=image.device.type == "cuda"):
            value = self.loss(self.network, image, distance)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.mean.update_parameters(self.network)
        with torch.no_grad():
            self.sum += torch.stack([value.detach().float(), torch.ones_like(value, dtype=torch.float32)])

    def write(self, output: Path) -> None:
        state = {k: v.cpu().contiguous() for k, v in self.mean.module.state_dict().items()}
        save_tensors(output / f"{self.name}.pt", small(state))


def volumes_loss(network: nn.Module, image: Tensor, distance: Tensor, spacing: float) -> Tensor:
    found = network(image).float()
    return distance_loss(found, spacing * at_cells(distance, 8))


def patches_loss(network: nn.Module, image: Tensor, distance: Tensor) -> Tensor:
    return correspondence_loss(network(image).float(), at_cells(distance, 4), structure_of(image, 4))


def features_loss(network: nn.Module, image: Tensor, distance: Tensor) -> Tensor:
    image = image.flatten(0, 1)[:, None]
    return (network(image + NOISE * torch.randn_like(image)).float() - image).square().mean()


class Course:
    """All learners of one dimension, and where their pairs come from.

    Args:
        training, held_out: the people.
        amounts: of a step.
    """

    def __init__(self, training: DevicePairs, held_out: DevicePairs, amounts: Amounts) -> None:
        self.d, self.device, self.amounts = training.spatial_dims, training.maps.device, amounts
        unit = {3: 1.0, 2: 0.5}[self.d]
        self.pairs = OffsetPairs(training, amounts.size, unit)
        self.held_out = OffsetPairs(held_out, amounts.size, unit, varied=False)
        end = "" if self.d == 3 else f"_{self.d}d"
        self.spacing = SPACING[self.d]
        losses = {
            "volumes": partial(volumes_loss, spacing=self.spacing),
            "patches": patches_loss,
            "features": features_loss,
        }
        networks = {
            "volumes": AlignmentNetwork.volumes(self.d),
            "patches": AlignmentNetwork.patches(self.d),
            "features": PatchAutoencoder(self.d),
        }
        self.learners = {k: Learner(k + end, n.to(self.device), losses[k]) for k, n in networks.items()}

    def wide(self, count: int) -> Offsets:
        return wide(count, LARGEST_MM, self.spacing, self.device, self.d)

    @torch.no_grad()
    def batch(self, source: OffsetPairs, offsets: Callable[[int], Offsets], scale: float) -> tuple[Tensor, Tensor]:
        """Images, and distances in voxels of `scale` mm."""
        a = self.amounts
        image, distance = source(source.canvas(a.people), offsets(a.pairs), draw_kinds(a.pairs, self.device))
        return image, distance / scale

    def step(self, number: int, progress: float) -> None:
        image, distance = self.batch(self.pairs, self.wide, self.spacing)
        self.learners["volumes"].step(image, distance, progress)
        scale = SPACINGS[number % len(SPACINGS)]
        image, distance = self.batch(self.pairs, partial(narrow, spacing=scale, device=self.device, d=self.d), scale)
        for name in ("patches", "features"):
            self.learners[name].step(image, distance, progress)

    @torch.no_grad()
    def figures(self, batches: int = 4) -> dict[str, dict[str, float]]:
        """Of the validation people, by the mean weights: what each network is good for."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)
            networks = {k: learner.mean.module.eval() for k, learner in self.learners.items()}
            true, found, hits, errors = [], [], [], []
            for number in range(batches):
                image, distance = self.batch(self.held_out, self.wide, 1.0)
                found.append(distance_of(networks["volumes"](image)).flatten(1).mean(1))
                true.append(at_cells(distance, 8).flatten(1).mean(1))
                scale = SPACINGS[number % len(SPACINGS)]
                offsets = partial(narrow, spacing=scale, device=self.device, d=self.d)
                image, distance = self.batch(self.held_out, offsets, scale)
                hits.append(_hits(networks["patches"](image), at_cells(distance, 4), image))
                errors.append(features_loss(networks["features"], image, distance).sqrt())
            true_mm, found_mm = torch.cat(true), torch.cat(found)
            return {
                "volumes": {
                    "rank_correlation": _rank_correlation(true_mm, found_mm),
                    "mean_error_mm": float((true_mm - found_mm).abs().mean()),
                },
                "patches": {"accuracy": float(torch.stack(hits).mean())},
                "features": {"error": float(torch.stack(errors).mean())},
            }


def _hits(logits: Tensor, distance: Tensor, image: Tensor) -> Tensor:
    """Balanced accuracy of the cells that show something."""
    shown = structure_of(image, 4) > 0.2
    right = (logits > 0) == (distance < 0.5)
    groups = [shown & (distance < 0.5), shown & (distance > 1)]
    return torch.stack([(right & group).sum() / group.sum().clamp(min=1) for group in groups]).mean()


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    ranks = torch.stack([values.argsort().argsort().float() for values in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def train(courses: list[tuple[Course, int]], seconds: float, output: Path) -> None:
    """Steps of each course in turn, those of a number n every n-th time, until the time is over."""
    begin = last = time.monotonic()
    learners = [learner for course, _ in courses for learner in course.learners.values()]
    curves = {learner.name: Curve(output / f"{learner.name}.csv") for learner in learners}
    number, looking = 0, 0.0
    while True:
        now = time.monotonic()
        progress = (now - begin) / max(seconds - 1.5 * looking, 1.0)
        if progress >= 1 or now - last > 30:
            for course, _ in courses:
                figures = course.figures()
                for kind, learner in course.learners.items():
                    total, steps = learner.sum.tolist()
                    learner.sum.zero_()
                    row = {"seconds": now - begin, "rounds": number, "loss": total / max(steps, 1), **figures[kind]}
                    curves[learner.name].add(row)
                    learner.write(output)
            last = time.monotonic()
            looking = max(looking, last - now)
            if progress >= 1:
                return
        for course, each in courses:
            if number % each == 0:
                course.step(number // each, progress)
        number += 1
        if number % 8 == 0 and torch.cuda.is_available():
            torch.cuda.synchronize()  # the queue stays short: the schedule follows the clock


def read_course(maps_path: Path, table: Path, d: int, amounts: Amounts, device: torch.device) -> Course:
    """The people of both parts of a file of maps."""
    found = []
    for part in ("training", "validation"):
        maps, ids = read_maps(maps_path, part, device)
        augmentation = Augmentation(elastic=((8, 0.8), (20, 2.0)))
        if d == 2:
            maps = take_slices(maps)[0]
            augmentation = replace(augmentation, **PLANE)
        found.append(DevicePairs(maps, label_table(table, ids, device), augmentation))
    return Course(found[0], found[1], amounts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path)
    parser.add_argument("--table", type=Path, required=True, help="CSV file of the labels' T1-like intensities")
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, nargs=2, default=[64, 96], help="voxels of the images in 3-D and 2-D")
    parser.add_argument("--pairs", type=int, nargs=2, default=[32, 64], help="of a step in 3-D and 2-D")
    parser.add_argument("--people", type=int, nargs=2, default=[8, 64], help="of a step in 3-D and 2-D")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begin = time.monotonic()
    torch.manual_seed(options.seed)
    torch.backends.cudnn.benchmark = True
    device = torch.device(options.device)
    amounts = {d: Amounts(*(getattr(options, k)[3 - d] for k in ("people", "pairs", "size"))) for d in (3, 2)}
    courses = [(read_course(options.maps, options.table, d, amounts[d], device), each) for d, each in ((3, 1), (2, 3))]
    options.output.mkdir(parents=True, exist_ok=True)
    train(courses, options.seconds - (time.monotonic() - begin), options.output)
    memory = torch.cuda.max_memory_reserved() / 2**30 if device.type == "cuda" else math.nan
    print(json.dumps({"GiB": memory, "seconds": time.monotonic() - begin}), flush=True)


if __name__ == "__main__":
    main()
