"""The pairs on which `benchmarks/weights.py` measures weights. Nobody in them was trained on.

What has to be made of the test data once (rendered images, affine maps, slices) is kept in a cache folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.rendered_people import CONTRASTS, STRUCTURES, load_people, rendered_pairs
from custom_components.data.lists import load_list, make_pairs
from custom_components.evaluation.metrics import normalized_cross_correlation
from custom_components.space import load_image, register_affine, write_affine_transform, write_image
from custom_components.transforms.intensities import scale_intensity
from custom_components.vocabulary import Entry
from data_lists.align import main as align_label_maps
from data_lists.build import cut_slices, write_list

SIDES = ("moving", "fixed")
ROLES = (*SIDES, "label_moving", "label_fixed")

Judge = Callable[[Entry, Path], Mapping[str, float]]


@dataclass(frozen=True)
class Part:
    """Pairs of one kind and the measure that counts for them, of which more is better.

    Args:
        name: for tables and folders.
        pairs: items for `morphzoo evaluate`, each with an "id" and the people, "subject_moving" and "subject_fixed".
        score: the measure after registration; the one before has "before" in place of "after", or "aligned".
        settings: of the bundle's inference.json.
        across_contrasts: whether moving and fixed image differ in contrast.
        judge: further measures, from an item and the file of the warped moving image.
    """

    name: str
    pairs: list[Entry]
    score: str = "dice_after"
    settings: Mapping[str, object] = field(default_factory=dict)
    across_contrasts: bool = False
    judge: Judge | None = None


def heads(data: Path, cache: Path) -> list[Part]:
    """Three real heads with automatic labels, six pairs, aligned by ITK's affine registration first."""
    pairs = load_list(data / "real_heads3d" / "datalist.json", "pairs")
    for pair in pairs:
        matrix = cache / "heads" / f"{pair['id']}.tfm"
        if not matrix.exists():
            print(f"aligning {pair['id']} ...", flush=True)
            matrix.parent.mkdir(parents=True, exist_ok=True)
            fixed, moving = (load_image(pair[role]) for role in ("fixed", "moving"))
            write_affine_transform(matrix, register_affine(fixed, moving, engine="itk"))
        pair["affine"] = str(matrix)
    return [Part("heads", _of_files(pairs))]


def rendered(data: Path, cache: Path) -> list[Part]:
    """Validation people of the label maps, aligned by their structures: T1-like to T1-like, T2-like and inverted."""
    source, folder = data / "labelmaps3d", cache / "rendered"
    if not (folder / "datalist.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        align_label_maps(str(source / "datalist.json"), str(folder / "datalist.json"))
    parts = []
    for contrast in CONTRASTS:
        pairs = make_pairs(load_list(folder / "datalist.json", "validation"))
        pairs = [_rendered_pair(pair, folder / contrast / pair["id"]) for pair in pairs]
        if not all(Path(pair[role]).exists() for pair in pairs for role in ROLES):
            print(f"rendering pairs of t1 and {contrast} ...", flush=True)
            _render(pairs, load_people(folder / "datalist.json"), source / "labels.csv", contrast)
        across = contrast != CONTRASTS[0]
        parts.append(Part(f"rendered t1-{contrast}", pairs, settings={"labels": STRUCTURES}, across_contrasts=across))
    return parts


def _rendered_pair(pair: Entry, folder: Path) -> Entry:
    people = {key: pair[key] for key in ("id", "subject_moving", "subject_fixed")}
    return people | {role: str(folder / f"{role}.nii.gz") for role in ROLES}


def _render(pairs: list[Entry], people: list[Entry], statistics: Path, contrast: str) -> None:
    files = {(pair["subject_moving"], pair["subject_fixed"]): pair for pair in pairs}
    affine = people[0]["grid_affine"].numpy()
    for moving, fixed, images in rendered_pairs(people, statistics, contrast):
        pair = files[moving["subject"], fixed["subject"]]
        Path(pair["moving"]).parent.mkdir(parents=True, exist_ok=True)
        for role in ROLES:
            image = images[role][0]
            # 8 bits, as the real scans have them.
            write_image(pair[role], image if "label" in role else (255 * image).round().to(torch.uint8), affine)


def brains(data: Path, cache: Path) -> list[Part]:
    """Three skull-stripped brains in a common space, six pairs, without labels."""
    pairs = load_list(data / "brains3d" / "datalist.json", "pairs")
    pairs = [pair | {"id": f"{Path(pair['moving']).name}-to-{Path(pair['fixed']).name}"} for pair in pairs]
    return [Part("brains", _of_files(pairs), "ncc_after")]


def slabs(data: Path, cache: Path) -> list[Part]:
    """The middle slice of slabs of heads, between people."""
    source, folder = data / "brain_slabs", cache / "slabs"
    if not (folder / "datalist.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        cut = cut_slices(source / "datalist.json", folder, pairs=source / "pairs_validation.json")
        write_list(folder / "datalist.json", cut)
    pairs = [p for p in load_list(folder / "datalist.json", "validation_pairs") if p["id"].endswith("_slice-4")]
    pairs = [pair | {f"subject_{role}": pair[f"{role}_subject"] for role in SIDES} for pair in pairs]
    return [Part("slabs", pairs)]


def t1t2(data: Path, cache: Path) -> list[Part]:
    """Slices of people with aligned T1 and T2: a T1 to another person's T1 or T2, judged by the correlation of T1s."""
    folder = data / "t1t2_slices"
    people = json.loads((folder / "datalist.json").read_text())["validation"]
    parts = []
    for contrast in ("t1", "t2"):
        scans = [{"image": str(folder / p[f"image_{contrast}"]), "subject": p["subject"]} for p in people]
        t1s = {p["subject"]: str(folder / p["image_t1"]) for p in people}
        pairs = [pair | {"moving": t1s[pair["subject_moving"]]} for pair in make_pairs(scans)]
        pairs = [pair | {"fixed_t1": t1s[pair["subject_fixed"]]} for pair in pairs]
        settings = {"save#write": ["warped"]}
        across = contrast != "t1"
        parts.append(Part(f"t1t2 t1-{contrast}", pairs, "t1_ncc_after", settings, across, judge=_correlation_of_t1s))
    return parts


def _correlation_of_t1s(pair: Entry, warped: Path) -> dict[str, float]:
    """Where the fixed T1 and the fixed image show something: T2s may cover less of the neck."""
    before, after, fixed, shown = (
        scale_intensity(load_image(str(path)).data)[None]
        for path in (pair["moving"], warped, pair["fixed_t1"], pair["fixed"])
    )
    head = (fixed > 0.1) & (shown > 0.1)
    ncc = {
        name: normalized_cross_correlation(image, fixed, head) for name, image in (("before", before), ("after", after))
    }
    return {f"t1_ncc_{name}": float(value) for name, value in ncc.items()}


def _of_files(pairs: list[Entry]) -> list[Entry]:
    """The pairs with the names of their files as people: each person has one scan."""
    return [pair | {f"subject_{role}": Path(pair[role]).name for role in SIDES} for pair in pairs]


# By name: the images' dimension, and the parts.
SETS: dict[str, tuple[int, Callable[[Path, Path], list[Part]]]] = {
    "rendered": (3, rendered),
    "heads": (3, heads),
    "brains": (3, brains),
    "slabs": (2, slabs),
    "t1t2": (2, t1t2),
}
