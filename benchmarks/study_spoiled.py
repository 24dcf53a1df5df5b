"""What each step of preparation is worth, and what a network makes of images unlike those it was trained on.

    python -m benchmarks.study_spoiled T1T2 OUT [--only "prepared,unaligned"] [--epochs 40] [--organs FOLDER]

T1T2 is the folder of `benchmarks.study_t1t2`, whose slices are aligned, even in brightness and scaled alike. Each way
to spoil them takes one of that away: from the training people's T1, for trainings, and from the validation people's,
for tests. `voxelmorph` is trained T1 to T1 on prepared people and on those spoiled in a few ways; each network
registers the prepared pairs and the spoiled ones alone, and the network trained on prepared people also with its
refinement. What counts is the correlation in the head of the clean T1s that lie where the spoiled ones do. With
--organs, slices of a CT and an MR image of trunks are registered to themselves, deformed: they show no head at all.

OUT keeps what is done. Writes `results.csv` and `tables.md`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

import custom_components as mz
from benchmarks.experiments import at_once, chosen_variants, markdown, measure_once, write_and_print
from benchmarks.study_t1t2 import measure, smoothness_weights, test_pairs, train
from custom_components.fields import warp
from custom_components.files import write_table
from custom_components.synthesis.warp import RandomWarp
from custom_components.transforms.intensities import scale_intensity
from custom_components.vocabulary import Entry

Array = np.ndarray

REFINED = "prepared, refined"
ORGANS = {"trunk CT": "trunk_ct.nii.gz", "trunk MR": "trunk_mr.nii.gz"}
LEVELS = 5  # slices of an organ
TURN, SHIFT = 20.0, 20.0  # degrees and mm, the largest of unaligned people
BIAS = 0.7  # brightness changes by a factor from exp(-0.7) to exp(0.7)
GAMMA = 0.8  # of the logarithm of a brightness curve's exponent, the largest
THICK_MM = 4.0
NOISE = 0.1  # of the largest value


def uneven(values: Array, rng: np.random.Generator) -> Array:
    """Brightness that changes over the image, as before a correction of the bias field."""
    coarse = rng.uniform(-BIAS, BIAS, (4, 4))
    field = ndimage.zoom(coarse, [n / 4 for n in values.shape], order=3, mode="nearest", grid_mode=True)
    return values * np.exp(field.clip(-BIAS, BIAS))


def other_scale(values: Array, rng: np.random.Generator) -> Array:
    """Another brightness curve for each person, as before a normalisation."""
    top = values.max()
    return top * (values / top) ** np.exp(rng.uniform(-GAMMA, GAMMA))


def coarse(values: Array, rng: np.random.Generator, spacing: float) -> Array:
    """Pixels of 4 mm along the second axis."""
    n = max(1, round(THICK_MM / spacing))
    return np.repeat(ndimage.uniform_filter1d(values, n, 1)[:, n // 2 :: n], n, 1)[:, : values.shape[1]]


def noisy(values: Array, rng: np.random.Generator) -> Array:
    """The magnitude of a complex image with noise."""
    noise = rng.normal(0, NOISE * values.max(), (2, *values.shape))
    return np.hypot(values + noise[0], noise[1])


def cut(values: Array, rng: np.random.Generator) -> Array:
    """The upper 60 % of the view; the rest is 0."""
    kept = values.copy()
    kept[:, : round(0.4 * values.shape[1])] = 0
    return kept


def turned(values: Array, rng: np.random.Generator, spacing: float) -> Array:
    """Turned and shifted, as before an alignment."""
    angle = np.deg2rad(rng.uniform(-TURN, TURN))
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = (np.array(values.shape) - 1) / 2
    shift = rng.uniform(-SHIFT, SHIFT, 2) / spacing
    return ndimage.affine_transform(values, matrix, middle - matrix @ middle + shift, order=1)


# Ways to spoil an image, by name.
INTENSITIES: dict[str, Callable[..., Array]] = {
    "uneven": uneven,
    "other scale": other_scale,
    "noisy": noisy,
    "cut": cut,
}
GEOMETRY: dict[str, Callable[..., Array]] = {"unaligned": turned}
KINDS = ("prepared", *INTENSITIES, "coarse", *GEOMETRY)
TRAINED = ("prepared", "uneven", "other scale", "unaligned")


def spoil(data: Path, folder: Path, kind: str) -> Path:
    """The people's T1 spoiled, as `image_t1` of a data list; `image_t2` is the clean T1 that lies where it does."""
    listed = json.loads((data / "datalist.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Entry]] = {}
    for section in ("training", "validation"):
        found[section] = []
        for number, person in enumerate(listed[section]):
            image = nib.load(data / person["image_t1"])
            spacing = float(image.header.get_zooms()[0])
            rng = np.random.default_rng([number, section == "training"])
            clean = np.asarray(image.dataobj, dtype=np.float32)
            shape, clean = clean.shape, clean.squeeze()
            if kind in GEOMETRY:
                clean = GEOMETRY[kind](clean, rng, spacing)
            worse = coarse(clean, rng, spacing) if kind == "coarse" else INTENSITIES.get(kind, _same)(clean, rng)
            names = {f"image_{c}": f"{section}_{number}_{c}.nii.gz" for c in ("t1", "t2")}
            for name, values in zip(names.values(), (worse, clean), strict=True):
                saved = nib.Nifti1Image(values.reshape(shape).astype(np.float32), image.affine)
                nib.save(saved, folder / name)
            found[section].append({**names, "subject": person["subject"]})
    (folder / "datalist.json").write_text(json.dumps(found))
    return folder


def _same(values: Array, rng: np.random.Generator) -> Array:
    return values


def pairs_of(folder: Path) -> list[Entry]:
    """All ordered pairs of the validation people of a spoiled folder, and the clean T1s to measure."""
    worse, clean = ([pair for pair in test_pairs(folder) if pair["kind"] == kind] for kind in ("t1-t1", "t2-t2"))
    return [
        {**pair, "kind": folder.name, "moving_t1": other["moving"], "fixed_t1": other["fixed"]}
        for pair, other in zip(worse, clean, strict=True)
    ]


def organ_pairs(folder: Path, organs: Path) -> list[Entry]:
    """Slices of other organs as fixed images, and deformed by a random map as moving ones."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs: list[Entry] = []
    for name, file in ORGANS.items():
        image = nib.as_closest_canonical(nib.load(organs / file))
        values = np.asarray(image.dataobj, dtype=np.float32)
        spacing = [float(step) for step in image.header.get_zooms()[:2]]
        for number in range(LEVELS):
            flat = values[:, :, values.shape[2] * (number + 1) // (LEVELS + 1)]
            fixed = scale_intensity(torch.from_numpy(flat)[None])[None]
            generator = torch.Generator().manual_seed(number)
            size, motion = fixed.shape[2:], RandomWarp(2.0, (16, 32))
            images = {"moving": warp(fixed, motion.field(motion.draw(1, size, generator), size)), "fixed": fixed}
            paths = {role: str(folder / f"{file[:8]}_{number}_{role}.nii.gz") for role in images}
            for role, tensor in images.items():
                nib.save(nib.Nifti1Image(tensor[0, 0].numpy(), np.diag([*spacing, 1.0, 1.0])), paths[role])
            clean = {f"{role}_t1": path for role, path in paths.items()}
            pairs.append({"kind": name, "id": f"slice {number}", **paths, **clean})
    return pairs


def network(trained: str, output: Path, spacing: float) -> mz.Registrar:
    """`voxelmorph` as it was trained, alone, or, for the refined one, with the bundle's refinement."""
    more: dict[str, Any] = {} if trained == REFINED else {"optimize": 0}
    folder = output / ("prepared" if trained == REFINED else trained)
    return mz.Registrar(
        "voxelmorph", affine="none", weights=str(folder / "model.pt"), spacing=spacing, average=[], **more
    )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder of slices in T1 and T2 with a data list")
    parser.add_argument("output", type=Path, help="folder of the results; finished parts are kept")
    parser.add_argument("--organs", type=Path, help="folder of trunk_ct.nii.gz and trunk_mr.nii.gz")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--only", default=",".join(TRAINED), help="trainings, separated by commas")
    parser.add_argument("--spacing", type=float, default=2.0, help="mm")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time, one thread each")
    args = parser.parse_args(words)
    names = chosen_variants(parser, args.only, dict.fromkeys(TRAINED))
    folders = {kind: spoil(args.data, args.output / "images" / kind, kind) for kind in KINDS}
    weights = smoothness_weights(args.data, args.spacing)
    at_once(
        args.workers,
        lambda name: train(args.output / name, folders[name], "t1-t1", "lncc", args.epochs, weights, args.spacing),
        names,
    )
    pairs = [pair for folder in folders.values() for pair in pairs_of(folder)]
    if args.organs:
        pairs += organ_pairs(args.output / "images" / "organs", args.organs)
    rows = []
    for name in [*names, REFINED] if "prepared" in names else names:
        registrar = network(name, args.output, args.spacing)
        for pair in pairs:
            path = args.output / "measures" / f"{name}_{pair['kind']}_{pair['id']}.json".replace(" ", "_")
            rows.append({"trained": name, **measure_once(path, partial(measure, registrar, pair))})
    write_table(args.output / "results.csv", rows)
    write_and_print(args.output / "tables.md", table(rows))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each kind of test pairs: correlation before, and after each network."""
    names = list(dict.fromkeys(row["trained"] for row in rows))
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        after = [_mean([row for row in own if row["trained"] == name], "t1_ncc_after") for name in names]
        lines.append([kind, _mean(own, "t1_ncc_before"), *after])
    return markdown(["tested on", "before", *(f"trained on {name}" for name in names)], lines)


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


if __name__ == "__main__":
    main()
