"""Data lists: which scans or pairs a bundle reads, how pairs are formed of scans, and the data set of pairs.

A data list is a JSON file with sections (`training`, `validation`, `test`, or any other name), each a list of

- scans: `{"image"?, "label"?, "mask"?, "landmarks"?, "guide"?, "contrast"?, "subject"?, ...}` with at least an
  image or a label (`contrast` is another image of the same person, aligned with the first; `guide` a label map that
  guides the refinement), or
- pairs: `{"moving", "fixed", "label_moving"?, "label_fixed"?, "mask_moving"?, ..., "id"?, ...}`; the first two
  may be lists of channels of one person, with `"channel_weights"?`.

Paths are relative to one base folder. A person is named by `subject`; every split is by person. A scan without a
`subject` counts as a person of its own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..checks import is_word
from ..vocabulary import Entry
from .names import check_ids, distinct_names

SCAN_FILES = ("image", "contrast", "label", "mask", "landmarks", "guide", "affine")


PAIR_FILES = tuple(
    f"{prefix}{side}"
    for prefix in ("", "contrast_", "label_", "mask_", "landmarks_", "guide_")
    for side in ("moving", "fixed")
)


_PAIR_KINDS = ("all", "neighbours", "atlas", "same_person", "between_people")


# Other projects write fixed_image, moving_label, ...; we never have one key as the beginning of another.
_ALIASES = {f"{side}_image": side for side in ("moving", "fixed")} | {
    f"{side}_{name}": f"{name}_{side}" for side in ("moving", "fixed") for name in ("label", "mask", "landmarks")
}


def load_list(
    path: str | os.PathLike[str], section: str = "training", base_dir: str | os.PathLike[str] | None = None
) -> list[Entry]:
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
        IsADirectoryError: if it is a folder.
        ValueError: if the file is no JSON object, the section is absent or empty, an item is neither scan nor pair, or
            two ids are equal or name one folder.
    """
    path = Path(str(path))
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a data list, a JSON file, got a folder (data_lists/README.md)")
    if not path.is_file():
        raise FileNotFoundError(f"no data list at {path}")
    try:
        sections = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a data list, a JSON file, got one that is no text") from error
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
    check_ids(items, f"section {section!r} in {path}")
    _check_files(items, path, section)
    return items


def is_pair(item: Mapping[str, object]) -> bool:
    """Whether an item is a pair: it has both images, or both label maps."""
    return {"moving", "fixed"} <= item.keys() or {"label_moving", "label_fixed"} <= item.keys()


def subject_of(scan: Mapping[str, object]) -> str:
    """The person a scan shows: its `subject`, else the scan's own file name (a person of its own)."""
    return str(scan.get("subject", scan.get("image", scan.get("label"))))


def number_or_text(text: str) -> float | str:
    """An attribute as a table or a command line gives it: a number if it is written as one, "007" is a name."""
    return float(text) if re.fullmatch(r"[+-]?(0|[1-9]\d*|0?(?=\.))(\.\d*)?([eE][+-]?\d+)?", text) else text


