"""Train the networks of `learned_similarity` for a given time, all of it on one device.

    python -m benchmarks.device_similarity MAPS --table labels.csv --seconds 240 --output DIR

MAPS is a file of `device_maps`. The networks learn in turn from pairs that `device_offsets` makes: "volumes" estimates
distances at 6 mm (4 mm in 2-D); "patches" classifies patches at spacings of 1 to 8 mm; "features" restores the same
images from noisy ones; and the same three in 2-D, on slices. DIR receives for each `<name>.pt` (the weights' running
mean, in half precision) and `<name>.csv` (the curve, with figures of the validation people), every 30 s and at the end.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.device_offsets import OffsetPairs, Offsets, draw_kinds, narrow, wide
from benchmarks.device_slices import PLANE, take_slices
from benchmarks.device_step import label_table, read_maps
from benchmarks.device_synthesis import Augmentation, DevicePairs
from benchmarks.device_training import Curve, working_seconds
from custom_components.files import save_tensors
from custom_components.methods.learned_similarity.network import AlignmentNetwork, PatchAutoencoder, small
from custom_components.methods.learned_similarity.objective import (
    at_cells,
    correspondence_loss,
    distance_loss,
    distance_of,
    structure_of,
)

SPACING = {3: 6.0, 2: 4.0}  # of the volumes
LARGEST_MM = 30.0
SPACINGS = (1.0, 1.5, 2.0, 2.0, 3.0, 4.0, 6.0, 8.0)  # of the patches, each as often: those of a pyramid's levels
NOISE = 0.05  # that is added to what the autoencoder sees
KEPT = 64  # batches that are learned from again


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
        self.mean = torch.optim.swa_utils.AveragedModel(network, avg_fn=_running_mean, use_buffers=True)
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


def _running_mean(mean: Tensor, new: Tensor, number: Tensor) -> Tensor:
    """Over the last tenth of the steps at first, and over a hundred later on."""
    keep = torch.clamp((1 + number) / (10 + number), max=0.99)
    return torch.lerp(new, mean, keep.to(mean.dtype)) if mean.is_floating_point() else new


def volumes_loss(network: nn.Module, image: Tensor, distance: Tensor, spacing: float) -> Tensor:
    found = network(image).float()
    return distance_loss(found, spacing * at_cells(distance, 4))


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
        only: which networks learn.
        varied: see `OffsetPairs`.
        replays: steps from each batch that is made, all but the first from batches drawn of the last ones.
    """

    def __init__(
        self,
        training: DevicePairs,
        held_out: DevicePairs,
        amounts: Amounts,
        *,
        only: Sequence[str],
        varied: bool,
        replays: int,
    ) -> None:
        self.replays, self.kept = replays, dict[str, list[tuple[Tensor, Tensor]]]()
        self.d, self.device, self.amounts = training.spatial_dims, training.maps.device, amounts
        unit = {3: 1.0, 2: 0.5}[self.d]
        self.pairs = OffsetPairs(training, amounts.size, unit, varied=varied)
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
        self.learners = {k: Learner(k + end, networks[k].to(self.device), losses[k]) for k in only}

    def wide(self, count: int) -> Offsets:
        return wide(count, LARGEST_MM, self.spacing, self.device, self.d)

    @torch.no_grad()
    def batch(self, source: OffsetPairs, offsets: Callable[[int], Offsets], scale: float) -> tuple[Tensor, Tensor]:
        """Images, and distances in voxels of `scale` mm."""
        a = self.amounts
        image, distance = source(source.canvas(a.people), offsets(a.pairs), draw_kinds(a.pairs, self.device))
        return image, distance / scale

    def step(self, number: int, progress: float) -> None:
        """A new batch for each kind of offsets, and `replays` steps from it and from earlier ones."""
        if "volumes" in self.learners:
            self._learn(["volumes"], self.batch(self.pairs, self.wide, self.spacing), progress)
        scale = SPACINGS[number % len(SPACINGS)]
        others = [name for name in self.learners if name != "volumes"]
        if others:
            offsets = partial(narrow, spacing=scale, device=self.device, d=self.d)
            self._learn(others, self.batch(self.pairs, offsets, scale), progress)

    def _learn(self, names: Sequence[str], batch: tuple[Tensor, Tensor], progress: float) -> None:
        kept = self.kept.setdefault(names[0], [])
        if self.replays > 1:
            kept.append(batch)
            del kept[:-KEPT]
        for number in range(self.replays):
            image, distance = _varied(*kept[int(torch.randint(len(kept), ()))]) if number else batch
            for name in names:
                self.learners[name].step(image, distance, progress)

    @torch.no_grad()
    def figures(self, batches: int = 4) -> dict[str, dict[str, float]]:
        """Of the validation people, by the mean weights: what each network is good for."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)
            wide = [self.batch(self.held_out, self.wide, 1.0) for _ in range(batches)]
            near = []
            for scale in SPACINGS[:: len(SPACINGS) // batches or 1]:
                offsets = partial(narrow, spacing=scale, device=self.device, d=self.d)
                near.append(self.batch(self.held_out, offsets, scale))
        found = {}
        for name, learner in self.learners.items():
            network = learner.mean.module.eval()
            found[name] = _FIGURES[name](network, wide if name == "volumes" else near)
        return found


def _varied(image: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    """Mirrored along random axes; of each pair, one image or both with light and dark exchanged, or of other gamma."""
    axes = [axis for axis in range(2, image.ndim) if torch.rand(()) < 0.5]
    shape = (*image.shape[:2], *[1] * (image.ndim - 2))
    image = torch.where(torch.rand(shape) < 0.2, 1 - image, image)
    return (image ** torch.exp(0.3 * torch.randn(shape))).flip(axes), distance.flip(axes)


Batches = Sequence[tuple[Tensor, Tensor]]


def volumes_figures(network: nn.Module, batches: Batches) -> dict[str, float]:
    """How estimated mean distances follow the true ones."""
    found = torch.cat([distance_of(network(image)).flatten(1).mean(1) for image, _ in batches])
    true = torch.cat([at_cells(distance, 4).flatten(1).mean(1) for _, distance in batches])
    error = float((true - found).abs().mean())
    return {"rank_correlation": _rank_correlation(true, found), "mean_error_mm": error}


def patches_figures(network: nn.Module, batches: Batches) -> dict[str, float]:
    hits = [_hits(network(image), at_cells(distance, 4), image) for image, distance in batches]
    return {"accuracy": float(torch.stack(hits).mean())}


def features_figures(network: nn.Module, batches: Batches) -> dict[str, float]:
    errors = [features_loss(network, image, distance) for image, distance in batches]
    return {"error": float(torch.stack(errors).mean().sqrt())}


_FIGURES = {"volumes": volumes_figures, "patches": patches_figures, "features": features_figures}


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
    """Steps of each course in turn, those of a number n every n-th time, until the time (`working_seconds`) is over."""
    device = courses[0][0].device
    begin = last = working_seconds(device)
    learners = [learner for course, _ in courses for learner in course.learners.values()]
    curves = {learner.name: Curve(output / f"{learner.name}.csv") for learner in learners}
    number, looking = 0, 0.0
    while True:
        now = working_seconds(device)
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
            last = working_seconds(device)
            looking = max(looking, last - now)
            if progress >= 1:
                return
        for course, each in courses:
            if number % each == 0:
                course.step(number // each, progress)
        number += 1
        if number % 8 == 0 and torch.cuda.is_available():
            torch.cuda.synchronize()  # the queue stays short: the schedule follows the clock


def read_course(
    maps_path: Path,
    table: Path,
    d: int,
    amounts: Amounts,
    device: torch.device,
    *,
    only: Sequence[str] = tuple(_FIGURES),
    varied: bool = True,
    replays: int = 1,
) -> Course:
    """The people of both parts of a file of maps."""
    found = []
    for part in ("training", "validation"):
        maps, ids = read_maps(maps_path, part, device)
        augmentation = Augmentation(elastic=((8, 0.8), (20, 2.0)))
        if d == 2:
            maps = take_slices(maps)[0]
            augmentation = replace(augmentation, **PLANE)
        found.append(DevicePairs(maps, label_table(table, ids, device), augmentation))
    return Course(found[0], found[1], amounts, only=only, varied=varied, replays=replays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path)
    parser.add_argument("--table", type=Path, required=True, help="CSV file of the labels' T1-like intensities")
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, nargs=2, default=[32, 48], help="voxels of the images in 3-D and 2-D")
    parser.add_argument("--pairs", type=int, nargs=2, default=[32, 64], help="of a step in 3-D and 2-D")
    parser.add_argument("--people", type=int, nargs=2, default=[8, 64], help="of a step in 3-D and 2-D")
    parser.add_argument("--spatial_dims", type=int, nargs="+", default=[3, 2])
    parser.add_argument("--only", nargs="+", choices=list(_FIGURES), default=list(_FIGURES))
    parser.add_argument("--rigid_people", action="store_true", help="do not bend them: a step is faster on a CPU")
    parser.add_argument(
        "--replays", type=int, default=1, help="steps from each batch: on a CPU making one takes longer"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begin = working_seconds(torch.device(options.device))
    torch.manual_seed(options.seed)
    torch.backends.cudnn.benchmark = True
    device = torch.device(options.device)
    read = partial(read_course, only=options.only, varied=not options.rigid_people, replays=options.replays)
    courses = []
    for d in options.spatial_dims:
        amounts = Amounts(*(getattr(options, k)[3 - d] for k in ("people", "pairs", "size")))
        course = read(options.maps, options.table, d, amounts, device)
        courses.append((course, 3 if d == 2 and len(options.spatial_dims) > 1 else 1))
    options.output.mkdir(parents=True, exist_ok=True)
    train(courses, options.seconds - (working_seconds(device) - begin), options.output)
    memory = torch.cuda.max_memory_reserved() / 2**30 if device.type == "cuda" else math.nan
    print(json.dumps({"GiB": memory, "seconds": working_seconds(device) - begin}), flush=True)


if __name__ == "__main__":
    main()
