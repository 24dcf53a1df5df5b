"""Find files by patterns with fields in braces, read tables of people, and write data lists."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..results import replacing
from ..vocabulary import Entry
from .lists import make_pairs, split_by_person

PERSON = ("subject", "participant_id")  # columns that name a person
MISSING = ("", "n/a", "na", "nan")  # cells of a table that say nothing


def walk(folder: Path) -> list[str]:
    """All files under a folder, relative, with forward slashes, in the order of their names."""
    names = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [Path(root, name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    return sorted(names)


def pattern_to_regex(pattern: str) -> re.Pattern[str]:
    """A pattern as a regular expression: `{name}` matches any text without a slash and keeps it, `*` does not."""
    seen: set[str] = set()
    expression = ""
    for part in re.split(r"(\{[A-Za-z_]\w*\}|\*)", pattern):
        name = part[1:-1]
        if part == "*":
            expression += "[^/]*"
        elif part.startswith("{"):
            expression += f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+?)"
            seen.add(name)
        else:
            expression += re.escape(part)
    return re.compile(expression)


def scans_from_folder(
    folder: str | os.PathLike[str], *, image: str | None = None, label: str | None = None, mask: str | None = None
) -> list[Entry]:
    """Find the scans of a plain folder by patterns.

    A pattern is a path relative to the folder with fields in braces, for instance
    `images/{subject}_scan-{session}.nii.gz`. A field matches any text without a slash and becomes a key of the item;
    `{subject}` must be among them; `*` matches anything but a slash. Labels and masks are named by the same fields.

    Args:
        folder: where to look, with its sub-folders.
        image: pattern of the images; None for label maps without images.
        label: pattern of the label maps, without `*` unless there is no `image`.
        mask: pattern of the masks, without `*`.
    Returns:
        Scan items in the order of their names, paths relative to the folder.
    Raises:
        FileNotFoundError: if the folder does not exist, no file matches, or labels or masks are missing.
        ValueError: if neither image nor label is given, or the pattern has no `{subject}`.
    """
    folder = Path(folder)
    main = image if image is not None else label
    if main is None or "{subject}" not in main:
        raise ValueError(f"expected a pattern with {{subject}} for images or labels, got {main!r}")
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    expression = pattern_to_regex(main)
    companions = {"label": label if image is not None else None, "mask": mask}
    scans = []
    for name in walk(folder):
        match = expression.fullmatch(name)
        if match is None:
            continue
        fields = match.groupdict()
        scan = {"image" if image is not None else "label": name}
        scan |= {key: pattern.format(**fields) for key, pattern in companions.items() if pattern is not None}
        scans.append(scan | fields)
    if not scans:
        raise FileNotFoundError(f"no file in {folder} matches {main!r}")
    check_companions(scans, folder)
    return scans


def check_companions(scans: Sequence[Entry], folder: Path) -> None:
    """Raises FileNotFoundError: if a scan has no label map or mask where it should be."""
    for key in ("label", "mask"):
        missing = [scan[key] for scan in scans if key in scan and not (folder / scan[key]).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(scans)} scans in {folder} have no {key}, the first missing is {missing[0]}"
            )


def read_people(table: str | os.PathLike[str]) -> dict[str, dict[str, str]]:
    """The rows of a table of people (CSV, or TSV as BIDS has it) by person, without "sub-".

    Raises:
        ValueError: if it has no column `subject` or `participant_id`, or a person twice.
    """
    with open(table, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, delimiter="\t" if str(table).endswith(".tsv") else ","))
    key = next((name for name in PERSON if rows and name in rows[0]), None)
    if key is None:
        raise ValueError(f"{table}: expected a column subject or participant_id")
    people = {row[key].removeprefix("sub-"): row for row in rows}
    if len(people) < len(rows):
        raise ValueError(f"{table}: expected one row for each person, got {len(rows)} rows for {len(people)} people")
    return people


def make_list(
    scans: Sequence[Entry],
    *,
    validation: float = 0.2,
    test: float = 0.0,
    seed: int = 0,
    pair_kind: str = "between_people",
    atlas: Entry | None = None,
    max_pairs: int = 100,
) -> dict[str, list[Entry]]:
    """Make the sections of a data list: scans split by person, and fixed pairs for validation and test.

    Args:
        scans: scan items.
        validation, test: shares of the people.
        seed: of the split and of the choice of pairs.
        pair_kind, atlas: how the pairs are formed, see `make_pairs`.
        max_pairs: at most this many pairs in a section.
    Returns:
        `training`, `validation` and `test` (scans), `validation_pairs` and `test_pairs`; empty ones are left out.
    Raises:
        ValueError: if there are too few people for the split or for a pair.
    """
    shares = {"training": 1 - validation - test, "validation": validation, "test": test}
    sections = {name: items for name, items in split_by_person(scans, shares, seed).items() if items}
    pairs = {
        f"{name}_pairs": make_pairs(sections[name], pair_kind, atlas=atlas, limit=max_pairs, seed=seed)
        for name in ("validation", "test")
        if name in sections
    }
    return sections | pairs


def write_list(path: str | os.PathLike[str], sections: Mapping[str, object]) -> None:
    """Write a data list as JSON, one item a line; an existing file is replaced only by a complete one.

    Args:
        path: the file; its folder is made if needed.
        sections: section name to items, and any further entries (name, licence, ...).
    Raises:
        TypeError: if something cannot be written as JSON; nothing is left behind.
    """
    text = "{\n" + ",\n".join(f"{json.dumps(name)}: {_dump(value)}" for name, value in sections.items()) + "\n}\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _dump(value: object) -> str:
    if not isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return "[\n" + ",\n".join("  " + json.dumps(item, ensure_ascii=False) for item in value) + "\n]"
