"""Refuse label maps that would make wrong training images."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..vocabulary import Data, Item


class CheckLabelsd(MapTransform):
    """Refuse label maps that would make wrong images: unknown ids, or nothing but one label.

    Args:
        keys: label maps, integer.
        known: the ids that may occur, or a CSV file with a column `id`.
    Raises:
        ValueError: names the file and the ids.
    """

    def __init__(self, keys: KeysCollection, known: Sequence[int] | str | os.PathLike[str]) -> None:
        super().__init__(keys)
        self.source = str(known) if isinstance(known, str | os.PathLike) else "the configured labels"
        self.known = torch.tensor(sorted(_ids_of(known)))

    def __call__(self, data: Data) -> Item:
        for key in self.key_iterator(dict(data)):
            name = data.get(f"{key}_path", key)
            present = torch.as_tensor(data[key]).unique()
            present = present if present.is_floating_point() else present.long()  # 8 bits cannot hold the known ids
            unknown = present[~torch.isin(present, self.known.to(present.dtype))].tolist()
            if unknown:
                raise ValueError(f"{name}: label ids {unknown[:10]} are not in {self.source}")
            if len(present) < 2:
                raise ValueError(f"{name}: the label map holds only one label, {present.tolist()}")
        return dict(data)


def _ids_of(known: Sequence[int] | str | os.PathLike[str]) -> list[int]:
    if not isinstance(known, str | os.PathLike):
        return [int(i) for i in known]
    with open(known, encoding="utf-8", newline="") as file:
        return [int(row["id"]) for row in csv.DictReader(file)]
