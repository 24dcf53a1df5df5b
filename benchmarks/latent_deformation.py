"""What a latent space of deformations is good for: registration, its dimensions, and transport.

    python -m benchmarks.latent_deformation spaces ALIGNED/datalist.json spaces.csv [--weights NAME=FILE ...]
    python -m benchmarks.latent_deformation warped MAPS warped.csv --statistics labels.csv [--weights NAME=FILE ...]
    python -m benchmarks.latent_deformation transport ALIGNED/datalist.json transport.csv
    python -m benchmarks.latent_deformation bundles DATA bundles.csv --cache CACHE --pairs 6
    python -m benchmarks.latent_deformation slabs DATA slabs.csv --cache CACHE

ALIGNED is what `data_lists/align.py` writes of the label maps, with labels.csv beside it; its section `validation` is
rendered T1-like and stripped at the bundle's grid. MAPS is a file of `device_maps`. DATA is the folder of the test
data.

`spaces`: Dice of 29 structures before and after the network alone; with the z of the pair, but another person as the
moving image that the decoder sees; folds, SD of log det J; how many dimensions of z are active (variance of their mean
over the pairs above .01), mean and SD of the means; the same of samples of the prior. `warped`: Dice before and after
for maps of the validation people that are warped at random as in the training, one person's twice and two people's,
each structure where it holds more than half of a voxel. `transport`: the ventricles of each person are enlarged by a
known deformation; z of that is decoded with each other person, whose own known enlargement is the truth. `bundles`:
beside VoxelMorph's shipped network, on rendered pairs at 2 mm. `slabs`: real slices, by the 2-D network.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.classical import measured
from benchmarks.device_training import hard_dice
from benchmarks.experiments import bundle_config, markdown
from benchmarks.latent_training import read_pairs
from benchmarks.rendered_people import STRUCTURES, load_people, rendered_pairs
from benchmarks.weights_sets import rendered, slabs
from custom_components.commands.registrar import Registrar
from custom_components.evaluation.metrics import folding_fraction, sd_log_jacobian
from custom_components.evaluation.overlap import label_overlap
from custom_components.fields import integrate_velocity, spatial_gradient, warp
from custom_components.files import write_table
from custom_components.methods.latent_deformation.inference import LatentPredictor
from custom_components.methods.latent_deformation.latent import decode
from custom_components.methods.latent_deformation.window import Window
from custom_components.synthesis.brains import BrainContrast
from custom_components.synthesis.noise import gaussian_blur
from custom_components.synthesis.pairs import SynthesizePair
from custom_components.synthesis.warp import RandomWarp
from custom_components.vocabulary import Entry

VENTRICLES = (4, 43)
ACTIVE = 0.01
ENLARGEMENT = 1.5  # voxels that a border of the ventricles moves at most, before integration


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["spaces", "warped", "transport", "bundles", "slabs"])
    parser.add_argument("data", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--weights", nargs="*", default=["shipped="], help="NAME=FILE")
    parser.add_argument("--cache", type=Path, default=Path("latent_cache"), help="folder for what is made of the data")
    parser.add_argument("--pairs", type=int, default=12, help="the first ones")
    parser.add_argument("--statistics", type=Path, help="CSV file of the labels' T1-like intensities, for warped")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kinds = {"spaces": spaces, "warped": warped, "transport": transport, "bundles": beside, "slabs": of_slabs}
    make = kinds[options.what]
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for row in make(options):
            rows.append(row)
            write_table(options.table, rows)
    keys = [key for key, value in rows[-1].items() if isinstance(value, float)]
    lines: list[list[Any]] = []
    for name in dict.fromkeys(row["method"] for row in rows):
        some = [row for row in rows if row["method"] == name]
        means = [sum(row.get(key, 0.0) for row in some) / len(some) for key in keys]
        lines.append([name, len(some), *[round(value, 4) for value in means]])
    print(markdown(["method", "rows", *keys], lines))


class Space:
    """The bundle's network with weights, and how it is asked.

    Args:
        weights: a file; empty: the shipped ones.
    """

    def __init__(self, weights: str = "") -> None:
        path = Path(weights) if weights else None
        state = None if path is None else torch.load(path, weights_only=True)
        settings = {} if state is None else {"latent_size": state["map.weight"].shape[1]}
        config = bundle_config("latent_deformation", ["inference"], **settings)
        self.network: nn.Module = config.get_parsed_content("network_def").eval()
        if state is None:
            state = torch.load(config.get_parsed_content("weights"), weights_only=True)
        self.network.load_state_dict(state)
        self.deformation: Any = config.get_parsed_content("deformation")
        self.size, self.spacing = config.get_parsed_content("window_size"), config.get_parsed_content("spacing")
        self.predict = LatentPredictor(window=self.size)

    def statistics(self, image: Tensor) -> Tensor:
        return self.predict.statistics(image, self.network)

    def ddf(self, image: Tensor, latent: Tensor) -> Tensor:
        """Of z, for the moving image of a pair."""
        return self.of(self.predict.velocity(image, self.network, latent))

    def seen_with(self, image: Tensor, latent: Tensor, moving: Tensor) -> Tensor:
        """Of z, for the pair, whose moving image is exchanged for another one where the decoder looks."""
        exchanged = Window(torch.cat([moving, image[:, 1:]], 1), self.size).image
        return self.of(Window(image, self.size).field(decode(self.network, latent, exchanged)))

    def of(self, velocity: Tensor) -> Tensor:
        ddf: Tensor = self.deformation(velocity, velocity.shape[2:])["ddf"]
        return ddf


def spaces(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows for each file of weights and pair, and for samples of the prior."""
    for entry in options.weights:
        name, _, file = entry.partition("=")
        space = Space(file)
        people = load_people(options.data, spacing=space.spacing, size=space.size)
        pairs = list(rendered_pairs(people, options.data.parent / "labels.csv", "t1"))[: options.pairs]
        means = []
        for number, (moving, fixed, batch) in enumerate(pairs):
            who = f"{moving['subject']}-{fixed['subject']}"
            image = torch.cat([batch["moving"], batch["fixed"]], 1)
            mean = space.statistics(image).chunk(2, 1)[0]
            means.append(mean[0])
            other = pairs[(number + len(pairs) // 2) % len(pairs)][2]["moving"]
            fields = {
                "before": torch.zeros(1, 3, *image.shape[2:]),
                name: space.ddf(image, mean),
                f"{name}, another moving image in the decoder": space.seen_with(image, mean, other),
                f"{name}, sample of the prior": space.ddf(image, torch.randn_like(mean)),
            }
            for method, ddf in fields.items():
                yield {"method": method, "pair": who, **judged(ddf, batch)}
        table = torch.stack(means)
        active, spread = int((table.var(0) > ACTIVE).sum()), table.std(0)
        largest = float(table.mean(0).abs().max())
        print(
            f"{name}: {active} of {table.shape[1]} dimensions active; over the pairs |mean of a dimension| is at most "
            f"{largest:.2f}, its SD {float(spread.mean()):.2f} ({float(spread.min()):.2f} to {float(spread.max()):.2f})"
        )


def warped(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows for each file of weights and pair of randomly warped maps, of one person and of two."""
    for entry in options.weights:
        name, _, file = entry.partition("=")
        space = Space(file)
        for who, share in (("one person", 1.0), ("two people", 0.0)):
            _, people = read_pairs(
                options.data, options.statistics, 3, torch.device("cpu"), strip=1.0, same_person=share
            )
            for number in range(options.pairs):
                torch.manual_seed(number)
                labels = people.anatomies(1)
                means = people.means(2, torch.zeros(2, dtype=torch.long))
                image = torch.cat(people.render(labels, means, torch.full((2,), 16.0)).chunk(2), 1)
                before, after = people.shares(labels).chunk(2)
                ddf = space.ddf(image, space.statistics(image).chunk(2, 1)[0])
                dice = {"dice_before": hard_dice(before, after), "dice": hard_dice(warp(before, ddf), after)}
                yield {"method": f"{name}, {who}", "pair": number, **{key: float(n) for key, n in dice.items()}}


def judged(ddf: Tensor, batch: dict[str, Tensor]) -> dict[str, float]:
    """Of one pair, on its grid; folds where the fixed image shows something."""
    labels = warp(batch["label_moving"], ddf, mode="nearest")
    inside = batch["fixed"] > 0.05
    return {
        "dice": float(label_overlap(labels, batch["label_fixed"], STRUCTURES).nanmean()),
        "folding_percent": 100 * float(folding_fraction(ddf, inside)),
        "sd_log_jacobian": float(sd_log_jacobian(ddf, inside)),
        "displacement_voxels": float(ddf.norm(dim=1, keepdim=True)[inside].mean()),
    }


def enlargement(labels: Tensor) -> Tensor:
    """The displacement, voxels, of a map that enlarges the ventricles of a label map (1, 1, *S)."""
    mask = torch.stack([labels == i for i in VENTRICLES]).any(0).float()
    slope = spatial_gradient(gaussian_blur(mask, 1.5))[:, 0]
    return integrate_velocity(ENLARGEMENT * slope / slope.norm(dim=1).max(), 6)


def ventricles(labels: Tensor) -> float:
    """Voxels."""
    return float(sum((labels == i).sum() for i in VENTRICLES))


def transport(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows for each ordered pair of people: whose enlargement, and to whom it is transported."""
    space = Space(options.weights[0].partition("=")[2])
    people = load_people(options.data, spacing=space.spacing, size=space.size)
    enlarged = [with_enlargement(person, options.data.parent / "labels.csv") for person in people]
    for source, target in permutations(range(len(people)), 2):
        truth, batch = enlarged[target]
        image = torch.cat([batch["moving"], batch["moving"]], 1)
        own_image = torch.cat([batch["moving"], batch["fixed"]], 1)
        there = torch.cat([enlarged[source][1]["moving"], enlarged[source][1]["fixed"]], 1)
        nothing = space.ddf(image, space.statistics(image).chunk(2, 1)[0])
        fields = {
            "none": torch.zeros_like(truth),
            "registration of the target's own pair": space.ddf(own_image, space.statistics(own_image).chunk(2, 1)[0]),
            "transported": space.ddf(image, space.statistics(there).chunk(2, 1)[0]),
            "the target registered to itself": nothing,
        }
        region = truth.norm(dim=1) > 0.25
        labels = batch["label_moving"]
        for method, ddf in fields.items():
            grown = ventricles(warp(labels, ddf, mode="nearest")) / ventricles(labels)
            wanted = ventricles(warp(labels, truth, mode="nearest")) / ventricles(labels)
            error = space.spacing * (ddf - truth).norm(dim=1)
            yield {
                "method": method,
                "pair": f"{people[source]['subject']}-{people[target]['subject']}",
                "error_mm": float(error[region].mean()),
                "ventricles": grown,
                "ventricles_wanted": wanted,
            }


def with_enlargement(person: Entry, statistics: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """The known displacement, and the person's image before (moving) and after (fixed)."""
    labels = person["label"][None].to(torch.int16)
    ddf = enlargement(labels)
    look = {"statistics": statistics, "std": (2, 8), "background_std": (0, 3), "bias": 0.15, "gamma": 0.1}
    sides = [BrainContrast(contrast="t1", zero_background=1.0, **look) for _ in range(2)]  # type: ignore[arg-type]
    synthesis = SynthesizePair(RandomWarp(0.0), *sides, flip=0.0, strip=1.0)
    draw = synthesis.draw(1, labels.shape[2:], torch.Generator().manual_seed(0))
    return ddf, synthesis(labels, warp(labels, ddf, mode="nearest"), draw)


def beside(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows for each rendered pair and bundle, networks alone."""
    (part, *_) = rendered(options.data, options.cache)
    for bundle in ("latent_deformation", "voxelmorph"):
        registrar = Registrar(bundle, affine="none", optimize=0, **part.settings)
        for pair in part.pairs[: options.pairs]:
            yield {"method": bundle, "pair": pair["id"], **measured(registrar, pair)}


def of_slabs(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows for each pair of real slices, by the 2-D network alone."""
    (part,) = slabs(options.data, options.cache)
    registrar = Registrar("latent_deformation", affine="none", optimize=0, **part.settings)
    for pair in part.pairs[: options.pairs]:
        yield {"method": "latent_deformation", "pair": pair["id"], **measured(registrar, pair)}


if __name__ == "__main__":
    main()
