"""Data lists: which scans or pairs a bundle reads, how pairs are formed of scans, and the data set of pairs.

A data list is a JSON file with sections (`training`, `validation`, `test`, or any other name), each a list of

- scans: `{"image"?, "label"?, "mask"?, "landmarks"?, "contrast"?, "subject"?, ...}` with at least an image or a label
  (`contrast` is another image of the same person, aligned with the first), or
- pairs: `{"moving", "fixed", "label_moving"?, "label_fixed"?, "mask_moving"?, ..., "id"?, ...}`.

Paths are relative to one base folder. A person is named by `subject`; every split is by person. A scan without a
`subject` counts as a person of its own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable
from monai.utils import get_seed
from torch import Tensor
from torch.utils.data import Dataset

Item = dict[str, Any]

SCAN_FILES = ("image", "contrast", "label", "mask", "landmarks", "affine")
PAIR_FILES = tuple(
    f"{prefix}{side}" for prefix in ("", "contrast_", "label_", "mask_", "landmarks_") for side in ("moving", "fixed")
)
_PAIR_KINDS = ("all", "neighbours", "atlas", "same_person", "between_people")
# Other projects write fixed_image, moving_label, ...; we never have one key as the beginning of another.
_ALIASES = {f"{side}_image": side for side in ("moving", "fixed")} | {
    f"{side}_{name}": f"{name}_{side}" for side in ("moving", "fixed") for name in ("label", "mask", "landmarks")
}


def load_list(
    path: str | os.PathLike, section: str = "training", base_dir: str | os.PathLike | None = None
) -> list[Item]:
    """Read one section of a data list and make its paths absolute.

    Convention: the keys `fixed_image`, `moving_label`, ... of other projects are renamed to `fixed`, `label_moving`,
    and so on. Every other key of an item is kept as it is.

    Args:
        path: the JSON file.
        section: name of the section.
        base_dir: folder to which the paths are relative; by default the folder of the list.
    Returns:
        Scans or pairs; each file they name exists.
    Raises:
        FileNotFoundError: if the list or some of the files it names are missing (their number and the first one).
        ValueError: if the file is no JSON object, the section is absent or empty, or an item is neither scan nor pair.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no data list at {path}")
    try:
        sections = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"data list {path} is not valid JSON: {error}") from error
    if not isinstance(sections, dict):
        raise ValueError(f"data list {path} must hold an object with sections, got a {type(sections).__name__}")
    if section not in sections:
        names = ", ".join(name for name, value in sections.items() if isinstance(value, list))
        raise ValueError(f"data list {path} has no section {section!r}; it has: {names or 'none'}")
    if not isinstance(sections[section], list) or not sections[section]:
        raise ValueError(f"section {section!r} of data list {path} is empty or not a list")
    base = Path(base_dir) if base_dir is not None else path.parent
    items = [
        _resolve(item, base, f"item {i} of section {section!r} in {path}") for i, item in enumerate(sections[section])
    ]
    _check_files(items, path, section)
    return items


def is_pair(item: Mapping[str, Any]) -> bool:
    """Whether an item is a pair: it has both images, or both label maps."""
    return {"moving", "fixed"} <= item.keys() or {"label_moving", "label_fixed"} <= item.keys()


def subject_of(scan: Mapping[str, Any]) -> str:
    """The person a scan shows: its `subject`, else the scan's own file name (a person of its own)."""
    return str(scan.get("subject", scan.get("image", scan.get("label"))))


def number_or_text(text: str) -> float | str:
    """An attribute as a table or a command line gives it: a number if it is written as one, "007" is a name."""
    return float(text) if re.fullmatch(r"[+-]?(0|[1-9]\d*|0?(?=\.))(\.\d*)?([eE][+-]?\d+)?", text) else text


