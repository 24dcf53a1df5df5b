r"""Images that are not aligned: what do the affine network, its steps and the momentum network's steps bring?

    python -m benchmarks.avsm LABELMAPS OUT [--contrasts t1,t2]
    python -m benchmarks.avsm SLICES OUT --pairs 60
    python -m benchmarks.avsm LABELMAPS OUT --fixed_offset --degrees 40 --shift_mm 0 --scale 0 --only ""
    python -m benchmarks.avsm LABELMAPS OUT --consistency BEFORE.pt AFTER.pt

LABELMAPS is a folder with a data list whose section `validation` holds label maps, and with labels.csv. The maps are
rendered as images; --contrasts names the contrasts of moving and fixed image. SLICES is a folder with 2-D slices and
the section `validation_pairs`. The header of each moving image is then made wrong: rotated by up to --degrees, shifted
by up to --shift_mm and scaled by up to --scale along each axis, with the voxels unchanged.

OUT receives the pairs, the matrices that ITK and the networks find, a folder of measures for each method, and table.md.
Finished parts are kept. --consistency compares momentum networks on aligned rendered pairs: how well do the maps there
and back undo each other?
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import list_data_collate
from tqdm import tqdm

from benchmarks.experiments import BUNDLES, bundle_config, chosen_variants, markdown, write_and_print
from custom_components.commands.evaluate import evaluate
from custom_components.data.lists import load_list
from custom_components.evaluation.overlap import label_overlap, present_labels
from custom_components.fields import compose
from custom_components.inference.both_ways import BothWaysInferer
from custom_components.inference.multistep import MultiStepInferer
from custom_components.space import (
    Volume,
    load_image,
    load_labels,
    read_affine_transform,
    register_affine,
    resample,
    write_affine_transform,
)
from custom_components.synthesis.background import ZeroBackground
from custom_components.synthesis.bias import BiasField
from custom_components.synthesis.blur import RandomBlur
from custom_components.synthesis.brains import BrainContrast
from custom_components.synthesis.contrast import RandomContrast
from custom_components.synthesis.gamma import RandomGamma
from custom_components.synthesis.intensities import LabelIntensities
from custom_components.synthesis.unit_range import UnitRange
from custom_components.transforms.intensities import scale_intensity
from custom_components.transforms.labels import load_labels_for

LABELS = [2, 3, 4, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 26, 28, 41, 42, 43, 46, 47, 49, 50, 51, 52, 53, 54, 58]
FREE = {"overlay": str(BUNDLES / "overlays" / "training_free.json")}
# Method: alignment before it, bundle, settings.
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "voxelmorph, no affine": ("none", "voxelmorph", {}),
    "voxelmorph, ITK affine": ("itk", "voxelmorph", {}),
    "voxelmorph, learned affine": ("learned-5", "voxelmorph", {}),
    "avsm, 1 step": ("learned-5", "avsm", {"num_steps": 1}),
    "avsm, 2 steps": ("learned-5", "avsm", {"num_steps": 2}),
    "avsm, 3 steps": ("learned-5", "avsm", {"num_steps": 3}),
    "avsm, ITK affine, 3 steps": ("itk", "avsm", {"num_steps": 3}),
    "avsm, 3 steps, refined": ("learned-5", "avsm", {"num_steps": 3, "optimize": 10}),
    "optimiser, no affine": ("none", "voxelmorph", FREE),
    "optimiser, ITK affine": ("itk", "voxelmorph", FREE),
    "optimiser, learned affine": ("learned-5", "voxelmorph", FREE),
}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--only", default=";".join(METHODS), help="methods, separated by semicolons; '' for affine maps alone"
    )
    parser.add_argument("--pairs", type=int, default=60, help="pairs of slices, spread over the list")
    parser.add_argument("--people", type=int, default=4, help="label maps to render")
    parser.add_argument("--contrasts", default="t1,t1", help="of moving and fixed: t1, t2, inverted or random")
    parser.add_argument("--degrees", type=float, default=20.0)
    parser.add_argument("--shift_mm", type=float, default=20.0)
    parser.add_argument("--scale", type=float, default=0.15)
    parser.add_argument("--fixed_offset", action="store_true", help="exactly that large, instead of up to that")
    parser.add_argument("--seed", type=int, default=0)
    for name in ("affine", "momentum", "voxelmorph"):
        parser.add_argument(f"--{name}_weights", help="default: those of the bundle")
    parser.add_argument("--no_itk", action="store_true")
    parser.add_argument("--affine_steps", default="1,3,5,7", help="of the affine network")
    parser.add_argument("--consistency", nargs="+", help="weights of momentum networks")
    return parser


def main(command: Sequence[str] | None = None) -> None:
    parser = arguments()
    args = parser.parse_args(command)
    names = chosen_variants(parser, args.only, METHODS, ";")
    args.output.mkdir(parents=True, exist_ok=True)
    if args.consistency:
        for weights in args.consistency:
            found = [f"{there_and_back(args.data, weights, steps):.2f}" for steps in (1, 2, 3)]
            print(f"{weights}: mean distance there and back, mm, 1, 2, 3 steps: {', '.join(found)}")
        return
    rows = align_pairs(make_pairs(args), args)
    rows += [deformed(name, args) for name in names]
    write_and_print(args.output / "table.md", table(rows))


def make_pairs(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The pairs' files, with headers that are off."""
    listed = args.output / "pairs.json"
    if listed.exists():
        return load_list(listed, "none", args.output)
    rng = np.random.default_rng(args.seed)
    if "validation_pairs" in json.loads((args.data / "datalist.json").read_text()):
        given = load_list(args.data / "datalist.json", "validation_pairs", args.data)
        chosen = [given[int(i)] for i in np.linspace(0, len(given) - 1, min(args.pairs, len(given)))]
    else:
        chosen = rendered(args)
    pairs = []
    for i, pair in enumerate(tqdm(chosen, desc="pairs")):
        item = {"id": f"pair_{i:03d}", "fixed": str(pair["fixed"]), "label_fixed": str(pair["label_fixed"])}
        image = nib.load(pair["moving"])
        matrix = random_offset(load_image(pair["moving"]), args, rng, flat=1 in image.shape)
        for key in ("moving", "label_moving"):
            image = nib.load(pair[key])
            moved = nib.Nifti1Image(np.asarray(image.dataobj), matrix @ image.affine)
            item[key] = str(args.output / f"pair_{i:03d}_{key}.nii.gz")
            nib.save(moved, item[key])
        pairs.append(item)
    listed.write_text(json.dumps({"none": [{k: str(v) for k, v in pair.items()} for pair in pairs]}))
    return load_list(listed, "none", args.output)


