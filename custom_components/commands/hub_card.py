"""An exported bundle for the Hugging Face Hub: its page is the card, with what the hub reads in a header."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from ..vocabulary import Config

_PAGE = "docs/README.md"


def hub_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of an exported bundle as the hub takes them: README.md with a header in place of docs/README.md.

    `monai.bundle push_to_hf_hub` writes a header of its own over README.md if there is docs/README.md, without figures.

    Args:
        files: of the bundle, by their paths in it.
    """
    metadata = json.loads(files["configs/metadata.json"])
    sidecars = {
        PurePosixPath(path).stem: json.loads(content)
        for path, content in files.items()
        if re.fullmatch(r"models/\w+\.json", path) and f"{path[:-5]}.pt" in files
    }
    page = files[_PAGE].decode()
    for path in files:
        if path.startswith("docs/"):
            page = page.replace(f"]({path[5:]})", f"]({path})")
    others = {path: content for path, content in files.items() if path != _PAGE}
    return {**others, "README.md": (card_header(metadata, sidecars) + page).encode()}


def card_header(metadata: Config, sidecars: Mapping[str, Config]) -> str:
    """What the hub reads: licence, tags, version and figures, in YAML between two lines of dashes.

    Args:
        metadata: the bundle's metadata.json.
        sidecars: of its files of weights, by their names.
    """
    header: Config = {"license": "apache-2.0", "library_name": "monai", "tags": _tags(metadata, sidecars)}
    header["version"] = metadata["version"]
    results = [
        _result(metadata, name, data, figures)
        for name, sidecar in sidecars.items()
        for data, figures in sidecar.get("figures", {}).items()
    ]
    if results:
        header["model-index"] = [{"name": metadata["name"], "results": results}]
    # A value in JSON is one in YAML, too.
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items()), "---", "", ""])


def _tags(metadata: Config, sidecars: Mapping[str, Config]) -> list[str]:
    segments = metadata.get("abilities", {}).get("input") == "image"
    tags = ["monai", "medical", "image-segmentation" if segments else "image-registration"]
    tags += sorted({f"{sidecar['spatial_dims']}d" for sidecar in sidecars.values()})
    tags += sorted({str(contrast).lower() for sidecar in sidecars.values() for contrast in sidecar["contrasts"] or ()})
    return tags + ["experimental"] * bool(metadata.get("experimental"))


def _result(metadata: Config, weights: str, data: str, figures: Mapping[str, float]) -> Config:
    """The figures that some weights reach on some data."""
    metrics = [
        {"type": name.split("_")[0], "name": f"{name} ({weights}.pt)", "value": value}
        for name, value in figures.items()
    ]
    task = {"type": "image-registration", "name": metadata["task"]}
    return {"task": task, "dataset": {"type": data, "name": data.replace("_", " ")}, "metrics": metrics}
