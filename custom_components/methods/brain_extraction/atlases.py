"""Label maps of people as atlases: each is rendered as a T1-like head, which can be registered to any scan of a head.

Three files hold them. `NAME.nii.gz` has the label maps along a fourth axis, with FreeSurfer's ids and those of what
lies outside the brain. `NAME.csv` has the statistics of each id (see `LabelIntensities`). `NAME.json` has each person's
name and affine, voxel to RAS mm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from ...checks import check_number
from ...space.frames import Frame
from ...space.memory_images import MemoryImage, MemoryName
from ...synthesis.brains import BrainContrast
from .structures import class_table

NUM_IDS = 531


@dataclass(frozen=True)
class Atlas:
    """A rendered head, and the classes of its voxels, see `STRUCTURES`."""

    image: MemoryImage
    labels: MemoryImage


def read_atlases(path: Path, number: int) -> list[Atlas]:
    """The first atlases of a file, rendered; the same each time.

    Args:
        path: of NAME.nii.gz; NAME.csv and NAME.json lie beside it.
        number: of atlases.
    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if there are fewer atlases.
    """
    people = json.loads(_beside(path, "json").read_text(encoding="utf-8"))["people"]
    check_number("atlases", number, least=0, most=len(people), whole=True)
    render = BrainContrast(_beside(path, "csv"), std=(3, 8), zero_background=1.0)
    maps = nib.load(path).dataobj
    return [
        _rendered(np.asarray(maps[..., k]), person, render, torch.Generator().manual_seed(k + 1))
        for k, person in enumerate(people[:number])
    ]


def _rendered(
    ids: np.ndarray, person: Mapping[str, object], render: BrainContrast, generator: torch.Generator
) -> Atlas:
    labels = torch.from_numpy(ids.astype(np.int64))
    image = render(labels[None, None], render.draw(1, ids.shape, generator))[0, 0]
    frame, name = Frame(np.array(person["affine"])), MemoryName(f"atlas {person['name']}")
    classes = class_table(NUM_IDS)[labels].to(torch.uint8)
    return Atlas(*(MemoryImage(one.numpy(), frame, 3, name) for one in (image, classes)))


def _beside(path: Path, ending: str) -> Path:
    found = path.with_name(f"{path.name.removesuffix('.nii.gz')}.{ending}")
    if not (path.is_file() and found.is_file()):
        raise FileNotFoundError(f"{path}: the atlases, or {found.name} beside them, are missing")
    return found
