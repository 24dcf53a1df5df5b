"""Folders of results: written aside, put in place together, and described by a manifest of the files that are ours.

The manifest, `files.json`, has a part for each kind of result in a folder ("pair", "cohort", a template, ...): what the
result is `of`, and the names of its `files`. A part that says `unfinished` is no result: a run was cut while its files
came. All files of an earlier run are deleted before the first of the new one comes, so two runs never mix; a file that
no manifest lists is nobody's to delete or to replace.

Until then the files lie in a folder `.unfinished-...`, which its process locks. A later run into the same place deletes
those whose process is dead. File systems without locks keep them.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MANIFEST = "files.json"

PAIR = "pair"  # the part that a registered pair has

_HOST = re.sub(r"\W", "", platform.node())[:24] or "host"
_ASIDE = re.compile(r"\.unfinished-(\w+)-[0-9a-f]{12}")
_DAY_S = 86400


class Part(TypedDict, total=False):
    """What a manifest says about one kind of result: its source by role, its files, and whether it is incomplete."""

    of: dict[str, str]
    files: list[str]
    unfinished: bool


Manifest = dict[str, Part]


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """The parts of a folder's manifest by name; none if there is no manifest.

    Raises:
        ValueError: if a file of that name is there and is not a manifest.
    """
    path = Path(folder) / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError:
        content = None
    if not isinstance(content, dict) or not all(_is_part(part) for part in content.values()):
        raise ValueError(f"{path}: this is no list of the files of a result; nothing is deleted or written here")
    return content


def _is_part(part: object) -> bool:
    if not isinstance(part, dict) or not isinstance(part.get("of"), dict) or not isinstance(part.get("files"), list):
        return False
    return all(isinstance(name, str) and _is_bare(name) for name in part["files"])


def _is_bare(name: str) -> bool:
    # Nothing outside of the folder may ever be deleted.
    return name not in ("", ".", "..", MANIFEST) and not any(mark in name for mark in ("/", "\\", os.sep, "\0"))


@contextlib.contextmanager
def aside(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty scratch folder inside of `folder`, which is made if needed; it vanishes at the end.

    Raises:
        OSError: in one sentence, if the folder cannot be made or written to.
    """
    folder, scratch = Path(folder), None
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            with _locked(folder):
                _clear_leftovers(folder)
                scratch = folder / f".unfinished-{_HOST}-{uuid.uuid4().hex[:12]}"
                inner = scratch / "files"  # for what is written aside in there needs a lock of its own
                inner.mkdir(parents=True)
                stack.callback(shutil.rmtree, scratch, ignore_errors=True)
                stack.enter_context(_locked(scratch))
            yield inner
    except OSError as error:
        # Without a number it is one of our own sentences; what the caller misses is the caller's.
        if error.errno is None or (isinstance(error, FileNotFoundError) and scratch is not None):
            raise
        raise OSError(f"{folder}: cannot write the results here ({error.strerror or error})") from error
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # unless something is in it
                folder.rmdir()


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path of the same name that takes the place of `path` when the block ends well, and vanishes when it
    fails; missing folders are made."""
    path = Path(path)
    with aside(path.parent) as scratch:
        yield scratch / path.name
        os.replace(scratch / path.name, path)


@contextlib.contextmanager
def publishing(
    folder: str | os.PathLike[str],
    part: str,
    of: Mapping[str, str] | None = None,
    *,
    add: bool = False,
    scratch_in: str | os.PathLike[str] | None = None,
) -> Iterator[Path]:
    """Give a scratch folder whose files become a part of the result in `folder` when the block ends well.

    Files that an earlier run listed in this part and this one does not bring are deleted. Without files the part
    vanishes.

    Args:
        folder: of the result.
        part: name of the part in the manifest.
        of: what the result is of, by role; another one is not replaced.
        add: to the files that the part has.
        scratch_in: where the scratch folder lies if it is on the same file system; by default in `folder`.
    Raises:
        FileExistsError: if the folder holds this part of something else, or a file of that name which is not ours.
        OSError: in one sentence, if the folder cannot be written to.
        ValueError: if a file named like the manifest is none.
    """
    folder, of = Path(folder), dict(of or {})
    if scratch_in is None or (folder.is_dir() and os.stat(folder).st_dev != os.stat(scratch_in).st_dev):
        scratch_in = folder
    with aside(scratch_in) as scratch:
        yield scratch
        names = sorted(path.name for path in scratch.iterdir())
        if not names and part not in read_manifest(folder):
            return
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            manifest = read_manifest(folder)
            _check(folder, part, of, names, manifest)
            old = manifest.get(part, {}).get("files", [])
            _begin(folder, scratch, manifest, {part: {"of": of, "files": sorted({*old, *names}), "unfinished": True}})
            for name in old if not add else ():
                (folder / name).unlink(missing_ok=True)
            for name in names:
                os.replace(scratch / name, folder / name)
            files = sorted({*old, *names}) if add else names
            _end(folder, scratch, manifest, {part: {"of": of, "files": files}})


def retract(folder: str | os.PathLike[str], part: str) -> None:
    """Delete the files of a part, which is marked unfinished until it is published again; nothing if there is none."""
    folder = Path(folder)
    if not read_manifest(folder).get(part, {}).get("files"):
        return
    with aside(folder) as scratch, _locked(folder):
        manifest = read_manifest(folder)
        old = manifest.get(part, Part(of={}, files=[]))
        _begin(folder, scratch, manifest, {part: {"of": old["of"], "files": old["files"], "unfinished": True}})
        for name in old["files"]:
            (folder / name).unlink(missing_ok=True)
        _end(folder, scratch, manifest, {part: {"of": old["of"], "files": [], "unfinished": True}})


def list_files(folder: str | os.PathLike[str], part: str, names: Sequence[str], *, unfinished: bool = False) -> None:
    """Add files that are in a folder already to a part of its manifest, and say whether that part is unfinished."""
    folder = Path(folder)
    with aside(folder) as scratch, _locked(folder):
        manifest = read_manifest(folder)
        known = manifest.get(part, Part(of={}, files=[]))
        after = Part(of=known["of"], files=sorted({*known["files"], *names}))
        _end(folder, scratch, manifest, {part: Part(**after, unfinished=True) if unfinished else after})


def told(folder: Path, page: str) -> str:
    """The end of a summary: where the results are, and the page that shows them, if it is there."""
    return f"results in {folder}" + (f"; look at {folder / page}" if (folder / page).is_file() else "")


def check_place(folder: str | os.PathLike[str], part: str, names: Sequence[str]) -> None:
    """Refuse a place before the work for it begins; errors as in `publishing`.

    Args:
        folder, part: of the result, see `publishing`.
        names: of files that may come.
    """
    _check(Path(folder), part, {}, list(names), read_manifest(folder))


def _check(folder: Path, part: str, of: Mapping[str, str], names: list[str], manifest: Manifest) -> None:
    known = manifest.get(part, Part(of=dict(of), files=[]))
    if known["of"] != of:
        other = ", ".join(known["of"].values()) or "something else"
        raise FileExistsError(f"{folder} holds the result of {other}: take another output folder, or remove it")
    foreign = [name for name in names if name not in known["files"] and os.path.lexists(folder / name)]
    if foreign:
        raise FileExistsError(
            f"{folder / foreign[0]} is there already, and no manifest says that it may be replaced: "
            "take another output folder, or remove it"
        )


def _begin(folder: Path, scratch: Path, manifest: Manifest, change: Manifest) -> None:
    _write(scratch / MANIFEST, {**manifest, **change})
    os.replace(scratch / MANIFEST, folder / MANIFEST)


def _end(folder: Path, scratch: Path, manifest: Manifest, change: Manifest) -> None:
    after = {name: part for name, part in {**manifest, **change}.items() if part["files"] or "unfinished" in part}
    if after:
        _begin(folder, scratch, after, {})
    else:
        (folder / MANIFEST).unlink()


def _write(path: Path, manifest: Manifest) -> None:
    path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which ends with the process; file systems that have none go without."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough: a forked process may have it, too
        os.close(descriptor)


def _clear_leftovers(folder: Path) -> None:
    with os.scandir(folder) as entries:
        leftovers = [folder / entry.name for entry in entries if _ASIDE.fullmatch(entry.name)]
    for path in leftovers:
        if _is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(scratch: Path) -> bool:
    found = _ASIDE.fullmatch(scratch.name)
    if fcntl is None or found is None:
        return False
    try:
        # A lock may not reach over the network: another machine's folder must be old, too.
        if found[1] != _HOST and time.time() - scratch.stat().st_mtime < _DAY_S:
            return False
        descriptor = os.open(scratch, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
