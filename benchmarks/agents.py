"""The agent of `rigid_agent` from known rigid starts, beside ITK's rigid stage, ours, and the affine network of `avsm`.

    python -m benchmarks.agents LABELMAPS/datalist.json OUTPUT.csv [--weights model.pt] [--starts 4] [--gif WALK.gif]

Pairs of one person in two renderings at 2 mm, of the list's validation people; the list's maps share a space. A start
is a turn about a random axis and a shift in a random direction, of given sizes, about the grid's centre. Errors are
root mean squares over a ball of 80 mm about it, in mm; a start is captured if it ends below 4 mm. Every method gets the
same two images and gives a map in the world. The affine network may also scale and shear.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
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
from custom_components.space.grids import Grid, model_grid
from custom_components.space.resampling import resample
from custom_components.space.volumes import Volume
from custom_components.synthesis.contrast import RandomContrast
from custom_components.synthesis.intensities import LabelIntensities
from custom_components.transforms.scan import LoadScand

SIZE, SPACING = (96, 112, 96), 2.0
RADIUS_MM, CAPTURED_MM = 80.0, 4.0
STARTS = ((5.0, 5.0), (10.0, 10.0), (20.0, 20.0), (30.0, 30.0))  # degrees, mm
CONTRASTS = ("t1", "t2", "inverted")
Align = Callable[[Volume, Volume], np.ndarray]
AFFINE = np.diag([SPACING] * 3 + [1.0])
AFFINE[:3, 3] = [-SPACING * (n - 1) / 2 for n in SIZE]


def pairs(data_list: Path, starts: int, seed: int = 0) -> Iterator[tuple[dict[str, Any], Volume, Volume, np.ndarray]]:
    """What a case is, its moving and fixed image, and the true map in the world, fixed to moving."""
    parser = ConfigParser(ConfigParser.load_config_file(BUNDLES / "rigid_agent" / "configs" / "train.json"))
    parser.update({"statistics": str(data_list.parent / "labels.csv")})
    effects = parser.get_parsed_content("effects")
    looks = {
        name: RandomContrast(
            LabelIntensities(statistics=data_list.parent / "labels.csv", contrast=name, std=(4, 12)), effects=effects
        )
        for name in CONTRASTS
    }
    place, other = parser.get_parsed_content("place"), parser.get_parsed_content("other")
    make = SimulatedStates(looks["t1"], place, other, RigidMoves(radius=RADIUS_MM / SPACING), states=1)
    load = LoadScand(SPACING / 2, [2 * n for n in SIZE], "mass")
    for person, item in enumerate(load_list(data_list, "validation")):
        labels = plain(torch.as_tensor(load(item)["label"]))[None]
        for contrast in CONTRASTS:
            for degrees, mm in STARTS:
                for number in range(starts):
                    generator = torch.Generator().manual_seed(seed + 1000 * person + number)
                    draw = make.draw(1, labels.shape[2:], generator)
                    draw["looks"] = [looks[c].draw(1, SIZE, generator) for c in ("t1", contrast)]
                    draw["turn"] *= torch.pi / 180 * degrees / draw["turn"].norm()
                    draw["shift"] *= mm / SPACING / draw["shift"].norm()
                    found = make(labels, draw)
                    truth = np.eye(4)
                    matrix = centred_to_voxel(centred(found["offset"], SIZE), SIZE)
                    truth[:3] = matrix[0].double().numpy()
                    case = {"person": person, "contrast": f"t1-{contrast}", "start": f"{degrees:g}", "number": number}
                    moving, fixed = (volume(found[role][0], role) for role in ("moving", "fixed"))
                    yield case, moving, fixed, AFFINE @ truth @ np.linalg.inv(AFFINE)


def volume(image: torch.Tensor, name: str) -> Volume:
    return Volume(image, AFFINE, name, AFFINE, SIZE, np.dtype(np.float32))


def error_mm(found: np.ndarray, truth: np.ndarray) -> float:
    """Of a map (4, 4), root mean square over the ball about the world's origin, the grid's centre."""
    apart = torch.from_numpy(found - truth + np.eye(4))[None, :3]
    return float(ball_displacement(apart, RADIUS_MM))


def agent(weights: Path | None) -> tuple[torch.nn.Module, Walk]:
    """The network with its weights, and its walk."""
    parser = ConfigParser(ConfigParser.load_config_file(BUNDLES / "rigid_agent" / "configs" / "inference.json"))
    parser.update({"bundle_root": str(BUNDLES / "rigid_agent")})
    network = parser.get_parsed_content("network_def")
    path = weights or Path(parser.get_parsed_content("weights"))
    network.load_state_dict({k: v.float() for k, v in torch.load(path, map_location="cpu").items()})
    return network.eval(), parser.get_parsed_content("walk")


def from_headers(network: torch.nn.Module, walk: Walk, fixed: Volume, moving: Volume) -> tuple[list[np.ndarray], Grid]:
    """The maps of an agent's walk in the world, on the grid of 4 mm of the bundle, and this grid."""
    grid = model_grid(fixed.affine, fixed.grid.size, 4.0)
    image = torch.cat([resample(one.data, one.affine, grid, antialias=True) for one in (moving, fixed)])[None]
    found = []
    for matrix in walk(image, network)[0]:
        whole = np.eye(4)
        whole[:3] = centred_to_voxel(centred(matrix[None], grid.size), grid.size)[0].double().numpy()
        found.append(grid.affine @ whole @ np.linalg.inv(grid.affine))
    return found, grid


