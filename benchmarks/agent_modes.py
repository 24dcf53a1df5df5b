"""Train and measure an agent that deforms along modes (`methods.agents.modes`), on slices of label maps.

    python -m benchmarks.agent_modes MAPS --table labels.csv --output DIR [--minutes 15] [--registrations 960]

MAPS is a file of `device_maps`. Slices are axial, of brains without what lies outside, T1-like, at 2 mm. The shipped
2-D network of `voxelmorph` registers training people at 1 mm, each to some others at the same level; the principal
modes of its velocities are what the agent moves along. It learns from a memory (`agent_replay`) of pairs of two kinds:
one person, whose moving image was deformed by known coefficients, and two people, whose coefficients are those of the
registration. DIR receives modes.pt, agent_modes.pt, agent_modes.csv (the course of the training) and measured.csv: of
pairs of validation people, by way of registration, Dice before and after; of deformations that were known, the error.
What is there already is not made again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn

from benchmarks.agent_replay import STATES, Memory, training
from benchmarks.experiments import BUNDLES, markdown
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import compose, identity_grid, resize_field, warp
from custom_components.files import save_tensors, write_table
from custom_components.losses.similarity import LNCC
from custom_components.methods.agents.modes import ModeAgent, ModeMoves, Modes, coefficients, principal_modes
from custom_components.methods.agents.simulation import SimulatedStates
from custom_components.methods.agents.walk import Walk
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet
from custom_components.synthesis.contrast import RandomContrast
from custom_components.synthesis.intensities import LabelIntensities
from custom_components.synthesis.places import render_at
from custom_components.synthesis.warp import RandomWarp
from custom_components.weights import load_weights

LEVELS = range(76, 117, 8)  # of the maps, mm from their lower end
MODES, GRID, SPACING = 12, (20, 28), 2.0
STEPS = (1.0, 0.5, 0.25, 0.125)
SUCCESS = 0.01  # gain in Dice


class People:
    """Slices of label maps at 1 mm, and their renderings at 2 mm.

    Args:
        path, table: of the maps, and of the labels' intensities.
        part: of the people.
    """

    def __init__(self, path: Path, table: Path, part: str) -> None:
        with np.load(path) as file:
            maps, ids = file["maps"][file["split"] == part], torch.from_numpy(file["ids"].astype(np.int32))
        ids = torch.where(ids >= SimulatedStates.FIRST_EXTRACEREBRAL, 0, ids)
        cut = [torch.from_numpy(maps[:, :, :, level].astype(np.int64)) for level in LEVELS]
        self.slices = torch.stack([ids[one] for one in cut], 1)[:, :, None]  # (person, level, 1, H, W)
        self.contrast = RandomContrast(LabelIntensities(statistics=table, std=(4, 12), background_std=(0, 2)))

    def size(self) -> list[int]:
        return [n // 2 for n in self.slices.shape[3:]]

    def image(self, person: int, level: int, generator: Generator, field: Tensor | None = None) -> tuple[Tensor, ...]:
        """A rendering (1, 1, *S) of a slice at 2 mm, deformed by a ddf (1, 2, *S), and its labels."""
        grid = identity_grid(self.size())
        places = 2 * (grid + (0 if field is None else field)) + 0.5
        places = places if places.ndim == 4 else places[None]
        draw = self.contrast.draw(1, self.size(), generator)
        return render_at(self.contrast, self.slices[person, level][None], places, draw)


def registered(people: People, count: int, seed: int = 0) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Velocities (N, 2, *GRID) in voxels of 2 mm by the shipped network, and (moving, fixed, level) of each."""
    network, velocities, pairs = voxelmorph(), [], list[tuple[int, int, int]]()
    generator = Generator().manual_seed(seed)
    for number in range(count):
        level = number % len(LEVELS)
        moving, fixed = torch.randperm(len(people.slices), generator=generator)[:2].tolist()
        image = torch.cat([people.image(one, level, generator)[0] for one in (moving, fixed)], 1)
        velocities.append(resize_field(network(image), GRID))
        pairs.append((moving, fixed, level))
    # From voxels of the coarse grid to those of the images.
    factors = torch.tensor([(n - 1) / (m - 1) for n, m in zip(people.size(), GRID, strict=True)]).view(1, 2, 1, 1)
    return torch.cat(velocities) * factors, pairs


