"""How well a template stands for its people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..evaluation.metrics import foreground_mask, gradient_energy, normalized_cross_correlation
from ..evaluation.overlap import mean_dice
from ..space.grids import Grid
from ..space.resampling import dense_field
from ..space.volumes import load_channels
from ..vocabulary import Row
from .maps import PersonsMap
from .place import Place
from .subjects import Subject


def round_measures(
    before: Sequence[str], image: Tensor, carried: Sequence[Path], grid: Grid, middle: PersonsMap
) -> Row:
    """Of a round.

    Args:
        before: files of the template that people were registered to. image: the new one (C, *S).
        carried: arrays of the people's images on its grid.
        middle: from its points to those of the one before.
    Returns:
        change: of the template, relative to its norm; off_centre_mm: how far the middle was away, in the mean over the
        head; sharpness: gradient energy; ncc: mean correlation of people with the template, there.
    """
    old, new = load_channels(before).data[:1], image[:1]
    head = foreground_mask({"fixed": new[None]})[0, 0]
    shift = dense_field(middle.forth, grid).ddf * torch.tensor(grid.spacing).float().view(-1, *[1] * len(grid.size))
    spacing = list(grid.spacing)
    return {
        "change": float((new - old).norm() / new.norm()),
        "off_centre_mm": float(shift.norm(dim=0)[head].mean()),
        "sharpness": float(gradient_energy(new[None], spacing_mm=spacing).mean()),
        "ncc": float(np.mean([_correlation(path, new, head) for path in carried])),
    }


def agreement(template: str, carried: Path, people: Sequence[Subject], votes: Tensor | None) -> list[Row]:
    """For each person the correlation with the template, and the Dice of the labels with the most frequent ones."""
    image = load_channels([template]).data
    head = foreground_mask({"fixed": image[None]})[0, 0]
    rows: list[Row] = []
    for one in people:
        rows.append({"ncc_after": _correlation(carried / f"{one.id}.npy", image, head)})
        if votes is not None and one.label is not None:
            labels = torch.from_numpy(np.load(carried / f"{one.id}_label.npy"))
            rows[-1]["dice_after"] = float(mean_dice(labels[None].int(), votes[None]))
    return rows


def label_volumes(labels: Tensor, place: Place, names: Mapping[int, str]) -> list[Row]:
    """The volume in mL of each label of a map (1, *S), a slice with its thickness, and its name if there are names."""
    voxel_ml = float(np.prod(place.grid.spacing)) * place.thickness_mm / 1000
    rows: list[Row] = []
    for label, count in zip(*labels[labels > 0].unique(return_counts=True), strict=True):
        row: Row = {"label": int(label)} | ({"name": names.get(int(label), "")} if names else {})
        rows.append(row | {"volume_ml": int(count) * voxel_ml})
    return rows


def _correlation(path: Path, image: Tensor, head: Tensor) -> float:
    person = torch.from_numpy(np.load(path)[:1])
    return float(normalized_cross_correlation(person[None], image[None], head[None, None]))
