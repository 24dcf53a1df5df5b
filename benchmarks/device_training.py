"""Train a registration U-Net for a given number of minutes, all of it on one device.

    python -m benchmarks.device_training MAPS --table labels.csv --bundle synthmorph --minutes 8 --output DIR

MAPS is a file of `device_maps`: "maps" (N, *2S) of positions in "ids", at twice the resolution of the network's grid,
in one template space; "split" says "training" or "validation" for each map. Every part of a step is drawn and computed
on the device (`device_synthesis`); with CUDA the step is captured once and replayed. Nothing is read back but the
losses' sums, once in a while. DIR receives `<bundle>.pt` (the weights' running mean, as the bundle loads it) and
`<bundle>.csv` (the curve), every minute and at the end.

The loss of a pair: 1 - LNCC of noise-free T1-like images, within the brain, + 1 - mean Dice of the structures' shares +
weight |Dv|^2 + folding_weight |max(0, 0.2 - det J)|^2.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.device_synthesis import Augmentation, DevicePairs, LabelTable
from benchmarks.experiments import bundle_config
from custom_components.fields import integrate_velocity, resize_field, warp
from custom_components.files import load_weights, save_tensors
from custom_components.losses.regularization import FoldingPenalty, GradientPenalty
from custom_components.losses.similarity import LNCC
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet
from custom_components.synthesis.intensities import read_statistics

STRUCTURES = [2, 3, 4, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 26, 28]
STRUCTURES += [41, 42, 43, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60]
TRAINED = ("voxelmorph", "synthmorph")
CONTRASTS = ("t1", "t2", "inverted", "random")
FIRST_EXTRACEREBRAL, FLUID = 500, 24


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        pairs: in a batch.
        learning_rate: the largest; it rises over the first 2 % of the time and falls to 0 by a cosine.
        contrasts: when the share of pairs of any contrast leaves 0, and when it has risen to `most_contrasts`, as
            shares of the whole time; None for T1-like pairs alone.
        window, weight, folding_weight, dice_weight: of the loss.
        ema: share of the weights' running mean that a step keeps.
    """

    pairs: int = 2
    learning_rate: float = 5e-4
    contrasts: tuple[float, float] | None = None
    most_contrasts: float = 0.8
    window: int = 7
    weight: float = 0.1
    folding_weight: float = 10.0
    dice_weight: float = 1.0
    ema: float = 0.999


def label_table(path: Path, ids: np.ndarray, device: torch.device) -> LabelTable:
    """The table of the ids (L,), ascending, from the file that `read_statistics` reads; equal statistics are a group.

    Raises:
        ValueError: if the file lacks an id.
    """
    number = torch.as_tensor(ids.astype(np.int64))
    (mean, spread), (t2_mean, _) = (read_statistics(path, contrast=c) for c in ("t1", "t2"))
    mean, spread, t2_mean = (values[number] for values in (mean, spread, t2_mean))
    if mean.isnan().any():
        raise ValueError(f"{path}: expected statistics of all labels, got none of {number[mean.isnan()].tolist()}")
    chosen = [STRUCTURES.index(i) if i in STRUCTURES else len(STRUCTURES) for i in number.tolist()]
    columns = {
        "mean": mean,
        "spread": spread,
        "t2_mean": t2_mean.clamp(0, 255),
        "group": torch.stack([mean, spread], 1).unique(dim=0, return_inverse=True)[1],
        "chosen": torch.tensor(chosen),
        "cerebral": number < FIRST_EXTRACEREBRAL,
        "fluid": number == FLUID,
    }
    return LabelTable(**{name: values.to(device) for name, values in columns.items()})


def build_network(bundle: str, initial: Path | None, device: torch.device) -> VoxelMorphUNet:
    """A bundle's 3-D network, with weights to start from if a file is given."""
    network = bundle_config(bundle, ["inference"]).get_parsed_content("network_def")
    if initial is not None:
        load_weights(network, initial, bundle)
    return network.to(device)


