"""Names of files and pairs, for the folders of results and for caches: safe as one part of a path, and unique."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

from ..results import MANIFEST, read_manifest
from ..vocabulary import Entry

_RESERVED = {MANIFEST, "metrics.csv", "metrics.json", "index.html"}

_UNSAFE = re.compile(r'[/\\<>:"|?*\x00-\x1f\x7f]')

_LONGEST = 200  # bytes: file systems take 255, and endings come to it


def file_stem(path: str | os.PathLike[str]) -> str:
    """The name of an image file without its ending."""
    name = Path(path).name
    return name.removesuffix(".gz").rpartition(".")[0] or name


def safe_name(text: str) -> str:
    """A text as the name of one file or folder: no path, not hidden, not too long, none of our own files.

    A text that is such a name stays as it is, but in Unicode's composed form. Characters that file systems refuse
    become "_", so different texts can have one name.
    """
    name = _UNSAFE.sub("_", unicodedata.normalize("NFC", text).encode("utf-8", "replace").decode())
    name = re.sub(r"^[. ]+|[. ]+$", "_", name)
    if len(name.encode()) > _LONGEST or name.lower() in _RESERVED or not name.strip("_"):
        kept = name.encode()[: _LONGEST - 9].decode("utf-8", "ignore")
        name = f"{kept}-{_digest(text)}"
    return name


def distinct_names(paths: Sequence[str]) -> dict[str, str]:
    """Name each file by its stem; files of one stem also by the folders that differ, or by their endings."""
    paths = list(dict.fromkeys(map(str, paths)))
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(file_stem(path), []).append(path)
    names = {}
    for stem, group in groups.items():
        folders = _differing_folders(group)
        for path in group:
            same_folder = folders.count(folders[group.index(path)]) > 1
            ending = Path(path).name if same_folder else stem
            names[path] = "_".join(filter(None, [folders[group.index(path)], ending])) if len(group) > 1 else stem
    return names


def _differing_folders(paths: Sequence[str]) -> list[str]:
    """Of files in different folders the parts that tell them from each other, those next to the file first."""
    folders = [Path(os.path.abspath(path)).parent.parts[::-1] for path in paths]
    depth = max(map(len, folders))
    rows = [folder + ("",) * (depth - len(folder)) for folder in folders]
    differing = [i for i in range(depth) if len({row[i] for row in rows}) > 1]
    chosen: list[int] = []
    for i in differing:
        before = len({tuple(row[j] for j in chosen) for row in rows})
        if len({tuple(row[j] for j in [*chosen, i]) for row in rows}) > before:
            chosen.append(i)
    return ["_".join(row[i] for i in reversed(chosen) if row[i] not in ("", os.sep)) for row in rows]


def result_files(item: Mapping[str, object]) -> dict[str, str]:
    """The images that a result is of, by role, as absolute paths: moving and fixed, or a scan as moving."""
    scan = item.get("moving") or item.get("image") or item.get("label")
    paths = {"moving": scan, "fixed": item.get("fixed")}
    return {role: os.path.abspath(str(path)) for role, path in paths.items() if path}


def item_name(item: Mapping[str, object]) -> str:
    """The id of an item; else of a pair <fixed>__<moving>, and of a scan the name of its file after its subject and
    session where that does not tell them."""
    files = result_files(item)
    name = _joined(files, {path: file_stem(path) for path in files.values()})
    if has_id(item):
        return str(item["id"])
    known = [] if "fixed" in files else [str(item[key]) for key in ("subject", "session") if key in item]
    return "_".join([*(text for text in known if text not in name), name])


def unique_names(items: Sequence[Mapping[str, object]]) -> list[str]:
    """Names of items without ids: `item_name` where it is unique, else the files' names with the folders that
    differ."""
    files = [result_files(item) for item in items]
    names = [item_name(item) for item in items]
    for name, number in Counter(names).items():
        if number > 1:
            same = [i for i, other in enumerate(names) if other == name]
            distinct = distinct_names([path for i in same for path in files[i].values()])
            for i in same:
                names[i] = _joined(files[i], distinct)
    counts = Counter(names)
    return [
        name if counts[name] == 1 else f"{name}-{_digest(*paths.values())}"
        for name, paths in zip(names, files, strict=True)
    ]


def named(items: Sequence[Entry]) -> list[Entry]:
    """The items, those without an `id` with one of their own.

    Raises:
        ValueError: if two are the same and neither has an id, or two ids name one folder.
    """
    files = [result_files(item) for item in items]
    bare = [i for i, item in enumerate(items) if not has_id(item)]
    seen: dict[tuple[str, ...], int] = {}
    for i in bare:
        first = seen.setdefault(tuple(files[i].values()), i)
        if first != i:
            raise ValueError(f"items {first} and {i} are the same, {item_name(items[i])}: give each an id")
    taken = {str(item["id"]) for item in items if has_id(item)}
    names = dict(zip(bare, unique_names([items[i] for i in bare]), strict=True))
    names = {i: f"{name}-{_digest(*files[i].values())}" if name in taken else name for i, name in names.items()}
    result = [{**item, "id": names[i]} if i in names else dict(item) for i, item in enumerate(items)]
    check_ids(result)
    return result


def has_id(item: Mapping[str, object] | Mapping[Hashable, object]) -> bool:
    """Whether an item has a name of its own."""
    return item.get("id") not in (None, "")


def check_ids(items: Sequence[Mapping[str, object]], where: str = "the list") -> None:
    """Raises ValueError: if an id is no text or number, or two of them name one folder."""
    seen: dict[str, int] = {}
    for i, item in enumerate(items):
        if has_id(item):
            if not isinstance(item["id"], str | int | float):
                raise ValueError(f"expected a text as the id of item {i} of {where}, got {item['id']!r}")
            first = seen.setdefault(safe_name(str(item["id"])), i)
            if first != i:
                both = " and ".join(repr(items[j]["id"]) for j in (first, i))
                raise ValueError(f"items {first} and {i} of {where} have ids that name one folder, {both}: rename one")


def result_name(output: str | os.PathLike[str], item: Mapping[str, object], part: str = "pair") -> str:
    """The name of an item's folder in `output`, such that no result of another item is there.

    With an `id` it is the id's. Else it is <fixed>__<moving>; where another pair has that folder, the names of the
    folders that differ go in front of the files'.

    Args:
        item: with its `id` or without, and the files that `result_files` takes.
        part: of the manifests.
    Raises:
        FileExistsError: if the result of another item has the id's folder.
        ValueError: if a file there has the manifest's name and is none.
    """
    output, files = Path(output), result_files(item)
    name = safe_name(item_name(item))
    other = _holder(output / name, part)
    if other in (None, files):
        return name
    if has_id(item):
        held = ", ".join(other.values()) if other else "something else"
        raise FileExistsError(f"{output / name} holds the result of {held}: take another output folder, or remove it")
    own = [child.name for child in sorted(output.iterdir()) if child.is_dir() and _holder(child, part) == files]
    if own:
        return own[0]
    others: list[Mapping[str, str]] = []
    while other is not None:
        if other in others:  # the manifest has no files to tell the two apart
            return safe_name(f"{name}-{_digest(*files.values())}")
        others.append(other)
        name = safe_name(unique_names([*others, files])[-1])
        other = _holder(output / name, part)
    return name


def check_free(output: str | os.PathLike[str], items: Sequence[Mapping[str, object]]) -> None:
    """Raises FileExistsError: if the result of another item has the folder of one of these items' ids."""
    for item in items:
        result_name(output, item)


