"""Train the network of `error_estimation` for a given number of seconds, all of it on one device.

    python -m benchmarks.error_estimation_training MAPS.npz --table labels.csv --seconds 90 --output DIR [--device cuda]

MAPS is a file of `device_maps`. The answers are made by the components of the bundle's own train.json, on the device,
without a data loader. Seconds are the wall's on a GPU, and CPU time elsewhere. DIR receives `error_estimation.pt`, the
running mean of the weights in 16 bits, and `error_estimation.csv`, a row every 30 s and at the end: the mean loss, and
on the validation people the correlation of estimate and error within an answer (mean over answers), that of the
answers' means, the root mean square of what the estimate misses, and that of the best constant.
"""

from __future__ import annotations

import argparse
import csv
import math
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn

from benchmarks.device_training import working_seconds
from benchmarks.experiments import BUNDLES
from custom_components.files import save_tensors
from custom_components.methods.error_estimation.objective import error_loss
from custom_components.methods.error_estimation.simulation import LARGEST_MM, SimulatedErrors

BUNDLE = BUNDLES / "error_estimation"
_EVERY = 30.0  # seconds between rows
_HELD_OUT = 16  # answers of the validation people


def components(table: Path) -> tuple[nn.Module, SimulatedErrors]:
    """The network and the simulation of the bundle's train.json."""
    from monai.bundle import ConfigParser

    parser = ConfigParser(ConfigParser.load_config_file(BUNDLE / "configs" / "train.json"))
    parser.update({"bundle_root": str(BUNDLE), "statistics": str(table)})
    return parser.get_parsed_content("network_def"), parser.get_parsed_content("synthesis")


def read_maps(path: Path, part: str, device: torch.device, crop: int | None = None) -> Tensor:
    """Label maps (N, 1, *2S) of ids, int16."""
    file = np.load(path)
    maps = torch.from_numpy(file["ids"].astype(np.int16))[torch.from_numpy(file["maps"][file["split"] == part]).long()]
    if crop:
        maps = maps[(slice(None), *[slice((n - crop) // 2, (n + crop) // 2) for n in maps.shape[1:]])]
    return maps[:, None].to(device)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


@torch.no_grad()
def judged(network: nn.Module, simulation: SimulatedErrors, maps: Tensor) -> dict[str, float]:
    """How well a network knows the errors of answers on given people; the same answers at each call."""
    within, means, losses, squares, every = [], [], [], [], []
    for k in range(_HELD_OUT):
        one = maps[k % len(maps)][None]
        generator = Generator(one.device).manual_seed(k)
        batch = simulation(one, simulation.draw(1, one.shape[2:], generator))
        found = network(batch["moving"])
        losses.append(float(error_loss({"error_mm": found}, batch)))
        estimate, error = (values[batch["counts"]] for values in (found, batch["error_mm"].clamp(max=LARGEST_MM)))
        within.append(correlation(estimate, error))
        means.append((float(estimate.mean()), float(error.mean())))
        squares.append(float((estimate - error).square().mean()))
        every.append(error[:: max(1, len(error) // 20000)].cpu())
    estimates, errors = torch.tensor(means).T
    return {
        "held_out_loss": float(np.mean(losses)),
        "within": float(np.mean(within)),
        "between": correlation(estimates, errors),
        "rmse_mm": math.sqrt(np.mean(squares)),
        "constant_rmse_mm": float(torch.cat(every).std()),
    }


def train(
    network: nn.Module, simulation: SimulatedErrors, people: tuple[Tensor, Tensor], options: argparse.Namespace
) -> None:
    maps, held_out = people
    device = maps.device
    average, mixed = deepcopy(network).eval().requires_grad_(False), device.type == "cuda"
    optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate, betas=(0.9, 0.98))
    own, mean = list(network.parameters()), list(average.parameters())
    begin = last = working_seconds(device)
    rows: list[dict[str, float]] = []
    total, steps, told, seed = torch.zeros((), device=device), 0, 0, options.seed * 10**6
    while True:
        progress = (working_seconds(device) - begin) / options.seconds
        if progress >= 1 or working_seconds(device) - last > _EVERY:
            rows.append(
                {
                    "seconds": working_seconds(device) - begin,
                    "steps": steps,
                    "loss": float(total) / max(1, steps - told),
                }
            )
            rows[-1] |= judged(average, simulation, held_out)
            write(options.output, rows, average)
            if progress >= 1:
                return
            total, told, last = torch.zeros((), device=device), steps, working_seconds(device)
        rate = options.learning_rate * min(1.0, (steps + 1) / 50) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        optimizer.param_groups[0]["lr"] = rate
        generator = Generator(device).manual_seed(seed + steps)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            who = torch.randint(len(maps), (options.batch,), generator=generator, device=device)
            shown = windows(maps[who], options.window, steps)
            batch = simulation(shown, simulation.draw(options.batch, shown.shape[2:], generator))
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            pred = {"error_mm": network(batch["moving"])}
        loss = error_loss(pred, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(own, 1.0)
        optimizer.step()
        torch._foreach_lerp_(mean, own, 1 - min(options.ema, (steps + 1) / (steps + 10)))
        total += loss.detach()
        steps += 1


def windows(maps: Tensor, size: int | None, step: int) -> Tensor:
    """A box of so many voxels of maps (B, 1, *2S), somewhere else in each step; without a size all of them."""
    if size is None:
        return maps
    places = torch.rand(3, generator=Generator().manual_seed(step)).tolist()
    starts = [2 * int(place * (n - size) / 2) for place, n in zip(places, maps.shape[2:], strict=True)]
    return maps[(..., *[slice(start, start + size) for start in starts])]


def write(output: Path, rows: list[dict[str, float]], network: nn.Module) -> None:
    """The curve so far, and the weights."""
    with open(output / "error_estimation.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows({name: f"{value:.5g}" for name, value in row.items()} for row in rows)
    save_tensors(output / "error_estimation.pt", {k: v.half().cpu() for k, v in network.state_dict().items()})
    print(rows[-1], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--ema", type=float, default=0.99)
    parser.add_argument("--crop", type=int, help="keep a box of so many voxels of the maps: a rehearsal")
    parser.add_argument("--window", type=int, help="voxels of the maps that a step sees: many small steps on a CPU")
    parser.add_argument("--answered", type=float, help="share of the steps in which a network answers")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.backends.cudnn.benchmark = True
    device = torch.device(options.device)
    network, simulation = components(options.table)
    if options.answered is not None:
        simulation.answered = options.answered
    people = tuple(read_maps(options.maps, part, device, options.crop) for part in ("training", "validation"))
    options.output.mkdir(parents=True, exist_ok=True)
    train(network.to(device), simulation, people, options)


if __name__ == "__main__":
    main()
