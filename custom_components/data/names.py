"""Names and files of pairs, for caches on disk."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path


def pair_files(item: Mapping[str, object]) -> list[str]:
    """The files of a pair, moving and fixed."""
    files = []
    for role in ("moving", "fixed"):
        keys = (f"image_path_{role}", f"{role}_path", f"label_path_{role}")
        files.append(str(next((item[key] for key in keys if item.get(key)), role)))
    return files


def pair_paths(item: Mapping[str, object]) -> list[str]:
    """The files of a pair, moving and fixed, by name and folder."""
    return ["/".join(Path(file).parts[-2:]) for file in pair_files(item)]


def pair_digest(item: Mapping[str, object]) -> str:
    """A short name for the whole paths of a pair."""
    return hashlib.sha256("\n".join(pair_files(item)).encode()).hexdigest()[:8]


def pair_name(item: Mapping[str, object]) -> str:
    names = [re.sub(r"\.(nii(\.gz)?|mg[zh]|nrrd|mha)$", "", os.path.basename(path)) for path in pair_paths(item)]
    return "__".join(names)
