"""Write what reporters say about a registered pair: all its files together, and nothing left of an earlier run."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from torch import Tensor

from ..evaluation.result import Registration
from ..files import write_metrics
from ..notices import collecting
from ..space.files import publish_together, write_displacement_field, write_image
from ..space.grids import Grid
from ..space.resampling import DisplacementField
from ..space.volumes import Volume
from ..vocabulary import Data, Item, Metrics
from .load import release
from .registered import RegisteredPair

logger = logging.getLogger(__name__)

MANIFEST = "files.json"


@dataclass(frozen=True)
class OutputFile:
    """A file that belongs into a pair's folder.

    Args:
        name: of the file.
        write: writes it to a path, whose ending is that of the name.
        image: for an image, its voxels (C, *S).
        affine: of the image (D + 1, D + 1), RAS mm.
    """

    name: str
    write: Callable[[Path], None]
    image: Tensor | None = None
    affine: np.ndarray | None = None


@dataclass(frozen=True)
class Report:
    """What a reporter says about a pair: measures by name, files by kind, and a caption for measures of the summary."""

    metrics: Metrics = field(default_factory=dict)
    files: Mapping[str, OutputFile] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)

    def __or__(self, other: Report) -> Report:
        return Report(
            {**self.metrics, **other.metrics}, {**self.files, **other.files}, {**self.captions, **other.captions}
        )


class Reporter(Protocol):
    """A pure function of a registered pair and of what earlier reporters said about it; it touches no disk."""

    def __call__(self, pair: RegisteredPair, earlier: Report) -> Report: ...


def image_file(
    name: str, image: Tensor, affine: np.ndarray, *, like: Volume | None = None, dtype: np.dtype | None = None
) -> OutputFile:
    """An image (1, *S), or several (K, *S), as a NIfTI file; arguments as those of `write_image`."""
    return OutputFile(name, lambda path: write_image(path, image, affine, like=like, dtype=dtype), image, affine)


def field_file(name: str, ddf: Tensor, grid: Grid) -> OutputFile:
    """A displacement field (D, *S), voxels of `grid`, as a file of ITK's dialect, in which it fades beyond its grid."""

    def write(path: Path) -> None:
        field = DisplacementField(ddf, grid).fading()
        write_displacement_field(path, field.ddf, field.grid)

    return OutputFile(name, write)


class Publishd(Transform):
    """Ask reporters about a registered pair and write what they say, into `output_dir/<id>/`.

    Expects one (decollated) item as `LoadPaird` made it, with `pred` holding the inferer's answer. Without an `id` in
    the item the folder is called <fixed>__<moving>. The files appear there all together or not at all. `files.json`
    lists them; files that an earlier run listed and this one did not write are deleted, and no others. The measures'
    `warnings` are those of loading the pair and of the reporters.

    Args:
        output_dir: folder of the run.
        reporters: asked in this order; each gets the pair and what the earlier ones said.
        brain_only: judge the pair where the fixed label map is not 0, instead of in the image's foreground.
        keep_arrays: also return the images and fields as arrays.
    Returns (of the call): the item without the native volumes, with `registration`, a `Registration`.
    """

    def __init__(
        self, output_dir: str, reporters: Sequence[Reporter], *, brain_only: bool = False, keep_arrays: bool = False
    ) -> None:
        self.output_dir, self.reporters = output_dir, list(reporters)
        self.brain_only, self.keep_arrays = brain_only, keep_arrays

    def __call__(self, data: Data) -> Item:
        """Raises OSError: if the folder cannot be written to; ValueError: if the fields do not fit the grid."""
        pair = RegisteredPair.of(data, brain_only=self.brain_only)
        report = Report()
        with collecting() as warnings:
            for reporter in self.reporters:
                report = report | reporter(pair, report)
        warnings = list(dict.fromkeys([*str(data.get("warnings", "")).splitlines(), *warnings]))
        if report.metrics or warnings:
            report = report | Report({"warnings": warnings})
            report = report | Report(files={"metrics": OutputFile("metrics.json", partial(_write, report.metrics))})
        folder = Path(self.output_dir) / pair.name
        publish(folder, report.files.values())
        files = {kind: folder / file.name for kind, file in report.files.items()}
        arrays = _arrays(pair, report) if self.keep_arrays else {}
        registration = Registration(pair.name, folder, files, report.metrics, report.captions, arrays)
        return {**release(data), "registration": registration}


def publish(folder: Path, files: Iterable[OutputFile]) -> None:
    """Write files into a folder, all or none, and delete those that its manifest lists and this call does not write.

    Raises:
        OSError: if the folder cannot be written to.
    """
    files = list(files)
    names = sorted(file.name for file in files)
    with publish_together(folder) as scratch:
        for file in files:
            file.write(scratch / file.name)
        (scratch / MANIFEST).write_text(json.dumps(names, indent=1) + "\n")
        # All are deleted before the new ones come: a run cut in between leaves files missing, but none of another run.
        for name in listed(folder):
            (folder / name).unlink(missing_ok=True)


def listed(folder: Path) -> list[str]:
    """The names in a folder's manifest; none if there is no manifest, or it is not one of ours."""
    try:
        names = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, ValueError):
        return []
    is_ours = isinstance(names, list) and all(isinstance(name, str) and _is_bare(name) for name in names)
    if not is_ours:
        logger.warning("%s: this is no list of files; nothing is deleted", folder / MANIFEST)
    return names if is_ours else []


def _is_bare(name: str) -> bool:
    # Nothing outside of the folder may ever be deleted.
    return name not in ("", ".", "..", MANIFEST) and not any(mark in name for mark in ("/", "\\", os.sep, "\0"))


def _write(metrics: Metrics, path: Path) -> None:
    write_metrics(path, metrics)


def _arrays(pair: RegisteredPair, report: Report) -> dict[str, MetaTensor]:
    found = {kind: (file.image, file.affine) for kind, file in report.files.items()}
    for name, tensor in pair.pred.items():
        # The inferer's "warped" is on the model grid; under that name the result has the native grid alone.
        if tensor.shape[1:] == pair.grid.size and name not in found and name != "warped":
            found[name] = (tensor, pair.grid.affine)
    return {
        name: MetaTensor(image, affine=torch.from_numpy(affine))
        for name, (image, affine) in found.items()
        if image is not None and affine is not None
    }