def make_pairs(
    scans: Sequence[Entry],
    kind: str = "all",
    *,
    atlas: Entry | str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[Entry]:
    """Form ordered pairs of scans; a scan is never paired with itself.

    Args:
        scans: scan items.
        kind: "all" every ordered pair; "neighbours" scan i as fixed with scan i + 1 as moving; "atlas" every scan as
            moving with the atlas as fixed; "same_person" and "between_people" ordered pairs within and between people.
        atlas: for kind "atlas": a scan item or the path of an image. If it is one of the scans, that scan is omitted.
        limit: keep at most this many pairs, drawn at random without repetition, in the original order.
        seed: of that draw.
    Returns:
        Pair items with an `id` "<moving>-to-<fixed>", where the folders that differ stand before equal names of files;
        the keys of the scans become `moving`, `label_moving`, `subject_moving`, and so on.
    Raises:
        ValueError: if the kind is unknown, the atlas is missing, or no pair is possible.
    """
    if kind not in _PAIR_KINDS:
        raise ValueError(f"expected a kind of pairs out of {', '.join(_PAIR_KINDS)}, got {kind!r}")
    if kind == "atlas":
        if atlas is None:
            raise ValueError("pairs of kind 'atlas' need an atlas: a scan item or the path of an image")
        target = as_scan(atlas)
        drawn = [(scan, target) for scan in scans if not _same_file(scan, target)]
    else:
        drawn = [(scans[m], scans[f]) for m, f in _pair_indices(scans, kind)]
    if not drawn:
        people = len({subject_of(scan) for scan in scans})
        raise ValueError(f"no pair of kind {kind!r} can be formed of {len(scans)} scans of {people} people")
    if limit is not None and limit < len(drawn):
        chosen = np.random.default_rng(seed).choice(len(drawn), size=limit, replace=False)
        drawn = [drawn[i] for i in sorted(chosen)]
    return _with_ids(drawn)


def _with_ids(drawn: Sequence[tuple[Entry, Entry]]) -> list[Entry]:
    names = distinct_names([_file(scan) for pair in drawn for scan in pair])
    return [{"id": "-to-".join(names[_file(scan)] for scan in pair), **pair_of(*pair)} for pair in drawn]


def split_by_person(scans: Sequence[Entry], fractions: Mapping[str, float], seed: int = 0) -> dict[str, list[Entry]]:
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
    counts = _whole_shares({name: fractions[name] * len(people) for name in sections}, len(people))
    order = [people[i] for i in np.random.default_rng(seed).permutation(len(people))]
    owner: dict[str, str] = {}
    for name in sections:
        owner |= dict.fromkeys(order[len(owner) : len(owner) + counts[name]], name)
    return {name: [scan for scan in scans if owner[subject_of(scan)] == name] for name in fractions}


def _whole_shares(wanted: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers of at least 1 that add up to the total, as near to what is wanted as they can be."""
    counts = {name: max(1, int(share)) for name, share in wanted.items()}
    while sum(counts.values()) != total:
        gap = {name: wanted[name] - counts[name] for name in counts}
        if sum(counts.values()) < total:
            counts[max(gap, key=gap.__getitem__)] += 1
        else:
            counts[min((name for name in counts if counts[name] > 1), key=gap.__getitem__)] -= 1
    return counts


def _resolve(item: object, base: Path, where: str) -> Entry:
    if not isinstance(item, Mapping):
        raise ValueError(f"expected an object with the keys of a scan or a pair, got {item!r}: {where}")
    entry: Entry = {str(_ALIASES.get(key, key)): value for key, value in item.items()}
    if not is_pair(entry) and not {"image", "label"} & entry.keys():
        raise ValueError(
            "expected the keys image or label (a scan), or moving and fixed (a pair), "
            f"got {', '.join(entry) or 'none'}: {where}"
        )
    files = PAIR_FILES if is_pair(entry) else SCAN_FILES
    entry |= _channels(entry, base)
    for key in files:
        if key in entry and not isinstance(entry[key], str):
            raise ValueError(f"expected a path for {key!r}, got {entry[key]!r}: {where}")
    return _aligned({key: str(base / value) if key in files else value for key, value in entry.items()}, base)


def _aligned(entry: Entry, base: Path) -> Entry:
    """A pair's own `affine` as a path, if it names a file; else it is a word for what aligns the pair."""
    affine = entry.get("affine")
    is_file = is_pair(entry) and isinstance(affine, str) and not is_word(affine) and (base / affine).is_file()
    return {**entry, "affine": str(base / str(affine))} if is_file else entry


def _channels(entry: Entry, base: Path) -> Entry:
    """Of images that are lists of channels the first, and the others."""
    found: Entry = {}
    for side in ("moving", "fixed"):
        if isinstance(entry.get(side), list) and entry[side]:
            first, *others = entry[side]
            found |= {side: first, f"channels_{side}": [str(base / str(one)) for one in others]}
    return found


def _check_files(items: Sequence[Entry], path: Path, section: str) -> None:
    named = dict.fromkeys(item[k] for item in items for k in (PAIR_FILES if is_pair(item) else SCAN_FILES) if k in item)
    named |= dict.fromkeys(
        one for item in items for side in ("moving", "fixed") for one in item.get(f"channels_{side}", ())
    )
    missing = [name for name in named if not os.path.exists(name)]  # A folder may hold a DICOM series.
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(named)} files of section {section!r} in {path} are missing, "
            f"the first is {missing[0]}"
        )


def as_scan(atlas: Entry | str) -> Entry:
    """A scan item of the path of an image, or of such an item."""
    return {"image": str(atlas)} if isinstance(atlas, str | os.PathLike) else dict(atlas)


def _same_file(a: Entry, b: Entry) -> bool:
    return any(key in a and a[key] == b.get(key) for key in ("image", "label"))


def _file(scan: Entry) -> str:
    name = scan.get("image", scan.get("label"))
    return name if isinstance(name, str) else subject_of(scan)


def _pair_indices(scans: Sequence[Entry], kind: str) -> Iterator[tuple[int, int]]:
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


def pair_of(moving: Entry, fixed: Entry) -> Entry:
    """Rename the keys of two scans to those of a pair."""
    pair: Entry = {}
    for side, scan in (("moving", moving), ("fixed", fixed)):
        pair |= {side if key == "image" else f"{key}_{side}": value for key, value in scan.items()}
    return pair