def random_offset(moving: Volume, args: argparse.Namespace, rng: np.random.Generator, flat: bool) -> np.ndarray:
    """A world matrix (4, 4) about the image's middle; in 2-D within the plane of the first two axes."""
    d = 2 if flat else 3
    share = 1.0 if args.fixed_offset else rng.uniform()
    angle = np.radians(args.degrees) * share * rng.choice([-1, 1])
    axis = np.array([0, 0, 1.0]) if flat else _direction(rng, 3)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    share = np.full(d, 1.0) if args.fixed_offset else rng.uniform(size=d)
    zoom = np.ones(3)
    zoom[:d] += args.scale * share * rng.choice([-1, 1], size=d)
    shift = np.zeros(3)
    shift[:d] = _direction(rng, d) * args.shift_mm * (1.0 if args.fixed_offset else rng.uniform())
    center = np.zeros(3)
    center[: len(moving.grid.center)] = moving.grid.center
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.diag(zoom)
    matrix[:3, 3] = center + shift - matrix[:3, :3] @ center
    return matrix


def _direction(rng: np.random.Generator, d: int) -> np.ndarray:
    direction = rng.normal(size=d)
    return direction / np.linalg.norm(direction)


def rendered(args: argparse.Namespace) -> list[dict[str, str]]:
    """All ordered pairs of people, every other one without skull, in new contrasts each."""
    scans = load_list(args.data / "datalist.json", "validation", args.data)[: args.people]
    wanted = args.contrasts.split(",")
    pairs, generator = [], torch.Generator().manual_seed(args.seed)
    for i, moving in enumerate(scans):
        for j, fixed in enumerate(scans):
            if i == j:
                continue
            pair = {}
            for role, scan, contrast in (("moving", moving, wanted[0]), ("fixed", fixed, wanted[1])):
                labels = load_labels(scan["label"])
                data = labels.data.masked_fill(labels.data >= 500, 0) if len(pairs) % 2 else labels.data
                render: RandomContrast
                if contrast == "random":
                    effects = [ZeroBackground(1.0), RandomBlur(), BiasField(0.2), UnitRange(), RandomGamma(0.2)]
                    render = RandomContrast(LabelIntensities(std=(2.5, 10)), effects)
                else:
                    render = BrainContrast(args.data / "labels.csv", contrast, zero_background=1.0)
                image = render(data[None], render.draw(1, data.shape[1:], generator))
                path = args.output / f"rendered_{len(pairs):02d}_{role}.nii.gz"
                nib.save(nib.Nifti1Image((255 * image[0, 0]).round().byte().numpy(), labels.file_affine), path)
                pair |= {role: str(path), f"label_{role}": str(scan["label"])}
            pairs.append(pair)
    return pairs


