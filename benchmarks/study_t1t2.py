"""T1 to T1, T2 to T2 and T1 to T2 by one network, with three similarities, after 40 and after 80 epochs.

    python -m benchmarks.study_t1t2 T1T2 OUT [--only "t1-t2 mind 80,t1-t1 lncc 40"] [--epochs 40,80] [--spacing 1.5]

T1T2 is a folder of slices of people of whom T1 and T2 lie on one another, with a data list. Each variant is trained by
`voxelmorph`'s train.json and train_2d.json on the training people, and registers the validation people's pairs of all
three kinds by the network alone. What counts is the correlation of the warped T1 with the fixed person's T1 in the
head, whichever contrasts the network saw. OUT keeps what is done: a stopped run goes on. Writes `results.csv`,
`tables.md` and `pictures.png`.

The weight of the smoothness is 0.1 for the local correlation. For the others it is in proportion to what a training
image's misalignment with itself by one voxel costs, so that all of them pay alike for the same motion.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import custom_components as mz
from benchmarks.experiments import (
    NARROW,
    at_once,
    bundle_command,
    chosen_variants,
    config_files,
    markdown,
    measure_once,
    record_settings,
    write_and_print,
)
from benchmarks.study_pictures import draw
from custom_components.data.batches import Collated, Prepared, prepare_pair_batch
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.evaluation.metrics import normalized_cross_correlation
from custom_components.fields import plain
from custom_components.files import write_table
from custom_components.inference.descent import loss_of_a_voxel
from custom_components.losses.pair import pair_loss
from custom_components.losses.similarity import LNCC, MIND, MutualInformation
from custom_components.space import load_image
from custom_components.transforms.intensities import scale_intensity
from custom_components.transforms.scan import LoadScand
from custom_components.vocabulary import Entry

KINDS = ("t1-t1", "t2-t2", "t1-t2")
SIMILARITIES: dict[str, dict[str, Any]] = {
    "lncc": {"_target_": "custom_components.losses.similarity.LNCC", "window": 9},
    "mi": {"_target_": "custom_components.losses.similarity.MutualInformation"},
    "mind": {"_target_": "custom_components.losses.similarity.MIND"},
}
MODULES: dict[str, nn.Module] = {"lncc": LNCC(9), "mi": MutualInformation(), "mind": MIND()}
WEIGHT = 0.1  # of the smoothness, with the local correlation
PAIRS = 144  # of an epoch: of nine people, every ordered pair twice
BATCH = 8
EXTENT = (150.0, 240.0)  # mm, of the images that are trained on
SYNTHMORPH = "synthmorph as shipped"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder of slices in T1 and T2 with a data list")
    parser.add_argument("output", type=Path, help="folder of the results; finished parts are kept")
    parser.add_argument("--epochs", default="40,80", help="lengths of the trainings, separated by commas")
    parser.add_argument("--only", default="", help="variants, separated by commas; default: all")
    parser.add_argument("--spacing", type=float, default=1.5, help="mm")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time, one thread each")
    args = parser.parse_args(words)
    lengths = [int(length) for length in args.epochs.split(",")]
    variants = {f"{kind} {name} {n}": (kind, name, n) for n in lengths for name in SIMILARITIES for kind in KINDS}
    names = chosen_variants(parser, args.only, variants) if args.only else list(variants)
    weights = smoothness_weights(args.data, args.spacing)
    at_once(
        args.workers,
        lambda name: train(args.output / folder_name(name), args.data, *variants[name], weights, args.spacing),
        names,
    )
    pairs = test_pairs(args.data)
    done = [name for name in variants if (args.output / folder_name(name) / "model.pt").exists()]
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in (*done, SYNTHMORPH):
        rows[name] = evaluate(name, args.output, pairs, args.spacing)
    flat = [{"variant": name, **row} for name, found in rows.items() for row in found]
    write_table(args.output / "results.csv", flat)
    write_and_print(args.output / "tables.md", table(rows))
    last = {name: network(name, args.output, args.spacing) for name in done if name.endswith(f" {lengths[-1]}")}
    draw(args.output / "pictures.png", last, pairs)


def folder_name(variant: str) -> str:
    return variant.replace(" ", "_")


def across(
    batch: Collated, device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: object
) -> Prepared:
    """As `prepare_pair_batch`, of pairs whose fixed image is the other contrast of its person."""
    moving, fixed = batch["moving"], batch["contrast_fixed"]
    given = {**batch, "fixed": fixed, "image": torch.cat([moving, fixed], 1)}
    return prepare_pair_batch(given, device, non_blocking, **kwargs)


def scans_of(data: Path, section: str, first: str = "t1") -> list[Entry]:
    """The people of a section: `image` in the first contrast, `contrast` in the other one."""
    people = json.loads((data / "datalist.json").read_text())[section]
    other = "t2" if first == "t1" else "t1"
    paths = [{"image": person[f"image_{first}"], "contrast": person[f"image_{other}"]} for person in people]
    return [
        {**{key: str((data / name).absolute()) for key, name in one.items()}, "subject": person["subject"]}
        for one, person in zip(paths, people, strict=True)
    ]


def smoothness_weights(data: Path, spacing: float) -> dict[str, float]:
    """Of each similarity, on the training people's T1."""
    load = LoadScand(spacing, _size(spacing), "image")
    images = torch.stack([load({"image": scan["image"]})["image"] for scan in scans_of(data, "training")])
    costs = {name: _cost_of_a_voxel(module, images) for name, module in MODULES.items()}
    return {name: WEIGHT * cost / costs["lncc"] for name, cost in costs.items()}


