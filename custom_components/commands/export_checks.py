"""What is checked before a bundle is exported: what its metadata names, and what its configs refer to."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pydoc import locate

from ..vocabulary import Config
from .bundles import PACKAGE

# Parts of the command, which works on a folder of bundles.
NOT_VENDORED = ("__main__", "commands")

_DEPENDENCIES = {"torch", "monai", "numpy", "ignite", *sys.stdlib_module_names}

# A file of weights in a config: of the bundle itself, or of a sibling.
WEIGHTS = re.compile(r"@bundle_root \+ '(?:/\.\./(\w+))?/models/([\w.]+)'")


def check_metadata(bundle: str, metadata: Config, inference: Config) -> None:
    """Raises ValueError: if the version is not in the changelog, or what the bundle needs is not named exactly."""
    keys = ["name", "version", "changelog", "required_packages_version", "network_data_format"]
    absent = [key for key in (*keys, "monai_version", "pytorch_version", "numpy_version") if key not in metadata]
    if absent:
        raise ValueError(f"{bundle}: metadata.json lacks {', '.join(absent)}")
    if metadata["version"] not in metadata["changelog"]:
        raise ValueError(f"{bundle}: version {metadata['version']} is not in the changelog of metadata.json")
    packages = metadata["required_packages_version"]
    for name, version in {**frameworks(metadata), **packages}.items():
        if not re.fullmatch(r"\d+(\.\d+)*", str(version)):
            raise ValueError(f"{bundle}: metadata.json must name one released version of {name}, got {version!r}")
    if not WEIGHTS.search(str(inference.get("weights"))):
        raise ValueError(
            f"{bundle}/configs/inference.json: expected weights \"$@bundle_root + '/models/NAME'\", "
            f"got {inference.get('weights')!r}"
        )


def frameworks(metadata: Config) -> dict[str, str]:
    """Versions by the names of the packages."""
    names = {"monai": "monai", "pytorch": "torch", "numpy": "numpy"}
    return {name: metadata[f"{key}_version"] for key, name in names.items()}


def own_weights(text: str) -> str:
    """The config with weights of siblings replaced by copies of them in the bundle."""
    return WEIGHTS.sub(lambda match: f"@bundle_root + '/models/{weights_name(*match.groups())}'", text)


def weights_name(sibling: str | None, name: str) -> str:
    """The name in an exported bundle of a file of weights, of the bundle itself or of a sibling."""
    return f"{sibling}_{name}" if sibling else name


def _names_code(key: str, value: str) -> bool:
    # An expression of a reference is a method of another component.
    return key == "_target_" and not value.startswith("$@")


def check_config(bundle: str, name: str, text: str, packages: Mapping[str, str]) -> None:
    """Raises ValueError: if a config names a path of this machine, or code that does not travel with the bundle."""
    for key, value in _strings(json.loads(text)):
        if re.search(r"^[/~]|^\w:[/\\]|file:/|(?<!\+ )['\"][/~]\w|expanduser|__import__", value):
            raise ValueError(f"{bundle}/configs/{name}: expected paths relative to the bundle, got {value!r}")
        if "/../" in own_weights(value):
            raise ValueError(f"{bundle}/configs/{name}: {value!r} is outside of the bundle")
        imported = re.match(r"\$(?:from ([\w.]+) )?import (.+)", value)
        targets = [value] * _names_code(key, value)
        if imported:
            words = [word.split()[0] for word in imported[2].split(",")]  # without "as name"
            targets = [".".join(filter(None, (imported[1], word))) for word in words]
        for target in targets:
            root, _, inner = target.partition(".")
            if root == PACKAGE.name and (locate(target) is None or inner.partition(".")[0] in NOT_VENDORED):
                raise ValueError(f"{bundle}/configs/{name}: there is no {target} in an exported bundle")
            if ("." in target or imported) and root not in {PACKAGE.name, *_DEPENDENCIES, *packages}:
                raise ValueError(
                    f"{bundle}/configs/{name} names {target}, which is neither in the package nor required"
                )


def _strings(config: object, key: str = "") -> Iterator[tuple[str, str]]:
    """All strings of a config, with the nearest key above each."""
    if isinstance(config, str):
        yield key, config
    elif isinstance(config, list):
        yield from (item for value in config for item in _strings(value, key))
    elif isinstance(config, dict):
        yield from (item for name, value in config.items() for item in _strings(value, name))