def align_pairs(pairs: Sequence[Mapping[str, Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the affine methods; each method's matrices become a section of the data list."""
    sections = json.loads((args.output / "pairs.json").read_text())
    flat = load_image(pairs[0]["fixed"]).data.ndim == 3
    methods: dict[str, Any] = {"none": lambda fixed, moving: np.eye(len(fixed.grid.size) + 1)}
    if not args.no_itk:
        methods["itk"] = partial(register_affine, engine="itk")
    for steps in map(int, args.affine_steps.split(",")):
        methods[f"learned-{steps}"] = on_scaled_images(aligner(steps, flat, args))
    rows = []
    for name, align in methods.items():
        dice, seconds, sections[name] = [], [], []
        for pair in tqdm(pairs, desc=name):
            fixed, moving = load_image(pair["fixed"]), load_image(pair["moving"])
            path = args.output / f"{pair['id']}_{name}.tfm"
            if path.exists():
                matrix = read_affine_transform(str(path))
            else:
                start = time.perf_counter()
                matrix = align(fixed, moving)
                seconds.append(time.perf_counter() - start)
                write_affine_transform(str(path), matrix)
            sections[name].append({**{k: str(v) for k, v in pair.items()}, "affine": str(path)})
            dice.append(overlap(pair, fixed, moving, matrix))
        rows.append({"method": f"affine: {name}", "dice": dice, "seconds": seconds})
    (args.output / "pairs.json").write_text(json.dumps(sections))
    return rows


def on_scaled_images(align: Any) -> Any:
    """The aligner on images scaled to 0..1, as the networks expect them."""
    return lambda *volumes: align(*(replace(volume, data=scale_intensity(volume.data)) for volume in volumes))


def aligner(steps: int, flat: bool, args: argparse.Namespace) -> Any:
    """The bundle's aligner with this number of steps."""
    config = bundle_config("avsm", ["inference", *["inference_2d"] * flat], affine_steps=steps)
    if args.affine_weights:
        config["affine_weights"] = args.affine_weights
    return config.get_parsed_content("aligner")


def overlap(pair: Mapping[str, Any], fixed: Volume, moving: Volume, matrix: np.ndarray) -> float:
    """Mean Dice on the fixed image's grid."""
    target = load_labels_for(pair["label_fixed"], fixed)
    source = load_labels_for(pair["label_moving"], moving)
    warped = resample(source.data, source.affine, fixed.grid, world_matrix=matrix, mode="nearest")
    labels = [label for label in present_labels(target.data, source.data) if label in LABELS or target.data.ndim == 3]
    return float(label_overlap(warped[None], target.data[None], labels).nanmean())


def deformed(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run `morphzoo evaluate`."""
    section, bundle, settings = METHODS[name]
    folder = args.output / name.replace(", ", "_").replace(" ", "_")
    if not (folder / "metrics.csv").exists():
        options = {"section": section, "bundle": bundle, "affine": "none", "optimize": 0, "pictures": False, **settings}
        options["report#surfaces"] = False
        if load_image(json.loads((args.output / "pairs.json").read_text())["none"][0]["fixed"]).data.ndim == 4:
            options["labels"] = LABELS
        weights = {"avsm": args.momentum_weights, "voxelmorph": args.voxelmorph_weights}[bundle]
        if settings is not FREE:
            options["weights"] = weights
        evaluate(str(args.output / "pairs.json"), str(folder), **options)
    rows = json.loads((folder / "metrics.json").read_text())["pairs"]
    keys = {"dice": "dice_after", "seconds": "seconds", "folding": "folding_percent"}
    return {"method": name, **{key: [row[column] for row in rows] for key, column in keys.items()}}


@torch.no_grad()
def there_and_back(data: Path, weights: str, num_steps: int) -> float:
    """Mean distance in mm, over the fixed people's labels of rendered pairs, from x to phi_st(phi_ts(x))."""
    config = bundle_config("avsm", ["train", "train_labelmaps"], dataset_dir=str(data), num_val_pairs=8)
    network = config.get_parsed_content("network_def")
    network.load_state_dict(torch.load(weights, weights_only=True))
    inferer = BothWaysInferer(MultiStepInferer(config.get_parsed_content("deformation"), num_steps=num_steps))
    dataset = config.get_parsed_content("validate#dataset")
    prepare = config.get_parsed_content("validate#batch")
    distances = []
    for i in range(len(dataset)):
        image, targets, *_ = prepare(list_data_collate([dataset[i]]))
        pred = inferer(image, network.eval())
        away = compose(pred["back"]["ddf"], pred["ddf"]).norm(dim=1, keepdim=True)
        distances.append(float(config["spacing"]) * float(away[targets["label_fixed"] > 0].mean()))
    return float(np.mean(distances))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        folding = f"{np.mean(row['folding']):.4f}" if "folding" in row else ""
        seconds = f"{np.median(row['seconds']):.2f}" if row["seconds"] else ""
        lines.append([row["method"], float(np.mean(row["dice"])), float(np.min(row["dice"])), folding, seconds])
    heads = ["method", "Dice", "worst pair", "det J <= 0, %", "seconds"]
    return markdown(heads, lines) + f"\n{len(rows[0]['dice'])} pairs\n"


if __name__ == "__main__":
    main()