def voxelmorph() -> Callable[[Tensor], Tensor]:
    """The shipped 2-D network for images of 2 mm, which it sees at 1 mm; its velocity, at half of that."""
    channels = [64] * 4
    network = VoxelMorphUNet(2, encoder_channels=channels, decoder_channels=[64] * 6, half_resolution=True).eval()
    load_weights(network, BUNDLES / "voxelmorph" / "models" / "model_2d.pt", "registration")

    @torch.no_grad()
    def run(image: Tensor) -> Tensor:
        fine = nn.functional.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
        return network(fine)

    return run


def memory(people: People, moves: ModeMoves, pairs: list[tuple[int, int, int]], found: Tensor, made: int) -> Memory:
    """Pairs of two people, both ways, and as many of one person as are `made`."""
    images, truths, generator = [], [], Generator().manual_seed(1)
    for (moving, fixed, level), coefficient in zip(pairs, found, strict=True):
        for a, b, sign in ((moving, fixed, 1.0), (fixed, moving, -1.0)):
            images.append(torch.cat([people.image(one, level, generator)[0] for one in (a, b)], 1))
            truths.append(sign * coefficient)
    for number in range(made):
        image, truth, _ = known(people, moves, number % len(people.slices), generator)
        images.append(image)
        truths.append(truth[0])
    truth = torch.stack(truths)
    share = torch.rand(len(truth), STATES, 1, generator=generator)
    share[:, ::2] = 1 - 0.3 * share[:, ::2]
    share[:, 0] = 0  # nothing is found yet
    wrong = 0.3 * moves.agent.deviations * torch.randn(len(truth), STATES, MODES, generator=generator)
    wrong[:, 0] = 0
    return Memory(moves, torch.cat(images), truth, share * truth[:, None] + wrong)