def _cost_of_a_voxel(similarity: nn.Module, images: Tensor) -> float:
    torch.manual_seed(0)  # mutual information draws voxels
    loss = pair_loss(0.0, similarity=similarity)
    return loss_of_a_voxel(StationaryVelocity(), loss, {"fixed": images, "moving": images})


def _size(spacing: float) -> list[int]:
    return [16 * round(length / spacing / 16) for length in EXTENT]


def train(
    folder: Path, data: Path, kind: str, similarity: str, epochs: int, weights: Mapping[str, float], spacing: float
) -> None:
    """A variant's network, after its last epoch: choosing the best one would use the people it is measured on."""
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"max_epochs": epochs, "val_interval": epochs, "num_pairs": PAIRS, "batch_size": BATCH}
    settings |= {"spacing": spacing, "size": _size(spacing), "weight": round(weights[similarity], 5)}
    settings |= {"loss#similarity": SIMILARITIES[similarity], **NARROW}
    if kind == "t1-t2":
        settings["train#batch"] = {"_target_": "benchmarks.study_t1t2.across", "_mode_": "callable"}
    record_settings(folder / "settings.json", settings)
    if (folder / "model.pt").exists():
        return
    (folder / "overlay.json").write_text(json.dumps(settings))
    sections = {name: scans_of(data, name, kind[:2]) for name in ("training", "validation")}
    (folder / "datalist.json").write_text(json.dumps(sections))
    words = {"dataset_dir": data.absolute(), "data_list": folder / "datalist.json", "resume": True}
    words |= {"output_dir": folder, "ckpt_dir": folder}
    command = bundle_command(
        "voxelmorph", [*config_files("voxelmorph", ("train", "train_2d")), folder / "overlay.json"], words
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    print(f"training {folder.name} ...", flush=True)
    with (folder / "log.txt").open("a") as log:
        subprocess.run(command, env=environment, stdout=log, stderr=log, check=True)


def test_pairs(data: Path) -> list[Entry]:
    """All ordered pairs of the validation people, of each kind: files, and both T1s."""
    people = scans_of(data, "validation")
    pairs = []
    for kind in KINDS:
        first, second = kind.split("-")
        for moving in people:
            for fixed in people:
                if moving is not fixed:
                    files = {"moving": _path(moving, first), "fixed": _path(fixed, second)}
                    files |= {"moving_t1": _path(moving, "t1"), "fixed_t1": _path(fixed, "t1")}
                    pairs.append({"kind": kind, "id": f"{moving['subject']}-to-{fixed['subject']}", **files})
    return pairs


def _path(person: Entry, contrast: str) -> str:
    return str(person["image" if contrast == "t1" else "contrast"])


def network(variant: str, output: Path, spacing: float) -> mz.Registrar:
    """A variant's network, which registers pairs without refinement."""
    if variant == SYNTHMORPH:
        return mz.Registrar("synthmorph", optimize=0, affine="none")
    weights = str(output / folder_name(variant) / "model.pt")
    return mz.Registrar("voxelmorph", optimize=0, affine="none", weights=weights, spacing=spacing)


def measure(registrar: mz.Registrar, pair: Entry) -> dict[str, object]:
    """Correlation of both people's T1 in the head that both fixed images show, before and after; roughness."""
    result = registrar(pair["moving"], pair["fixed"])
    warped = result.transform.warp(pair["moving_t1"], pair["fixed"])
    moving, fixed, shown = (load_image(pair[key]).data for key in ("moving_t1", "fixed_t1", "fixed"))
    images = (moving, warped.reshape(fixed.shape), fixed, shown)
    before, after, target, shown = (scale_intensity(plain(image).float())[None] for image in images)
    head = (target > 0.1) & (shown > 0.1)
    scores = {
        f"t1_ncc_{name}": float(normalized_cross_correlation(image, target, head))
        for name, image in (("before", before), ("after", after))
    }
    kept = {key: result.metrics[key] for key in ("sd_log_jacobian", "folding_percent")}
    return {"kind": pair["kind"], "id": pair["id"], **scores, **kept}


def evaluate(variant: str, output: Path, pairs: Sequence[Entry], spacing: float) -> list[dict[str, Any]]:
    """The measures of a network alone, pair by pair."""
    registrar = network(variant, output, spacing)
    folder = output / folder_name(variant) / "measures"
    return [
        measure_once(folder / f"{pair['kind']}_{pair['id']}.json", lambda: measure(registrar, pair))  # noqa: B023
        for pair in pairs
    ]


def table(rows: Mapping[str, list[dict[str, Any]]]) -> str:
    """For each variant the mean correlation of the T1s on pairs of each kind, and the roughness on its own kind."""
    heads = ["trained on", "similarity", "epochs", *(f"on {kind}" for kind in KINDS), "SD log J", "folds, %"]
    lines = [["nothing moved", "", "", *(_mean(next(iter(rows.values())), kind, "t1_ncc_before") for kind in KINDS)]]
    lines[0] += [None, None]
    for name, found in rows.items():
        words = name.split() if name != SYNTHMORPH else [name, "", ""]
        own = words[0] if words[0] in KINDS else KINDS[-1]
        scores = [_mean(found, kind, "t1_ncc_after") for kind in KINDS]
        lines.append([*words, *scores, *(_mean(found, own, key) for key in ("sd_log_jacobian", "folding_percent"))])
    return markdown(heads, lines)


def _mean(rows: list[dict[str, Any]], kind: str, key: str) -> float:
    values = [float(row[key]) for row in rows if row["kind"] == kind]
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
