"""Train the agent of `rigid_agent` for a given number of minutes, from a memory of pairs that its own policy walks.

    python -m benchmarks.agent_replay LABELMAPS/datalist.json --minutes 15 --output DIR [--spatial_dims 2] [--initial W]
        [--each 40]

Pairs are rendered once, by the components of the bundle's train.json, and kept with a number of states each: first
random shares of the true map, then, three times in all, half of them states of walks by the network as it is
(`methods.agents.simulation` says why). A step draws states of different pairs, mirrors half of them, and takes what
each action gains as the target. Where train.json renders every pair anew, this has four times as many steps in the same
time, each of eight pairs in place of two. DIR receives `rigid_agent.pt`, the running mean of the weights, and
`rigid_agent.csv`, a row for every tenth of the time: the loss, and the median distance at which walks end on pairs of
the validation people, in mm.
"""

from __future__ import annotations

import argparse
import time
from copy import deepcopy
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from torch import Tensor

from benchmarks.experiments import BUNDLES
from custom_components.affine import compose_affine, invert_affine, rotation_matrix
from custom_components.data.lists import load_list
from custom_components.fields import plain
from custom_components.files import save_tensors, write_table
from custom_components.methods.agents.moves import Moves
from custom_components.methods.agents.objective import GainLoss
from custom_components.methods.agents.simulation import SimulatedStates
from custom_components.methods.agents.walk import Walk
from custom_components.transforms.scan import LoadScand
from custom_components.weights import load_weights

BUNDLE = BUNDLES / "rigid_agent"
STATES, BATCH, WALKS = 6, 8, 3


class Memory:
    """Pairs in 16 bits, their true states, and the states in which an agent stands there.

    Args:
        moves: of the agent.
        images: (N, 2, *S).
        truths: (N, ...).
        states: (N, STATES, ...).
    """

    def __init__(self, moves: Moves, images: Tensor, truths: Tensor, states: Tensor) -> None:
        self.moves, self.images, self.truths, self.states = moves, images.half(), truths, states

    @classmethod
    def rendered(cls, make: SimulatedStates, labels: list[Tensor], each: int, slices: object, seed: int) -> Memory:
        """Pairs of rigid maps.

        Args:
            make: renders the pairs.
            labels: integer maps of the people, each (1, 1, *2S).
            each: pairs of a person.
            slices: cuts the maps, in 2-D, as many slices as it counts.
        """
        images, truths, states = [], [], []
        generator = torch.Generator().manual_seed(seed)
        for one in labels:
            for _ in range(each):
                maps = one
                if slices is not None:
                    maps = slices(one, one, slices.draw(generator))[0]  # type: ignore[operator, attr-defined]
                draw = make.draw(len(maps), maps.shape[2:], generator)
                moving, fixed, truth = make.pairs(maps, draw)
                images.append(torch.cat([moving, fixed], 1).half())
                truths.append(truth)
                share = torch.rand(STATES, 1, len(maps), 1, generator=generator)
                share[::2] *= 0.3
                share[0] = 1
                missing = [
                    torch.cat([rotation_matrix(s[0] * draw["turn"]), (s[0] * draw["shift"])[:, :, None]], 2)
                    for s in share
                ]
                states.append(torch.stack([compose_affine(truth, invert_affine(m)) for m in missing], 1))
        return cls(make.moves, torch.cat(images), torch.cat(truths), torch.cat(states))

    def drawn(self, count: int) -> tuple[Tensor, Tensor]:
        """Images of states of different pairs as the agent sees them, and what is missing there."""
        pair = torch.randperm(len(self.images))[:count]
        state = self.states[pair, torch.randint(STATES, (len(pair),))]
        return self.moves.seen(self.images[pair].float(), state), self.moves.missing(state, self.truths[pair])

    def walked(self, walk: Walk, network: torch.nn.Module, seconds: float) -> None:
        """Put states of walks in the place of half of the states, for as many pairs as the time allows."""
        end = time.process_time() + seconds
        for number in torch.randperm(len(self.images)).tolist():
            if time.process_time() > end:
                return
            way = torch.stack(walk.one(self.images[number : number + 1].float(), network))
            half = STATES // 2
            self.states[number, half:] = way[torch.randint(len(way), (STATES - half,))]
            self.states[number, -1] = way[-1]

    def ends(self, walk: Walk, network: torch.nn.Module) -> Tensor:
        """How far from the goal walks end, (N,), voxels."""
        last = torch.stack([walk.one(image[None].float(), network)[-1] for image in self.images])
        return self.moves.distance(self.moves.missing(last, self.truths))