def known(people: People, moves: ModeMoves, person: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One person twice, (1, 2, *S), the moving image deformed: the coefficients and the field that undo it."""
    level = int(torch.randint(len(LEVELS), (1,), generator=generator))
    truth = moves.agent.deviations * torch.randn(1, MODES, generator=generator)
    warp_of = RandomWarp(0.4, (16, 32), rotation_degrees=4.0, scaling=0.05, shift=1.5)
    place = warp_of.field(warp_of.draw(1, people.size(), generator), people.size())
    moved = compose(place, moves.field(-truth, people.size()))
    image = [people.image(person, level, generator, field)[0] for field in (moved, place)]
    return torch.cat(image, 1), truth, moves.field(truth, people.size())


def fitted(moves: ModeMoves, image: Tensor, iterations: int = 30) -> Tensor:
    """The same coefficients, by descent: LNCC and a weak pull to 0."""
    state = torch.zeros(1, MODES, requires_grad=True)
    deviations, similarity = moves.agent.deviations, LNCC(9)
    search = torch.optim.LBFGS([state], max_iter=iterations, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        shown = moves.seen(image, state * deviations)
        value: Tensor = similarity(shown[:, :1], shown[:, 1:]) + 1e-3 * state.square().mean()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(loss)  # type: ignore[arg-type, no-untyped-call]
    return (state * deviations).detach()


def ways(agent: ModeAgent) -> dict[str, Callable[[Tensor], Tensor]]:
    """Each way of registration: images (1, 2, *S) to a ddf."""
    moves = ModeMoves(agent, STEPS)
    walk, network, velocity = Walk(moves), voxelmorph(), StationaryVelocity()
    return {
        "none": lambda image: torch.zeros_like(image),
        "agent": lambda image: moves.field(walk.one(image, agent)[-1][None], image.shape[2:]),
        "descent on the same modes": lambda image: moves.field(fitted(moves, image), image.shape[2:]),
        "voxelmorph": lambda image: velocity(network(image), image.shape[2:])["ddf"],
    }


def measure(people: People, agent: ModeAgent, every: int = 1) -> Iterator[dict[str, object]]:
    """A row for each pair and way: ordered pairs of people at each level, then known deformations, or every nth."""
    moves, generator, each = ModeMoves(agent, STEPS), Generator().manual_seed(2), ways(agent)
    count, cases = len(people.slices), []
    for level in range(len(LEVELS)):
        for moving, fixed in ((a, b) for a in range(count) for b in range(count) if a != b):
            pair = [people.image(one, level, generator) for one in (moving, fixed)]
            cases.append((f"{moving}-{fixed} level {level}", torch.cat([p[0] for p in pair], 1), [p[1] for p in pair]))
    for case, image, (label_moving, label_fixed) in cases[::every]:
        for name, register in each.items():
            ddf, seconds = timed(register, image)
            moved = warp(label_moving.float(), ddf, mode="nearest").int()
            dice = float(mean_dice(moved, label_fixed))
            yield {"kind": "two people", "case": case, "way": name, "dice": dice, "cpu_seconds": seconds}
    for number in range(10 * count // every):
        image, _, truth = known(people, moves, number % count, generator)
        inside = image[:, 1:] > 0.1
        for name, register in each.items():
            ddf, seconds = timed(register, image)
            error = SPACING * float((ddf - truth).norm(dim=1, keepdim=True)[inside].mean())
            yield {"kind": "known", "case": str(number), "way": name, "error_mm": error, "cpu_seconds": seconds}


def timed(register: Callable[[Tensor], Tensor], image: Tensor) -> tuple[Tensor, float]:
    begin = time.process_time()
    return register(image), time.process_time() - begin


def summary(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Means by way; a pair succeeds if its Dice rises by .01, or its error halves."""
    table = []
    for kind, key in (("two people", "dice"), ("known", "error_mm")):
        values = {(r["way"], r["case"]): float(r[key]) for r in rows if r["kind"] == kind}  # type: ignore[arg-type]
        for way in dict.fromkeys(name for name, _ in values):
            own = {case: value for (name, case), value in values.items() if name == way}
            start = [values["none", case] for case in own]
            after = np.array(list(own.values()))
            won = after - start > SUCCESS if kind == "two people" else after < 0.5 * np.array(start)
            seconds = [float(r["cpu_seconds"]) for r in rows if (r["kind"], r["way"]) == (kind, way)]  # type: ignore[arg-type]
            row = {"pairs": kind, "way": way, "mean": after.mean(), "median": np.median(after), "success": won.mean()}
            table.append({**row, "cpu_seconds": np.mean(seconds)})
    return table


def agent_of(folder: Path) -> ModeAgent:
    """A new agent with the modes that were found."""
    torch.manual_seed(0)
    agent, stored = ModeAgent(MODES, GRID, len(STEPS)), torch.load(folder / "modes.pt", weights_only=True)
    agent.learn(Modes(stored["fields"], stored["deviations"], stored["explained"]))
    return agent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=15.0, help="of CPU time, without the pairs")
    parser.add_argument("--registrations", type=int, default=960)
    parser.add_argument("--made", type=int, default=960)
    parser.add_argument("--every", type=int, default=1, help="measure every nth pair alone")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    people = {part: People(options.maps, options.table, part) for part in ("training", "validation")}
    if not (options.output / "modes.pt").exists():
        velocities, pairs = registered(people["training"], options.registrations)
        modes = principal_modes(velocities, MODES)
        found = coefficients(modes.fields, velocities)
        save_tensors(
            options.output / "modes.pt", {**modes._asdict(), "coefficients": found, "pairs": torch.tensor(pairs)}
        )
        print("deviations", modes.deviations.tolist(), "explained", modes.explained.tolist(), flush=True)
    if not (options.output / "agent_modes.pt").exists():
        train(people, options.output, options.made, 60 * options.minutes)
    agent = agent_of(options.output)
    agent.load_state_dict(torch.load(options.output / "agent_modes.pt", weights_only=True))
    rows = list(measure(people["validation"], agent.eval(), options.every))
    keys = dict.fromkeys(key for row in rows for key in row)
    write_table(options.output / "measured.csv", [{key: row.get(key, "") for key in keys} for row in rows])
    table = summary(rows)
    print(markdown(list(table[0]), [list(row.values()) for row in table]))


def train(people: dict[str, People], folder: Path, made: int, seconds: float) -> None:
    """Write agent_modes.pt, the running mean of the weights, and agent_modes.csv."""
    agent = agent_of(folder)
    moves, stored = ModeMoves(agent, STEPS), torch.load(folder / "modes.pt", weights_only=True)
    pairs = [tuple(one) for one in stored["pairs"].tolist()]
    memories = {
        "training": memory(people["training"], moves, pairs, stored["coefficients"], made),
        "validation": memory(people["validation"], moves, [], torch.zeros(0, MODES), 20),
    }
    rows = []
    for row, mean in training(agent, memories, Walk(moves, limit=60), seconds):
        rows.append(row)
        print({key: round(value, 4) for key, value in row.items()}, flush=True)
        write_table(folder / "agent_modes.csv", rows)
        save_tensors(folder / "agent_modes.pt", {k: v.contiguous() for k, v in mean.state_dict().items()})


if __name__ == "__main__":
    main()
