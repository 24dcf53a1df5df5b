"""The agent of `rigid_agent` from known rigid starts: how far it may begin, and where it ends, beside others.

    python -m benchmarks.agents LABELMAPS/datalist.json OUTPUT.csv [--weights model.pt] [--sizes 10 30 90] [--starts 4]
        [--spatial_dims 2] [--picture CURVES.png] [--gif WALK.gif]

Pairs of one person in two renderings at 2 mm, of the list's validation people; the list's maps share a space. A start
of size s is a turn by s degrees about a random axis and a shift by s mm in a random direction. The turn is about the
grid's centre. The shift stands in the moving image's header, so that its head stays whole. Errors are root mean squares
over a ball of 80 mm, in mm; a start is captured if it ends below 4 mm. Every method gets the same two images and gives
a map in the world. The affine network may also scale and shear. A method that goes on from another one's answer costs
the time of both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser

from benchmarks.experiments import BUNDLES, markdown
from custom_components.affine import ball_displacement, centred_to_voxel
from custom_components.data.lists import load_list
from custom_components.fields import plain
from custom_components.files import write_table
from custom_components.inference.alignment import NetworkAligner
from custom_components.methods.agents.inference import AgentAligner
from custom_components.methods.agents.rigid import RigidMoves, centred
from custom_components.methods.agents.simulation import SimulatedStates
from custom_components.methods.agents.walk import Walk
from custom_components.space.affine import register_affine
from custom_components.space.affine_itk import finish_by_itk
from custom_components.space.affine_levels import image_weights
from custom_components.space.grids import Grid, center_of_mass, model_grid
from custom_components.space.resampling import resample
from custom_components.space.volumes import Volume
from custom_components.synthesis.contrast import RandomContrast
from custom_components.synthesis.intensities import LabelIntensities
from custom_components.synthesis.slices import TakeSlices
from custom_components.transforms.scan import LoadScand

SIZE, SPACING = (96, 112, 96), 2.0
MODEL_SPACING = {3: 4.0, 2: 2.0}  # of the agents
RADIUS_MM, CAPTURED_MM = 80.0, 4.0
SIZES = (10.0, 20.0, 30.0, 45.0, 60.0, 90.0)  # degrees and mm
CONTRASTS = ("t1", "t2", "inverted")
LEVELS = {2: (65, 125)}  # of the maps that are cut in 2-D, mm
Align = Callable[[Volume, Volume, np.ndarray], np.ndarray]


class Method(NamedTuple):
    """From a fixed and a moving image and a start to a map, all maps in the world, and whose answer the start is."""

    align: Align
    after: str = ""


class Case(NamedTuple):
    """What a pair is, its images, and the true map in the world, fixed to moving."""

    facts: dict[str, Any]
    moving: Volume
    fixed: Volume
    truth: np.ndarray


def pairs(data_list: Path, sizes: Sequence[float], starts: int, seed: int = 0, d: int = 3) -> Iterator[Case]:
    """Pairs of each person, contrast and size of start."""
    parser = ConfigParser(ConfigParser.load_config_file(BUNDLES / "rigid_agent" / "configs" / "train.json"))
    parser.update({"statistics": str(data_list.parent / "labels.csv"), "spatial_dims": d})
    effects = parser.get_parsed_content("effects")
    looks = {
        name: RandomContrast(
            LabelIntensities(statistics=data_list.parent / "labels.csv", contrast=name, std=(4, 12)), effects=effects
        )
        for name in CONTRASTS
    }
    place, other = parser.get_parsed_content("place"), parser.get_parsed_content("other")
    make = SimulatedStates(looks["t1"], place, other, RigidMoves(d, radius=RADIUS_MM / SPACING), states=1)
    load = LoadScand(SPACING / 2, [2 * n for n in SIZE], "mass")
    for person, item in enumerate(load_list(data_list, "validation")):
        whole = plain(torch.as_tensor(load(item)["label"]))[None]
        for contrast in CONTRASTS:
            for size in sizes:
                for number in range(starts):
                    generator = torch.Generator().manual_seed(seed + 1000 * person + number)
                    facts = {"person": person, "contrast": f"t1-{contrast}", "start": size, "number": number}
                    labels = whole if d == 3 else cut(whole, generator)
                    yield Case(facts, *rendered(make, labels, [looks["t1"], looks[contrast]], size, generator))


def cut(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random axial slice of a map."""
    take = TakeSlices(1, LEVELS)
    return take(labels, labels, take.draw(generator))[0]


