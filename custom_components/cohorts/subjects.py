"""The people of a group, as a data list or a folder of images names them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checks import check_number
from ..data.lists import is_pair, load_list
from ..data.names import safe_name, unique_names
from ..transforms.requests import file_state
from ..vocabulary import Entry


@dataclass(frozen=True)
class Subject:
    """One person's scan.

    Args:
        id: safe as the name of a folder, and no other's.
        images: paths of the contrasts, the reference first.
        label, mask: of the reference.
        weight: how much the person counts in means.
    """

    id: str
    images: tuple[str, ...]
    label: str | None = None
    mask: str | None = None
    weight: float = 1.0

    @property
    def request(self) -> list[object]:
        """Changes with the person's files and weight."""
        return [self.id, self.weight, *(file_state(path) for path in (*self.images, self.label, self.mask) if path)]


def listed(
    path: str, section: str = "training", base_dir: str | None = None, contrasts: Sequence[str] = ()
) -> list[Subject]:
    """The scans of a data list.

    Args:
        path, section, base_dir: as for `load_list`.
        contrasts: keys of further images of a person, aligned with the first.
    Raises:
        FileNotFoundError, ValueError: as `load_list`; if it holds pairs, a scan lacks an image or a contrast, or a
            `weight` is not a positive number.
    """
    items = load_list(path, section, base_dir)
    if any(is_pair(item) or "image" not in item for item in items):
        raise ValueError(f"section {section!r} of {path}: expected scans with an image, got pairs or label maps")
    base = Path(base_dir) if base_dir is not None else Path(path).parent
    return [_subject(item, name, base, contrasts) for item, name in zip(items, unique_names(items), strict=True)]


def _subject(item: Entry, name: str, base: Path, contrasts: Sequence[str]) -> Subject:
    missing = [key for key in contrasts if key not in item]
    if missing:
        raise ValueError(f"{name}: there is no contrast {missing[0]!r} in its item of the list")
    check_number(f"weight of {name}", item.get("weight", 1.0), above=0)
    others = [str(base / item[key]) for key in contrasts]
    for one in others:
        if not os.path.exists(one):
            raise FileNotFoundError(f"{one}: there is no such file")
    label, mask = item.get("label"), item.get("mask")
    return Subject(safe_name(name), (item["image"], *others), label, mask, float(item.get("weight", 1.0)))


def in_files(paths: Sequence[str]) -> list[Subject]:
    """A person for each image file."""
    items: list[Entry] = [{"image": path} for path in paths]
    return [
        Subject(safe_name(name), (os.path.abspath(path),))
        for path, name in zip(paths, unique_names(items), strict=True)
    ]