def prepared(data_list: Path, spatial_dims: int, seed: int, count: int = 40) -> tuple[ConfigParser, dict[str, Memory]]:
    """The bundle's configuration, and the memories of training and validation people.

    Args:
        count: pairs of a person that is trained on; in 2-D four slices are as many.
    """
    names = ["train", *["train_2d"] * (spatial_dims == 2)]
    parser = ConfigParser(ConfigParser.load_config_files([str(BUNDLE / "configs" / f"{n}.json") for n in names]))
    parser.update({"bundle_root": str(BUNDLE), "statistics": str(data_list.parent / "labels.csv")})
    parser.update({"device": torch.device("cpu"), "precision": "float32"})
    if spatial_dims == 2:
        parser["num_slices"] = 4
        parser["slices#levels"], parser["slices#transpose"] = {"2": [60, 130]}, 0.0  # slices of one size, axial
    make = parser.get_parsed_content("starts")
    slices = parser.get_parsed_content("slices") if spatial_dims == 2 else None
    load = LoadScand(parser["spacing"] / 2, [2 * n for n in parser["size"]], "mass")
    memories = {}
    for part, each in (("training", count), ("validation", 3)):
        labels = [plain(torch.as_tensor(load(item)["label"]))[None] for item in load_list(data_list, part)]
        memories[part] = Memory.rendered(make, labels, each, slices, seed=seed + (part == "validation"))
    return parser, memories


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_list", type=Path)
    parser.add_argument("--minutes", type=float, default=15.0, help="of CPU time, without the rendering")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--spatial_dims", type=int, choices=[2, 3], default=3)
    parser.add_argument("--initial", type=Path)
    parser.add_argument("--each", type=int, default=40, help="pairs of a person, in 2-D of four slices each")
    parser.add_argument("--seed", type=int, default=0, help="another one renders other pairs")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    config, memories = prepared(options.data_list, options.spatial_dims, 2 * options.seed, options.each)
    moves, network = config.get_parsed_content("moves"), config.get_parsed_content("network_def")
    if options.initial:
        load_weights(network, options.initial, "agent", {})
    print(f"{len(memories['training'].images)} pairs", flush=True)
    rows = list[dict[str, float]]()
    for row, mean in training(network, memories, Walk(moves, limit=60), 60 * options.minutes):
        rows.append({**row, "end_mm": row.pop("end") * config["spacing"]})
        print({key: round(value, 4) for key, value in rows[-1].items()}, flush=True)
        write_table(options.output / "rigid_agent.csv", rows)
        save_tensors(options.output / "rigid_agent.pt", {k: v.contiguous() for k, v in mean.state_dict().items()})


def training(network, memories, walk, seconds):  # type: ignore[no-untyped-def]
    """Train; yields a row and the mean network for every tenth of the time."""
    mean, loss_of = deepcopy(network), GainLoss()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    mirrored, begin, steps, losses = walk.moves.mirrored, time.process_time(), 0, list[float]()
    looks, walks = [0.1 * i for i in range(1, 11)], [0.3, 0.5, 0.7][:WALKS]
    while looks:
        progress = (time.process_time() - begin) / seconds
        if progress > looks[0]:
            ended = time.process_time()
            distances = memories["validation"].ends(walk, mean)
            yield (
                {"seconds": ended - begin, "steps": steps, "loss": sum(losses) / len(losses),
                 "end": float(distances.median()), "lost": float((distances > 2).float().mean())}, mean,
            )  # fmt: skip
            begin += time.process_time() - ended
            losses, looks = [], looks[1:]
        if walks and progress > walks[0]:
            memories["training"].walked(walk, mean, 0.05 * seconds)
            walks = walks[1:]
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, 2 * (1.02 - min(progress, 1.0)))
        image, missing = memories["training"].drawn(BATCH)
        gains = walk.moves.gains(missing)
        if mirrored is not None and torch.rand(()) < 0.5:
            image, gains = image.flip(2), gains[:, :, mirrored]
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            values = network(image)
        loss = loss_of({"values": values.float()}, {"gains": gains})
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            decay = min(0.998, 1 - 1 / (1 + steps / 10))
            torch._foreach_lerp_(list(mean.parameters()), list(network.parameters()), 1 - decay)
        losses.append(float(loss))
        steps += 1


if __name__ == "__main__":
    main()
