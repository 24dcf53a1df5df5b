"""What a result was asked for with, so that a second run need not do it again."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

from ..data.names import safe_name
from ..evaluation.result import Registration
from ..results import PAIR, read_manifest
from ..vocabulary import Entry
from .publish import REQUEST

_NO_MATTER = {"output_dir", "device", "postprocessing#label_names"}


def request_of(item: Entry, bundle: Path, configs: list[str], settings: Mapping[str, object]) -> str:
    """A short text that changes with a pair's files, the configs, the settings and the weights.

    Of files it takes name, size and time of the last change.
    """
    files = [*configs, *sorted(map(str, (bundle / "models").glob("*")))]
    known = {key: value for key, value in settings.items() if key not in _NO_MATTER}
    files += [str(value) for value in (*item.values(), *known.values()) if isinstance(value, str | Path)]
    values = [{key: repr(value) for key, value in part.items()} for part in (item, known)]
    text = json.dumps([*values, sorted(map(file_state, files))])
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def file_state(path: str) -> list[object]:
    """A file's path, size and time of the last change; the path alone if there is none."""
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return [path]
    return [path, found.st_size, found.st_mtime_ns]


def finished(output: str, item: Entry, request: str) -> Registration | None:
    """The result of an item in a folder of results, if it is complete and answers this very request."""
    folder = Path(output) / safe_name(str(item["id"]))
    try:
        part = read_manifest(folder).get(PAIR, {})
        found = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    files = {kind: folder / name for kind, name in found["files"].items()}
    if part.get("unfinished") or found["request"] != request or not all(path.is_file() for path in files.values()):
        return None
    metrics = {key: math.nan if value is None else value for key, value in metrics.items()}
    return Registration(str(item["id"]), folder, files, metrics, found["captions"])
