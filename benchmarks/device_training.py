"""Train a bundle's registration network for a given number of minutes, all of it on one device.

    python -m benchmarks.device_training MAPS --table labels.csv --bundle synthmorph --minutes 8 --output DIR

MAPS is a file of `device_maps`: "maps" (N, *2S) of positions in "ids", at twice the resolution of the network's grid,
in one template space; "split" says "training" or "validation" for each map. With --spatial_dims 2 slices of the maps,
at their own resolution, train the bundle's 2-D network. Every part of a step is drawn and computed on the device
(`device_synthesis`); with CUDA the step is captured once and replayed. Nothing is read back but the losses' sums, once
in a while. DIR receives `<name>.pt` (the weights' running mean, as the bundle loads it) and `<name>.csv` (the curve),
every minute (on a CPU: as often as a fifth of its time allows) and at the end.

The loss of a pair, each step of the network's map added up: data_weight (1 - LNCC of noise-free T1-like images, within
the brain, + 1 - mean Dice of the structures' shares) + the method's penalty (`device_methods`) + folding_weight
|max(0, 0.2 - det J)|^2.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.device_calibration import Calibration, JointCalibration
from benchmarks.device_methods import METHODS, Registration
from benchmarks.device_slices import PLANE, take_slices
from benchmarks.device_step import CONTRASTS, Recipe, Training, label_table, read_maps
from benchmarks.device_synthesis import Augmentation, DevicePairs
from custom_components.fields import warp
from custom_components.files import save_tensors


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
    """Run the step twice; the second time whatever makes the host wait for the device raises an error.

    Raises:
        RuntimeError: if the host waits.
    """
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def prepared(step: Callable[[], None], name: str) -> tuple[Callable[[], None], bool]:
    """The step as a CUDA graph, and whether it is one: a step that waits for the device cannot be captured."""
    try:
        check_for_waits(step)
    except RuntimeError:
        print(
            f"{name}: the step waits for the device, so it runs without a graph\n{traceback.format_exc()}", flush=True
        )
        return step, False
    return captured(step), True


@torch.no_grad()
def validate(training: Training, pairs: DevicePairs, seed: int = 0) -> dict[str, float]:
    """Mean hard Dice of all ordered pairs of the validation people by the mean weights, for T1 to each contrast.

    Of people in slices every tenth level counts.
    """
    device, network = training.device, training.network
    state = {k: v.clone() for k, v in network.state_dict().items()}
    network.load_state_dict(training.means())
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        scores: dict[str, list[Tensor]] = {"before": [], **{c: [] for c in CONTRASTS[:3]}}
        people, levels = range(pairs.people), torch.arange(0, pairs.levels, 10, device=device)
        for moving, fixed in ((m, f) for m in people for f in people if m != f):
            labels = pairs.given(moving * pairs.levels + levels, fixed * pairs.levels + levels)
            before, after = pairs.shares(labels).chunk(2)
            scores["before"].append(hard_dice(before, after))
            for number, contrast in enumerate(CONTRASTS[:3]):
                kind = torch.tensor([0, number], device=device).repeat_interleave(len(levels))
                ddf = training.registration.ddf(training.images(labels, kind))
                scores[contrast].append(hard_dice(warp(before, ddf), after))
    network.load_state_dict(state)
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


def working_seconds(device: torch.device) -> float:
    """A clock of the training's own work: the wall's on a GPU, CPU time per thread elsewhere, where others may run."""
    return time.monotonic() if device.type == "cuda" else time.process_time() / torch.get_num_threads()


def run(
    training: Training,
    held_out: DevicePairs,
    minutes: float,
    output: Path,
    name: str,
    *,
    graph: bool,
    pause: float = 60.0,
) -> float:
    """Train for so many minutes of `working_seconds`, looking every `pause` seconds; returns the seconds of a step."""
    curve, clock = Curve(output / f"{name}.csv"), partial(working_seconds, training.device)
    begin = clock()
    training.schedule(0.0)
    step = training.step
    if graph:
        step, graph = prepared(step, name)
    training.sums.zero_()
    last, done, seconds, least = clock(), 0, math.nan, pause
    while True:
        now = clock()
        progress = (now - begin) / (60 * minutes)
        if progress >= 1 or now - last > pause:
            *sums, steps = training.sums.tolist()  # waits for the device
            training.sums.zero_()
            seconds, done = (clock() - last) / max(steps, 1), done + int(steps)
            losses = {n: s / max(steps, 1) for n, s in zip(training.names, sums, strict=True)}
            dice = {f"dice_{k}": v for k, v in validate(training, held_out).items()}
            elapsed = clock() - begin
            curve.add({"seconds": elapsed, "steps": done, "seconds_per_step": seconds, **losses, **dice})
            if not math.isfinite(sum(losses.values())):
                raise SystemExit(f"{name}: the loss is no longer finite after {done} steps; the weights written stay")
            save_tensors(output / f"{name}.pt", {k: v.cpu().contiguous() for k, v in training.means().items()})
            last = clock()
            pause = max(least, 4 * (last - now))  # looking takes a fifth of the time at most
            if progress >= 1:
                return seconds
        training.schedule(progress)
        for _ in range(10 if graph else 1):
            step()
        if graph:
            torch.cuda.synchronize()  # the queue stays short: the schedule follows the clock


def read_pairs(path: Path, table: Path, spatial_dims: int, crop: int | None, device: torch.device) -> list[DevicePairs]:
    """Pairs of the training people, and of the validation people as they are."""
    found = []
    for part, augmentation in (("training", Augmentation()), ("validation", Augmentation(zero_background=1.0))):
        (maps, ids), runs = read_maps(path, part, device, crop), (1, 1)
        if spatial_dims == 2:
            maps, runs = take_slices(maps)
            augmentation = replace(augmentation, **PLANE)
        found.append(DevicePairs(maps, label_table(table, ids, device), augmentation, runs))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path)
    parser.add_argument("--bundle", choices=list(METHODS), default="synthmorph")
    parser.add_argument("--spatial_dims", type=int, choices=[2, 3], default=3)
    parser.add_argument("--table", type=Path, required=True, help="CSV file of the labels' T1-like intensities")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--initial", type=Path)
    parser.add_argument("--calibrate", action="store_true", help="train the log variance alone, on known deformations")
    parser.add_argument("--joint", action="store_true", help="all weights, by other people and by known deformations")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--pairs", type=int, default=Recipe.pairs)
    parser.add_argument("--learning_rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--ema", type=float, default=Recipe.ema)
    parser.add_argument("--folding_weight", type=float, default=Recipe.folding_weight)
    parser.add_argument("--contrasts", type=float, nargs=2, help="when other contrasts begin and are complete, 0 to 1")
    parser.add_argument("--table_share", type=float, default=Recipe.table_share)
    parser.add_argument("--no_graph", action="store_true", help="no CUDA graph")
    parser.add_argument("--channels_last", action="store_true")
    parser.add_argument("--crop", type=int, help="keep a box of so many voxels of the maps: a rehearsal")
    parser.add_argument("--name", help="of the files; default: the bundle's")
    parser.add_argument(
        "--pause", type=float, default=60.0, help="least seconds from one look at validation to the next"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.backends.cudnn.benchmark = True
    device = torch.device(options.device)
    dims, precision = options.spatial_dims, getattr(torch, options.precision)
    training_pairs, held_out = read_pairs(options.maps, options.table, dims, options.crop, device)
    registration = Registration(options.bundle, spatial_dims=dims, initial=options.initial, precision=precision)
    registration.to(device)
    if options.channels_last:
        registration.network.to(memory_format=torch.channels_last_3d if dims == 3 else torch.channels_last)
    recipe = Recipe(
        options.pairs,
        options.learning_rate,
        None if options.contrasts is None else tuple(options.contrasts),
        table_share=options.table_share,
        folding_weight=options.folding_weight,
        ema=options.ema,
    )
    kind = JointCalibration if options.joint else Calibration if options.calibrate else Training
    training = kind(registration, training_pairs, recipe)
    if isinstance(training, Calibration) and not options.joint:
        training.forget()
    options.output.mkdir(parents=True, exist_ok=True)
    graph = device.type == "cuda" and not options.no_graph
    name = options.name or options.bundle
    seconds = run(training, held_out, options.minutes, options.output, name, graph=graph, pause=options.pause)
    memory = torch.cuda.max_memory_reserved() / 2**30 if device.type == "cuda" else math.nan
    print(f"{name}: {seconds:.4f} s a step of {recipe.pairs} pairs, {memory:.2f} GiB, graph {graph}", flush=True)


if __name__ == "__main__":
    main()