def make_pairs(
    scans: Sequence[Item],
    kind: str = "all",
    *,
    atlas: Item | str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[Item]:
    """Form ordered pairs of scans; a scan is never paired with itself.

    Args:
        scans: scan items.
        kind: "all" every ordered pair; "neighbours" scan i as fixed with scan i + 1 as moving; "atlas" every scan as
            moving with the atlas as fixed; "same_person" and "between_people" ordered pairs within and between people.
        atlas: for kind "atlas": a scan item or the path of an image. If it is one of the scans, that one is left out.
        limit: keep at most so many pairs, drawn at random without repetition, in the original order.
        seed: of that draw.
    Returns:
        Pair items with an `id` "<moving>-to-<fixed>"; the keys of the scans become `moving`, `label_moving`,
        `subject_moving`, and so on.
    Raises:
        ValueError: if the kind is unknown, the atlas is missing, or no pair is possible.
    """
    if kind not in _PAIR_KINDS:
        raise ValueError(f"expected a kind of pairs out of {', '.join(_PAIR_KINDS)}, got {kind!r}")
    if kind == "atlas":
        if atlas is None:
            raise ValueError("pairs of kind 'atlas' need an atlas: a scan item or the path of an image")
        target = _as_scan(atlas)
        drawn = [(scan, target) for scan in scans if not _same_file(scan, target)]
    else:
        drawn = [(scans[m], scans[f]) for m, f in _pair_indices(scans, kind)]
    if not drawn:
        people = len({subject_of(scan) for scan in scans})
        raise ValueError(f"no pair of kind {kind!r} can be formed of {len(scans)} scans of {people} people")
    if limit is not None and limit < len(drawn):
        chosen = np.random.default_rng(seed).choice(len(drawn), size=limit, replace=False)
        drawn = [drawn[i] for i in sorted(chosen)]
    return [{"id": f"{_name(moving)}-to-{_name(fixed)}", **_pair_of(moving, fixed)} for moving, fixed in drawn]


def split_by_person(scans: Sequence[Item], fractions: Mapping[str, float], seed: int = 0) -> dict[str, list[Item]]:
    """Split scans into sections such that all scans of a person are in one section.

    Args:
        scans: scan items.
        fractions: share of the *people* for each section, for instance `{"training": 0.8, "validation": 0.2}`. Shares
            are rounded to whole people, but no section with a positive share stays empty.
        seed: of the random order of the people.
    Returns:
        Section name to its scans, in the order given.
    Raises:
        ValueError: if the fractions are negative or do not add up to 1, or there are fewer people than sections.
    """
    if min(fractions.values(), default=-1.0) < 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"expected fractions that are not negative and add up to 1, got {dict(fractions)}")
    people = sorted({subject_of(scan) for scan in scans})
    sections = [name for name, share in fractions.items() if share > 0]
    if len(people) < len(sections):
        raise ValueError(f"{len(people)} people cannot fill {len(sections)} sections")
    counts = {name: max(1, int(fractions[name] * len(people))) for name in sections}
    while sum(counts.values()) != len(people):
        gap = {name: fractions[name] * len(people) - counts[name] for name in sections}
        if sum(counts.values()) < len(people):
            counts[max(gap, key=gap.__getitem__)] += 1
        else:
            counts[min((n for n in sections if counts[n] > 1), key=gap.__getitem__)] -= 1
    order = [people[i] for i in np.random.default_rng(seed).permutation(len(people))]
    owner: dict[str, str] = {}
    for name in sections:
        owner |= dict.fromkeys(order[len(owner) : len(owner) + counts[name]], name)
    return {name: [scan for scan in scans if owner[subject_of(scan)] == name] for name in fractions}