def methods(weights: Path | None) -> dict[str, Align]:
    network, walk = agent(weights)
    aligner = NetworkAligner(AgentAligner(network, walk), 4.0, (48, 56, 48))
    parser = ConfigParser(ConfigParser.load_config_file(BUNDLES / "avsm" / "configs" / "inference.json"))
    parser.update({"bundle_root": str(BUNDLES / "avsm"), "device": torch.device("cpu")})
    return {
        "agent": lambda fixed, moving: from_headers(network, walk, fixed, moving)[0][-1],
        "agent from the centres of mass": aligner,
        "ITK rigid": lambda fixed, moving: register_affine(fixed, moving, stage="rigid", engine="itk"),
        "torch rigid": lambda fixed, moving: register_affine(fixed, moving, stage="rigid", engine="torch"),
        "affine network": parser.get_parsed_content("aligner"),
    }


def animation(weights: Path | None, data_list: Path, path: Path) -> None:
    """The walk of a pair of 30 degrees and 30 mm, T1 to T2: the warped moving image beside the fixed one."""
    from matplotlib import pyplot as plt
    from matplotlib.animation import FuncAnimation, PillowWriter

    network, walk = agent(weights)
    case = next(p for p in pairs(data_list, 1) if p[0]["contrast"] == "t1-t2" and p[0]["start"] == "30")
    _, moving, fixed, truth = case
    grid = model_grid(fixed.affine, fixed.grid.size, 4.0)
    image = torch.cat([resample(one.data, one.affine, grid, antialias=True) for one in (moving, fixed)])[None]
    way, (worlds, _) = walk(image, network)[0], from_headers(network, walk, fixed, moving)
    figure, axes = plt.subplots(1, 2, figsize=(5, 3))
    middle = grid.size[2] // 2

    def draw(number: int) -> None:
        shown = walk.moves.seen(image, way[number][None])[0]
        for axis, one, title in zip(axes, shown, ("moving", "fixed"), strict=True):
            axis.clear()
            axis.imshow(one[:, :, middle].T, cmap="gray", origin="lower", vmin=0, vmax=1)
            axis.set_title(title, fontsize=9)
            axis.axis("off")
        figure.suptitle(f"action {number} of {len(way) - 1}: {error_mm(worlds[number], truth):.1f} mm", fontsize=9)

    FuncAnimation(figure, draw, frames=len(way)).save(path, PillowWriter(fps=5), dpi=70)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_list", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--starts", type=int, default=4, help="for each person, contrast and size")
    parser.add_argument("--only", nargs="+", help="names of methods")
    parser.add_argument("--gif", type=Path)
    options = parser.parse_args()
    if options.gif:
        animation(options.weights, options.data_list, options.gif)
    known, rows = methods(options.weights), list[dict[str, Any]]()
    known = {name: align for name, align in known.items() if not options.only or name in options.only}
    for case, moving, fixed, truth in pairs(options.data_list, options.starts):
        before = error_mm(np.eye(4), truth)
        for name, align in known.items():
            begin = time.process_time()
            found = align(fixed, moving)
            seconds = time.process_time() - begin
            rows.append({"method": name, **case, "before": before, "error": error_mm(found, truth), "cpu_s": seconds})
        write_table(options.output, rows)
    print(summary(rows))


def summary(rows: list[dict[str, Any]]) -> str:
    """By method and contrast: captured, of each size of start; median error of what is captured; CPU seconds."""
    sizes = [f"{degrees:g}" for degrees, _ in STARTS]
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        for contrast in dict.fromkeys(row["contrast"] for row in rows):
            mine = [row for row in rows if row["method"] == method and row["contrast"] == contrast]
            shares = [
                float(np.mean([row["error"] < CAPTURED_MM for row in mine if row["start"] == size])) for size in sizes
            ]
            ends = [row["error"] for row in mine if row["error"] < CAPTURED_MM]
            seconds = float(np.mean([row["cpu_s"] for row in mine]))
            lines.append([method, contrast, *shares, float(np.median(ends)) if ends else float("nan"), seconds])
    return markdown(["method", "contrasts", *sizes, "median mm", "CPU s"], lines)


if __name__ == "__main__":
    main()
