"""How often does the affine stage find a pair whose header is turned, how exactly, and does it say so where it fails?

    python -m benchmarks.affine OUT --heads REAL_HEADS3D [--people LIST --statistics TABLE] [--engine itk] [--turns 4]

Each of three people is registered to the next one. The moving header is turned about the image's centre by one of the
24 rotations by multiples of 90 degrees and by 20 degrees more about a random axis, and shifted by some 50 mm. The known
answer of people who are rendered from label maps in one affine space is that turn and shift. Of real heads it is the
answer for the headers as they are, followed by the turn and the shift. A run fails if the mean error in the labelled
structures is above 10 mm. Prints a table; each run is a line of OUT, and not repeated.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import fire
import numpy as np
import torch

from benchmarks.rendered_people import load_people, rendered_pairs
from custom_components.evaluation.overlap import mean_dice
from custom_components.notices import collecting
from custom_components.space import load_image, load_labels, register_affine, transform_points_world
from custom_components.space.affine_search import quarter_turns
from custom_components.space.memory_images import source_of
from custom_components.space.resampling import resample
from custom_components.space.volumes import Volume

FAILED_MM = 10.0


@dataclass(frozen=True)
class Pair:
    """Two images with a label map each, and the map of their points (RAS mm), or None where nobody knows it."""

    name: str
    fixed: Volume
    moving: Volume
    label_fixed: Volume
    label_moving: Volume
    known: np.ndarray | None = None


def main(
    out: str, heads: str = "", people: str = "", statistics: str = "", engine: str = "torch", turns: int = 24
) -> None:
    """Measure and print; `turns` of the 24 are tried, evenly chosen."""
    logging.getLogger("custom_components").setLevel(logging.ERROR)
    path = Path(out)
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    pairs = [*(real_pairs(Path(heads)) if heads else ()), *(rendered(Path(people), Path(statistics)) if people else ())]
    chosen = np.unique(np.linspace(0, 23, turns).round().astype(int)).tolist()
    for pair in pairs:
        names = {row["id"] for row in done}
        missing = [turn for turn in chosen if f"{pair.name}/{engine}/{turn}" not in names]
        known = pair.known
        if missing and known is None:
            known = register_affine(pair.fixed, pair.moving, engine=engine)
        for turn in missing:
            row = measure(pair, turn, engine, known)
            done.append(row)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print_table(done)


def measure(pair: Pair, turn: int, engine: str, known: np.ndarray | None) -> dict[str, object]:
    """One registration of a pair with a turned header."""
    assert known is not None
    placed = header(turn, pair.moving.grid.center)
    moving = replace(pair.moving, affine=placed @ pair.moving.affine)
    start = time.process_time()
    with collecting() as warnings:
        found = register_affine(pair.fixed, moving, engine=engine)
    seconds = time.process_time() - start
    voxels = np.argwhere(pair.label_fixed.data[0].numpy() > 0)[::500]
    affine = pair.label_fixed.affine
    points = voxels @ affine[:-1, :-1].T + affine[:-1, -1]
    error = transform_points_world(points, [found]) - transform_points_world(points, [placed @ known])
    labels = resample(
        pair.label_moving.data,
        placed @ pair.label_moving.affine,
        pair.label_fixed.grid,
        world_matrix=found,
        mode="nearest",
    )
    return {
        "id": f"{pair.name}/{engine}/{turn}",
        "error_mm": float(np.linalg.norm(error, axis=1).mean()),
        "dice": float(mean_dice(labels[None], pair.label_fixed.data[None])),
        "warned": len(warnings),
        "doubted": sum("may have failed" in text for text in warnings),
        "seconds": seconds,
    }


def header(turn: int, center: np.ndarray) -> np.ndarray:
    """A turn by multiples of 90 degrees, one by 20 degrees about a random axis, and a shift."""
    random = np.random.default_rng(turn)
    axis = random.normal(size=3)
    axis *= np.radians(20) / np.linalg.norm(axis)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    placed = np.eye(4)
    placed[:3, :3] = torch.linalg.matrix_exp(torch.from_numpy(cross)).numpy() @ quarter_turns(3)[turn]
    placed[:3, 3] = center - placed[:3, :3] @ center + random.normal(0, 30, 3)
    return placed


def real_pairs(folder: Path) -> Iterator[Pair]:
    """Each real head and the next one."""
    for moving, fixed in ("ab", "bc", "ca"):
        images = [load_image(folder / f"head_{one}_t1.nii.gz") for one in (fixed, moving)]
        labels = [load_labels(folder / f"head_{one}_labels.nii.gz") for one in (fixed, moving)]
        yield Pair(f"real/{moving}_to_{fixed}", *images, *labels)


def rendered(people: Path, statistics: Path) -> Iterator[Pair]:
    """T1-like heads of three people to T1-like, T2-like and inverted ones."""
    scans = load_people(people)[:3]
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    for contrast, (moving, fixed) in zip(("t1", "t2", "inverted"), ((0, 1), (1, 2), (2, 0)), strict=True):
        two = [scans[moving], scans[fixed]]
        _, _, made = next(rendered_pairs(two, statistics, contrast, strip=0.0))
        volumes = [
            load_image(source_of((made[key][0, 0].float().numpy(), affine), f"{contrast}_{key}"))
            for key in ("fixed", "moving", "label_fixed", "label_moving")
        ]
        yield Pair(f"rendered/{contrast}", *volumes, known=np.eye(4))


def print_table(rows: list[dict[str, object]]) -> None:
    """One line for each set and engine."""
    print("| set | engine | runs | failed | of these warned | mm, median (90 %) | Dice | CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    groups = dict.fromkeys((str(row["id"]).split("/")[0], str(row["id"]).split("/")[2]) for row in rows)
    for name, engine in groups:
        mine = [row for row in rows if str(row["id"]).startswith(f"{name}/") and f"/{engine}/" in str(row["id"])]
        error, dice, seconds = (np.array([row[key] for row in mine], float) for key in ("error_mm", "dice", "seconds"))
        failed = [row for row in mine if float(str(row["error_mm"])) > FAILED_MM]
        spread = f"{np.median(error):.2f} ({np.quantile(error, 0.9):.2f})"
        counts = f"{len(mine)} | {len(failed)} | {sum(bool(row['warned']) for row in failed)}"
        print(f"| {name} | {engine} | {counts} | {spread} | {dice.mean():.3f} | {seconds.mean():.1f} |")


if __name__ == "__main__":
    fire.Fire(main)