class ScanPairDataset(Dataset, Randomizable):
    """Pairs for training: drawn at random of single scans, or read as given.

    Convention: an item has the keys `moving fixed label_moving label_fixed mask_moving mask_fixed` as far as the data
    have them (any other key `k` of a scan becomes `k_moving` and `k_fixed`), and `image` (2C, *S): moving, then fixed,
    concatenated after `pair_transform`. Of scans, images come as float32 tensors, labels and masks as integer ones.

    - Scans (items with `image` and / or `label`, as MONAI Label passes them, too): item i is a random ordered pair,
      drawn anew in each epoch, whose two scans are of different people. With `atlas`, `fixed` is the atlas. Scans with
      a `group` (the level of a 2-D slice, say) only meet scans of the same group.
    - Pairs: item i is pair i; `transform` gets the pair.

    Args:
        data: scan items or pair items.
        transform: applied to each scan (or pair) once, for instance loading, reorienting, normalising. Must not be
            random unless `cache` is false.
        pair_transform: applied to each drawn pair, for instance augmentation or synthesis of images from labels.
        num_pairs: length of an epoch; by default the number of items. Of pairs: only the first `num_pairs` are used.
        atlas: a scan item or the path of an image; every scan is then a moving one, in order unless `num_pairs` is
            given.
        cache: keep the transformed scans in memory; they are loaded at construction, with a progress bar.
        between_people: draw the two scans from different people; else two scans of one person may meet.
        with_itself: pair each scan with itself, where augmentation is what tells the two apart.
        alone: item i is one scan drawn at random, as the moving image, and `image` is that scan: for networks that
            supply the other one (atlases).
        shuffle: if false, the pairs are the same in each epoch: `num_pairs` (default all) of the possible ordered
            pairs, drawn evenly from their list. For validation.
        cache_workers: threads that fill the cache.
    Raises:
        ValueError: if no pair can be formed, only some scans have an image, or moving and fixed differ in size when
            they are to be concatenated.
    """

    def __init__(
        self,
        data: Sequence[Item],
        transform: Callable[[Item], Item] | None = None,
        pair_transform: Callable[[Item], Item] | None = None,
        *,
        num_pairs: int | None = None,
        atlas: Item | str | None = None,
        cache: bool = True,
        between_people: bool = True,
        with_itself: bool = False,
        alone: bool = False,
        shuffle: bool = True,
        cache_workers: int = 2,
    ) -> None:
        if not data:
            raise ValueError("expected at least one scan or pair, got an empty list")
        self.data = [dict(item) for item in data]
        self.pairs_given = is_pair(self.data[0])
        if any(is_pair(item) != self.pairs_given for item in self.data):
            raise ValueError("expected only scans or only pairs, got a mixture")
        bare = [item for item in self.data if not self.pairs_given and item.get("image") is None]
        if 0 < len(bare) < len(self.data):
            raise ValueError(f"expected images of all scans or of none, got {len(bare)} without: {bare[0]}")
        self.transform, self.pair_transform = transform, pair_transform
        self.num_scans = len(self.data)
        self.has_atlas = atlas is not None and not self.pairs_given
        if atlas is not None and self.has_atlas:
            self.data.append(_as_scan(atlas))
        if self.pairs_given:
            num_pairs = min(num_pairs or self.num_scans, self.num_scans)
        self.in_order = self.pairs_given or (self.has_atlas and num_pairs is None)
        self.num_pairs = num_pairs or self.num_scans
        self._fixed_pairs: list[tuple[int, int]] | None = None
        self.with_itself, self.alone = with_itself or alone, alone
        if self.with_itself and (self.pairs_given or atlas is not None):
            raise ValueError("with_itself and alone take single scans: no pairs and no atlas")
        people = [subject_of(scan) if between_people else str(i) for i, scan in enumerate(self.data)]
        self._person = np.unique(people, return_inverse=True)[1]
        self._group = np.unique([str(scan.get("group", "")) for scan in self.data], return_inverse=True)[1]
        if self.has_atlas and not shuffle and num_pairs:
            step = max(1.0, self.num_scans / num_pairs)
            self._fixed_pairs = [(int(i * step), self.num_scans) for i in range(min(num_pairs, self.num_scans))]
            self.num_pairs = len(self._fixed_pairs)
        if not self.pairs_given and not self.has_atlas:
            partners = [self._partners(i) for i in range(self.num_scans)]
            if not any(p.size for p in partners):
                raise ValueError(f"no pair of different people can be formed of these {self.num_scans} scans")
            self._with_partner = np.flatnonzero([p.size > 0 for p in partners])
            if not shuffle:
                every = [(moving, int(fixed)) for moving, p in enumerate(partners) for fixed in p]
                step = max(1.0, len(every) / (num_pairs or len(every)))
                self._fixed_pairs = [every[int(i * step)] for i in range(min(num_pairs or len(every), len(every)))]
                self.num_pairs = len(self._fixed_pairs)
        self.set_random_state(seed=get_seed())
        self._cache = self._fill_cache(cache_workers) if cache else None

    def __len__(self) -> int:
        return self.num_pairs

    def __getitem__(self, index: int) -> Item:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of a dataset of {len(self)} pairs")
        index %= len(self)
        if self.pairs_given:
            pair = self._load(index)
        else:
            moving, fixed = self._draw(index)
            pair = _pair_of(self._load(moving), {} if self.alone else self._load(fixed))
        if self.pair_transform is not None:
            pair = self.pair_transform(pair)
        return _with_image(pair)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> ScanPairDataset:
        """Seed the drawing of pairs and the random transforms; MONAI's DataLoader does so in each worker."""
        Randomizable.set_random_state(self, seed=seed, state=state)
        for transform in (self.transform, self.pair_transform):
            if isinstance(transform, Randomizable):
                transform.set_random_state(seed=int(self.R.randint(2**31)))
        return self

    def randomize(self, data: Any = None) -> None:
        """Required by `Randomizable`; pairs are drawn when they are asked for."""

    def _draw(self, index: int) -> tuple[int, int]:
        """Positions of the moving and the fixed scan."""
        if self._fixed_pairs is not None:
            return self._fixed_pairs[index]
        if self.in_order:
            return index, self.num_scans
        # The index takes part, so that the processes of a multi-GPU run, seeded alike, still draw different pairs.
        rng = np.random.default_rng([int(self.R.randint(2**31)), index])
        if self.has_atlas:
            return int(rng.integers(self.num_scans)), self.num_scans
        moving = int(rng.choice(self._with_partner))
        return moving, int(rng.choice(self._partners(moving)))

    def _partners(self, position: int) -> np.ndarray:
        """Positions of the scans of other people in the same group (or its own)."""
        if self.with_itself:
            return np.array([position])
        other = self._person != self._person[position]
        return np.flatnonzero(other & (self._group == self._group[position]))

    def _load(self, position: int) -> Item:
        """A transformed scan or pair; the cached tensors are copied, so that no transform can change them."""
        if self._cache is None:
            return self._prepare(position)
        return {k: v.clone() if isinstance(v, Tensor) else v for k, v in self._cache[position].items()}

    def _prepare(self, position: int) -> Item:
        item = dict(self.data[position])
        if self.transform is not None:
            item = self.transform(item)
        return item if self.pairs_given else {key: _compact(key, value) for key, value in item.items()}

    def _fill_cache(self, workers: int) -> list[Item]:
        from tqdm import tqdm

        with ThreadPoolExecutor(max(1, workers)) as pool:
            loaded = pool.map(self._prepare, range(len(self.data)))
            bar = tqdm(loaded, total=len(self.data), desc="loading scans", disable=None if self.transform else True)
            return list(bar)