def rendered(
    make: SimulatedStates,
    labels: torch.Tensor,
    looks: Sequence[RandomContrast],
    size: float,
    generator: torch.Generator,
) -> tuple[Volume, Volume, np.ndarray]:
    """A pair whose turn is in the voxels and whose shift is in the header."""
    grid = tuple(n // 2 for n in labels.shape[2:])
    draw = make.draw(1, labels.shape[2:], generator)
    draw["looks"] = [look.draw(1, grid, generator) for look in looks]
    draw["turn"] *= torch.pi / 180 * size / draw["turn"].norm()
    shift = np.eye(len(grid) + 1)
    shift[:-1, -1] = (draw["shift"] * size / draw["shift"].norm()).numpy()[0]
    draw["shift"] = torch.zeros_like(draw["shift"])
    found = make(labels, draw)
    affine = world_of(grid)
    turn = in_world(found["offset"], Grid(affine, grid))
    moving = volume(found["moving"][0], shift @ affine, "moving")
    return moving, volume(found["fixed"][0], affine, "fixed"), shift @ turn


def world_of(size: Sequence[int]) -> np.ndarray:
    """The matrix of a grid about the world's origin."""
    affine = np.diag([SPACING] * len(size) + [1.0])
    affine[:-1, -1] = [-SPACING * (n - 1) / 2 for n in size]
    return affine


def in_world(matrix: torch.Tensor, grid: Grid) -> np.ndarray:
    """A map (1, D, D + 1) in voxels about the grid's centre as a matrix of the world."""
    whole = np.eye(len(grid.size) + 1)
    whole[:-1] = centred_to_voxel(centred(matrix, grid.size), grid.size)[0].double().numpy()
    return grid.affine @ whole @ np.linalg.inv(grid.affine)


def volume(image: torch.Tensor, affine: np.ndarray, name: str) -> Volume:
    return Volume(image, affine, name, affine, tuple(image.shape[1:]), np.dtype(np.float32))


def error_mm(found: np.ndarray, truth: np.ndarray) -> float:
    """Of a map, root mean square over the ball about the world's origin, the fixed grid's centre."""
    apart = torch.from_numpy(found - truth + np.eye(len(truth)))[None, :-1]
    return float(ball_displacement(apart, RADIUS_MM))


def agent(weights: Path | None, d: int = 3) -> tuple[torch.nn.Module, Walk]:
    """The network with its weights, and its walk."""
    names = ["inference", *["inference_2d"] * (d == 2)]
    folder = BUNDLES / "rigid_agent"
    parser = ConfigParser(ConfigParser.load_config_files([str(folder / "configs" / f"{name}.json") for name in names]))
    parser.update({"bundle_root": str(folder)})
    network = parser.get_parsed_content("network_def")
    path = weights or Path(parser.get_parsed_content("weights"))
    network.load_state_dict({k: v.float() for k, v in torch.load(path, map_location="cpu").items()})
    return network.eval(), parser.get_parsed_content("walk")


def from_headers(network: torch.nn.Module, walk: Walk, fixed: Volume, moving: Volume) -> tuple[list[np.ndarray], Grid]:
    """The maps of an agent's walk in the world, on the grid of the bundle, and this grid."""
    grid = model_grid(fixed.affine, fixed.grid.size, MODEL_SPACING[walk.moves.spatial_dims])
    image = torch.cat([resample(one.data, one.affine, grid, antialias=True) for one in (moving, fixed)])[None]
    return [in_world(matrix[None], grid) for matrix in walk(image, network)[0]], grid


def centres(fixed: Volume, moving: Volume) -> tuple[np.ndarray, np.ndarray]:
    """The map that lays centre of mass on centre of mass, and that of the fixed image."""
    here, there = (center_of_mass(image_weights(one.data), one.affine) for one in (fixed, moving))
    found = np.eye(len(here) + 1)
    found[:-1, -1] = there - here
    return found, here


def itk_alone(fixed: Volume, moving: Volume, start: np.ndarray) -> np.ndarray:
    """The rigid optimisation of `--affine itk` without the search that goes before it."""
    return finish_by_itk(fixed, moving, "rigid", start=start, center=centres(fixed, moving)[1], masks={})


def searched(engine: str) -> Align:
    """`--affine ENGINE --stages rigid`: many starts, of which the engine takes the best one to the end."""
    return lambda fixed, moving, _: register_affine(fixed, moving, stage="rigid", engine=engine)


def methods(weights: Path | None, d: int = 3) -> dict[str, Method]:
    """All methods; those that go on come after those whose answers they take."""
    network, walk = agent(weights, d)
    aligner = NetworkAligner(AgentAligner(network, walk), MODEL_SPACING[d], (48, 56, 48) if d == 3 else (96, 112))
    names = ["inference", *["inference_2d"] * (d == 2)]
    parser = ConfigParser(
        ConfigParser.load_config_files([str(BUNDLES / "avsm" / "configs" / f"{name}.json") for name in names])
    )
    parser.update({"bundle_root": str(BUNDLES / "avsm"), "device": torch.device("cpu")})
    affine = parser.get_parsed_content("aligner")
    return {
        "agent from the headers": Method(lambda fixed, moving, _: from_headers(network, walk, fixed, moving)[0][-1]),
        "agent": Method(lambda fixed, moving, _: aligner(fixed, moving)),
        "agent, then ITK alone": Method(itk_alone, "agent"),
        "affine network": Method(lambda fixed, moving, _: affine(fixed, moving)),
        "affine network, then ITK alone": Method(itk_alone, "affine network"),
        "centres of mass": Method(lambda fixed, moving, _: centres(fixed, moving)[0]),
        "centres of mass, then ITK alone": Method(itk_alone, "centres of mass"),
        "ITK alone from the headers": Method(itk_alone),
        "ITK with its search": Method(searched("itk")),
        "torch with its search": Method(searched("torch")),
    }


def measured(case: Case, known: dict[str, Method]) -> list[dict[str, Any]]:
    """A row for each method."""
    start = np.eye(len(case.truth))
    rows, found = [], {"": start}
    seconds = {"": 0.0}
    for name, method in known.items():
        begin = time.process_time()
        found[name] = method.align(case.fixed, case.moving, found[method.after])
        seconds[name] = time.process_time() - begin + seconds[method.after]
        error, before = (error_mm(one, case.truth) for one in (found[name], start))
        rows.append({"method": name, **case.facts, "before": before, "error": error, "cpu_s": seconds[name]})
    return rows


def selected(known: dict[str, Method], names: Sequence[str] | None) -> dict[str, Method]:
    """Methods of these names, or all, with those whose answers they take."""
    wanted = set(names or known)
    wanted |= {known[name].after for name in wanted}
    return {name: method for name, method in known.items() if name in wanted}


def summary(rows: list[dict[str, Any]], contrast: str | None = None) -> str:
    """By method, for each size of start: share captured / median error (largest); then CPU seconds."""
    rows = [row for row in rows if contrast in (None, row["contrast"])]
    sizes, lines = list(dict.fromkeys(row["start"] for row in rows)), []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        cells = []
        for size in sizes:
            ends = np.array([row["error"] for row in mine if row["start"] == size])
            share, median = (ends < CAPTURED_MM).mean(), np.median(ends)
            cells.append(f"{share:.2f} / {short(median)} ({short(ends.max())})")
        lines.append([method, *cells, f"{np.mean([row['cpu_s'] for row in mine]):.2f}"])
    before = [f"{np.mean([row['before'] for row in rows if row['start'] == size]):.1f}" for size in sizes]
    return markdown([contrast or "all", *[f"{size:g}" for size in sizes], "CPU s"], [["before", *before, ""], *lines])


def short(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:.2g}" if value < 99.5 else f"{value:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_list", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--sizes", type=float, nargs="+", default=list(SIZES), help="of the starts, degrees and mm")
    parser.add_argument("--starts", type=int, default=1, help="for each person, contrast and size")
    parser.add_argument("--spatial_dims", type=int, choices=[2, 3], default=3)
    parser.add_argument("--only", nargs="+", help="names of methods")
    parser.add_argument("--seed", type=int, default=0, help="another one makes other pairs")
    parser.add_argument("--picture", type=Path, help="PNG of the capture range")
    parser.add_argument("--gif", type=Path, help="of a walk")
    options = parser.parse_args()
    from benchmarks.agents_pictures import animation, draw

    d, rows = options.spatial_dims, list[dict[str, Any]]()
    if options.gif:
        animation(options.weights, options.data_list, options.gif)
    known = selected(methods(options.weights, d), options.only)
    for case in pairs(options.data_list, options.sizes, options.starts, options.seed, d):
        rows += measured(case, known)
        write_table(options.output, rows)
    for contrast in (None, *dict.fromkeys(row["contrast"] for row in rows)):
        print(summary(rows, contrast))
    if options.picture:
        draw(rows, options.picture)


if __name__ == "__main__":
    main()