def _holder(folder: Path, part: str) -> dict[str, str] | None:
    """What the result in a folder is of; None if there is none."""
    try:
        found = read_manifest(folder).get(part)
    except ValueError:
        return {}
    return None if found is None else found["of"]


def _joined(files: Mapping[str, str], names: Mapping[str, str]) -> str:
    return "__".join(names[files[role]] for role in ("fixed", "moving") if role in files)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode("utf-8", "replace")).hexdigest()[:8]


def pair_files(item: Mapping[str, object]) -> list[str]:
    """The files of a pair, moving and fixed."""
    files = []
    for role in ("moving", "fixed"):
        keys = (f"image_path_{role}", f"{role}_path", f"label_path_{role}")
        files.append(str(next((item[key] for key in keys if item.get(key)), role)))
    return files


def pair_paths(item: Mapping[str, object]) -> list[str]:
    """The files of a pair, moving and fixed, by name and the nearest folders (subject, session, kind)."""
    return ["/".join(Path(file).parts[-4:]) for file in pair_files(item)]


def pair_digest(item: Mapping[str, object]) -> str:
    """A short name for the whole paths of a pair."""
    return _digest(*pair_files(item))


def pair_name(item: Mapping[str, object]) -> str:
    """The names of a pair's files, moving and fixed, as one name."""
    return safe_name("__".join(map(file_stem, pair_files(item))))