def _resolve(item: Any, base: Path, where: str) -> Item:
    if not isinstance(item, Mapping):
        raise ValueError(f"expected an object with the keys of a scan or a pair, got {item!r}: {where}")
    item = {_ALIASES.get(key, key): value for key, value in item.items()}
    if not is_pair(item) and not {"image", "label"} & item.keys():
        raise ValueError(
            "expected the keys image or label (a scan), or moving and fixed (a pair), "
            f"got {', '.join(item) or 'none'}: {where}"
        )
    files = PAIR_FILES if is_pair(item) else SCAN_FILES
    for key in files:
        if key in item and not isinstance(item[key], str):
            raise ValueError(f"expected a path for {key!r}, got {item[key]!r}: {where}")
    return {key: str(base / value) if key in files else value for key, value in item.items()}


def _check_files(items: Sequence[Item], path: Path, section: str) -> None:
    named = dict.fromkeys(item[k] for item in items for k in (PAIR_FILES if is_pair(item) else SCAN_FILES) if k in item)
    missing = [name for name in named if not os.path.isfile(name)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(named)} files of section {section!r} in {path} are missing, "
            f"the first is {missing[0]}"
        )


def _as_scan(atlas: Item | str) -> Item:
    return {"image": str(atlas)} if isinstance(atlas, str | os.PathLike) else dict(atlas)


def _same_file(a: Item, b: Item) -> bool:
    return any(key in a and a[key] == b.get(key) for key in ("image", "label"))


def _name(scan: Item) -> str:
    name = scan.get("image", scan.get("label"))
    return (
        re.sub(r"\.(nii(\.gz)?|mg[zh]|nrrd|mha)$", "", os.path.basename(name))
        if isinstance(name, str)
        else subject_of(scan)
    )


def _pair_indices(scans: Sequence[Item], kind: str) -> Iterator[tuple[int, int]]:
    """Positions (moving, fixed)."""
    if kind == "neighbours":
        yield from ((i + 1, i) for i in range(len(scans) - 1))
        return
    person = [subject_of(scan) for scan in scans]
    for m in range(len(scans)):
        for f in range(len(scans)):
            wanted = kind == "all" or (person[m] == person[f]) == (kind == "same_person")
            if m != f and wanted:
                yield m, f


def _pair_of(moving: Item, fixed: Item) -> Item:
    """Rename the keys of two scans to those of a pair."""
    pair: Item = {}
    for side, scan in (("moving", moving), ("fixed", fixed)):
        pair |= {side if key == "image" else f"{key}_{side}": value for key, value in scan.items()}
    return pair


def _compact(key: str, value: Any) -> Any:
    """Tensors as small as they can be: labels and masks int16 (int32 for large ids), every other float float32."""
    if not isinstance(value, torch.Tensor | np.ndarray):
        return value
    tensor = torch.as_tensor(value)
    if hasattr(tensor, "as_tensor"):  # MetaTensor: what follows works on voxels, the space is the model grid's
        tensor = tensor.as_tensor()
    if key in ("label", "mask") and bool((tensor == tensor.round()).all()):
        return tensor.to(torch.int16 if not tensor.numel() or tensor.abs().max() < 2**15 else torch.int32).contiguous()
    return tensor.float().contiguous() if tensor.is_floating_point() else tensor.contiguous()


def _with_image(pair: Item) -> Item:
    moving, fixed = pair.get("moving"), pair.get("fixed")
    if "image" not in pair and isinstance(moving, Tensor) and fixed is None:
        return {**pair, "image": moving}
    if "image" in pair or not isinstance(moving, Tensor) or not isinstance(fixed, Tensor):
        return pair
    if moving.shape[1:] != fixed.shape[1:]:
        raise ValueError(
            "moving and fixed must have one size to be concatenated, "
            f"got {tuple(moving.shape)} and {tuple(fixed.shape)}: bring them to one grid in the transform"
        )
    plain = [t.as_tensor() if hasattr(t, "as_tensor") else t for t in (moving, fixed)]
    return {**pair, "image": torch.cat(plain)}