class Training:
    """One network's training step, as a function of nothing, and its state on the device.

    Args:
        network: from pairs to a velocity at half their resolution.
        pairs: draws the anatomies.
        precision: of the network, under autocast.
    """

    def __init__(self, network: VoxelMorphUNet, pairs: DevicePairs, recipe: Recipe, precision: torch.dtype) -> None:
        self.network, self.pairs, self.recipe, self.precision = network, pairs, recipe, precision
        self.device = pairs.maps.device
        graph = self.device.type == "cuda"
        # A tensor: a captured step reads it anew. Adam takes none on the CPU.
        self.rate = torch.tensor(recipe.learning_rate, device=self.device) if graph else recipe.learning_rate
        self.optimizer = torch.optim.Adam(network.parameters(), lr=self.rate, capturable=graph, foreach=True)
        self.any_contrast = torch.zeros((), device=self.device)
        self.mean = [p.detach().clone() for p in network.parameters()]
        self.sums = torch.zeros(5, device=self.device)
        self.similarity, self.folding, self.smoothness = LNCC(recipe.window), FoldingPenalty(0.2), GradientPenalty()

    def kinds(self, count: int) -> Tensor:
        """The contrasts of `count` pairs, moving ones first: 0 T1, 1 T2, 2 inverted, 3 random; (2 P,)."""
        table = torch.randint(3, (2, count), device=self.device)
        by_table = torch.rand(2, count, device=self.device) < 0.35
        same = torch.rand(count, device=self.device) < 0.2
        kind = table.masked_fill(~by_table, 3)
        kind[1] = torch.where(same, kind[0], kind[1])
        return (kind * (torch.rand(count, device=self.device) < self.any_contrast)).flatten()

    def images(self, labels: Tensor, kind: Tensor) -> Tensor:
        """Network inputs (P, 2, *S) of maps (2 P, *2S) and contrasts (2 P,)."""
        means = self.pairs.means(len(labels), kind)
        noise = 16 + 16 * (kind == 3)
        image = self.pairs.render(labels, means, noise.float())
        return torch.cat(image.chunk(2), 1)

    def velocity(self, image: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            return self.network(image).float()

    def terms(self, labels: Tensor, kind: Tensor) -> list[Tensor]:
        """Similarity, smoothness, folding, overlap; scalars."""
        recipe = self.recipe
        with torch.no_grad():
            image = self.images(labels, kind)
            described = torch.cat([self.pairs.clean(labels), self.pairs.shares(labels)], 1)
            moving, fixed = described.chunk(2)
            brain = self.pairs.brain(labels).chunk(2)[1]
        velocity = self.velocity(image)
        half = integrate_velocity(velocity, 7)
        warped = warp(moving, resize_field(half, self.pairs.size))
        similarity = self.similarity(warped[:, :1], fixed[:, :1], brain)
        dice = soft_dice(warped[:, 1:], fixed[:, 1:])
        return [
            similarity,
            recipe.weight * self.smoothness(velocity),
            recipe.folding_weight * self.folding(half),
            recipe.dice_weight * (1 - dice),
        ]

    def step(self) -> None:
        """One step of the optimiser; the terms are added to `sums`, the mean weights follow."""
        labels = self.pairs.anatomies(self.recipe.pairs)
        terms = self.terms(labels, self.kinds(self.recipe.pairs))
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(terms).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.mean, list(self.network.parameters()), 1 - self.recipe.ema)
            self.sums += torch.stack([*terms, terms[0].new_ones(())]).detach()

    def schedule(self, progress: float) -> None:
        """Set what changes over the time, progress in [0, 1]."""
        warm = min(1.0, progress / 0.02 + 0.01)
        rate = self.recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        if isinstance(self.rate, Tensor):
            self.rate.fill_(rate)
        else:
            self.optimizer.param_groups[0]["lr"] = rate
        if self.recipe.contrasts is not None:
            start, end = self.recipe.contrasts
            share = min(1.0, max(0.0, (progress - start) / (end - start)))
            self.any_contrast.fill_(self.recipe.most_contrasts * share)

    def means(self) -> dict[str, Tensor]:
        """The running mean of the weights, as a state dictionary."""
        names = [name for name, _ in self.network.named_parameters()]
        return {**self.network.state_dict(), **dict(zip(names, self.mean, strict=True))}


def soft_dice(first: Tensor, second: Tensor) -> Tensor:
    """Mean Dice of shares (B, K, *S) over the structures that either has."""
    axes = tuple(range(2, first.ndim))
    both, total = (first * second).sum(axes), first.square().sum(axes) + second.square().sum(axes)
    present = (total > 1).float()
    return (2 * both / total.clamp(min=1) * present).sum() / present.sum().clamp(min=1)


