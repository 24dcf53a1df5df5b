"""`morphzoo info`: what is installed here, which devices there are, and what the shipped weights are for."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .. import __version__
from .bundles import all_bundles, bundles_folder, find_bundle, version_of

PACKAGES = ("torch", "monai", "nibabel", "numpy", "pytorch-ignite", "itk", "matplotlib", "scipy", "nilearn")


@dataclass(frozen=True)
class Weights:
    """A shipped file of weights.

    Args:
        bundle, file: where it is.
        sidecar: what it is for: `spatial_dims`, `spacing` (mm), `contrasts`, `training_data`, `experimental`, ...
    """

    bundle: str
    file: str
    sidecar: Mapping[str, object]

    def __str__(self) -> str:
        told = self.sidecar
        words = [f"{told['spatial_dims']}-D"] if "spatial_dims" in told else []
        words += [f"{told['spacing']} mm"] if told.get("spacing") else []
        contrasts = told.get("contrasts")
        words += [", ".join(map(str, contrasts))] if isinstance(contrasts, list) else []
        words += ["experimental"] if told.get("experimental") else []
        return f"  {self.bundle + '/' + self.file:42s} {', '.join(words)}".rstrip()


@dataclass(frozen=True)
class Information:
    """What there is on this machine.

    Args:
        version: of MorphZoo.
        python, system: of the machine.
        packages: versions by name; None for one that is not installed.
        devices: names of what torch can compute on.
        folder: where the bundles are.
        bundles: their versions by name.
        weights: their files of weights.
    """

    version: str
    python: str
    system: str
    packages: Mapping[str, str | None]
    devices: tuple[str, ...]
    folder: Path
    bundles: Mapping[str, str]
    weights: tuple[Weights, ...]

    def __str__(self) -> str:
        packages = ", ".join(f"{name} {version or '(not installed)'}" for name, version in self.packages.items())
        lines = [f"morphzoo {self.version}, Python {self.python}, {self.system}", packages]
        lines += ["", "devices", *(f"  {name}" for name in self.devices)]
        lines += ["", f"bundles in {self.folder}"]
        lines += ["  " + ", ".join(f"{name} {version}" for name, version in self.bundles.items())]
        return "\n".join([*lines, "", "weights", *map(str, self.weights)])


def info(bundle: str | None = None) -> Information:
    """Tell what is installed, which devices there are, and what the weights of the bundles are for.

    Args:
        bundle: name or folder; None for all.
    Examples:
        `morphzoo info`
    Raises:
        ValueError: if there is no such bundle.
    """
    from ..weights import read_sidecar  # torch takes seconds

    folders = all_bundles() if bundle is None else [find_bundle(bundle)]
    files = [path for folder in folders for path in sorted((folder / "models").glob("*.pt"))]
    return Information(
        version=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages={name: _version(name) for name in PACKAGES},
        devices=_devices(),
        folder=bundles_folder(),
        bundles={folder.name: version_of(folder) for folder in folders},
        weights=tuple(Weights(path.parents[1].name, path.name, read_sidecar(path)) for path in files),
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> tuple[str, ...]:
    import torch

    found = [f"cpu: {os.cpu_count()} cores, {torch.get_num_threads()} threads"]
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        found.append(f"cuda:{number}: {card.name}, {card.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        found.append("mps")
    return tuple(found)
