"""What a result is made with, as its page tells it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path


def origin_of(bundle: Path, overlays: Sequence[str], settings: Mapping[str, object]) -> dict[str, str]:
    """The bundle with its version, and the options with which `morphzoo register` does the same."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    words = ["--bundle", bundle.name]
    for path in overlays:
        words += ["--overlay", path]
    for name, value in settings.items():
        if value is not None and name not in ("output_dir", "device"):
            words += [f"--{name}", ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]
    return {"bundle": f"{bundle.name} {metadata['version']}", "options": shlex.join(words)}