def captured(step: Callable[[], None], warm_up: int = 5) -> Callable[[], None]:
    """The step as a CUDA graph; it runs `warm_up` times first."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm_up):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def check_for_waits(step: Callable[[], None]) -> None:
    """Run the step twice; the second time whatever makes the host wait for the device raises an error."""
    step()
    torch.cuda.set_sync_debug_mode("error")
    step()
    torch.cuda.set_sync_debug_mode("default")


@torch.no_grad()
def validate(training: Training, pairs: DevicePairs, seed: int = 0) -> dict[str, float]:
    """Mean hard Dice of all ordered pairs of the validation people by the mean weights, for T1 to each contrast."""
    device = training.device
    state = {k: v.clone() for k, v in training.network.state_dict().items()}
    training.network.load_state_dict(training.means())
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        scores: dict[str, list[Tensor]] = {"before": [], **{c: [] for c in CONTRASTS[:3]}}
        people = range(len(pairs.maps))
        for moving, fixed in ((m, f) for m in people for f in people if m != f):
            labels = pairs.given(torch.tensor([moving], device=device), torch.tensor([fixed], device=device))
            shares = pairs.shares(labels)
            scores["before"].append(hard_dice(shares[:1], shares[1:]))
            for number, contrast in enumerate(CONTRASTS[:3]):
                image = training.images(labels, torch.tensor([0, number], device=device))
                ddf = resize_field(integrate_velocity(training.velocity(image), 7), pairs.size)
                scores[contrast].append(hard_dice(warp(shares[:1], ddf), shares[1:]))
    training.network.load_state_dict(state)
    return {name: float(torch.stack(values).mean()) for name, values in scores.items()}


def hard_dice(first: Tensor, second: Tensor) -> Tensor:
    """Mean Dice where a structure holds more than half of a voxel."""
    first, second = first > 0.5, second > 0.5
    axes = tuple(range(2, first.ndim))
    both, total = (first & second).sum(axes), first.sum(axes) + second.sum(axes)
    present = total > 0
    return (2 * both / total.clamp(min=1) * present).sum() / present.sum()


class Curve:
    """A table of the training, one row a look, written as it grows."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, list[dict[str, float]]()

    def add(self, row: dict[str, float]) -> None:
        self.rows.append({key: round(value, 5) for key, value in row.items()})
        with open(self.path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        print(self.path.stem, json.dumps(self.rows[-1]), flush=True)


def run(training: Training, held_out: DevicePairs, minutes: float, output: Path, name: str, *, graph: bool) -> float:
    """Train for so many minutes; returns the seconds of a step."""
    curve, begin = Curve(output / f"{name}.csv"), time.monotonic()
    training.schedule(0.0)
    if graph:
        check_for_waits(training.step)
    step = captured(training.step) if graph else training.step
    training.sums.zero_()
    ready = time.monotonic()
    last, done, seconds = ready, 0, math.nan
    while True:
        now = time.monotonic()
        progress = (now - begin) / (60 * minutes)
        if progress >= 1 or now - last > 60:
            sums = training.sums.tolist()  # waits for the device
            training.sums.zero_()
            steps, seconds = sums[4], (time.monotonic() - last) / max(sums[4], 1)
            done += int(steps)
            names = ("similarity", "smoothness", "folding", "overlap")
            losses = {n: s / max(steps, 1) for n, s in zip(names, sums, strict=False)}
            dice = {f"dice_{k}": v for k, v in validate(training, held_out).items()}
            elapsed = time.monotonic() - begin
            curve.add({"seconds": elapsed, "steps": done, "seconds_per_step": seconds, **losses, **dice})
            if not math.isfinite(sum(losses.values())):
                raise SystemExit(f"{name}: the loss is no longer finite after {done} steps; the weights written stay")
            save_tensors(output / f"{name}.pt", {k: v.cpu().contiguous() for k, v in training.means().items()})
            last = time.monotonic()
            if progress >= 1:
                return seconds
        training.schedule(progress)
        for _ in range(10 if graph else 1):
            step()
        if graph:
            torch.cuda.synchronize()  # the queue stays short: the schedule follows the clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path)
    parser.add_argument("--bundle", choices=TRAINED, default="synthmorph")
    parser.add_argument("--table", type=Path, required=True, help="CSV file of the labels' T1-like intensities")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--initial", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--weight", type=float, default=0.1)
    parser.add_argument("--contrasts", type=float, nargs=2, help="when other contrasts begin and are complete, 0 to 1")
    parser.add_argument("--no_graph", action="store_true", help="no CUDA graph")
    parser.add_argument("--channels_last", action="store_true")
    parser.add_argument("--crop", type=int, help="keep a box of so many voxels of the maps: a rehearsal")
    parser.add_argument("--name", help="of the files; default: the bundle's")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.backends.cudnn.benchmark = True
    device = torch.device(options.device)
    stored = np.load(options.maps)
    maps, table = stored["maps"], label_table(options.table, stored["ids"], device)
    if options.crop:
        box = tuple(slice((n - options.crop) // 2, (n + options.crop) // 2) for n in maps.shape[1:])
        maps = maps[(slice(None), *box)]
    parts = {part: torch.as_tensor(maps[stored["split"] == part], device=device) for part in ("training", "validation")}
    network = build_network(options.bundle, options.initial, device)
    if options.channels_last:
        network = network.to(memory_format=torch.channels_last_3d)
    contrasts = None if options.contrasts is None else tuple(options.contrasts)
    recipe = Recipe(options.pairs, options.learning_rate, contrasts, weight=options.weight)
    training = Training(network, DevicePairs(parts["training"], table), recipe, getattr(torch, options.precision))
    options.output.mkdir(parents=True, exist_ok=True)
    held_out = DevicePairs(parts["validation"], table, Augmentation(zero_background=1.0))
    graph = device.type == "cuda" and not options.no_graph
    name = options.name or options.bundle
    seconds = run(training, held_out, options.minutes, options.output, name, graph=graph)
    memory = torch.cuda.max_memory_reserved() / 2**30 if device.type == "cuda" else math.nan
    print(f"{name}: {seconds:.4f} s a step of {recipe.pairs} pairs, {memory:.2f} GiB, graph {graph}", flush=True)


if __name__ == "__main__":
    main()
