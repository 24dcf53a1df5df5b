"""Write what reporters say about a registered pair: all its files together, and nothing left of an earlier run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from torch import Tensor

from ..data.names import has_id, result_files, result_name
from ..evaluation.cohort import COHORT
from ..evaluation.result import Registration
from ..files import write_metrics
from ..notices import collecting
from ..results import PAIR, publishing, retract
from ..space.dialects.vectors import write_displacement_field
from ..space.files import write_image
from ..space.volumes import Volume
from ..vocabulary import Data, Item, Metrics
from .registered import RegisteredPair
from .scan_paths import release

REQUEST = "request.json"  # what a result was asked for with, if the item says so


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


def model_image_file(name: str, image: Tensor, pair: RegisteredPair) -> OutputFile:
    """An image (1, *S) on the model grid of a pair as a NIfTI file."""

    def write(path: Path) -> None:
        grid = pair.grid_in_files
        write_image(path, image.reshape(1, *grid.size), grid.affine)

    return OutputFile(name, write, image, pair.grid.affine)


def field_file(name: str, ddf: Tensor, pair: RegisteredPair) -> OutputFile:
    """A field (D, *S) on the model grid of a pair as a file of ITK's dialect, in which it fades beyond its grid."""

    def write(path: Path) -> None:
        field = pair.field_in_files(ddf)
        write_displacement_field(path, field.ddf, field.grid)

    return OutputFile(name, write)


class Publishd(Transform):
    """Ask reporters about a registered pair and write what they say, into `output_dir/<id>/`.

    Expects one (decollated) item as `LoadPaird` made it, with `pred` holding the inferer's answer. Without an `id` in
    the item the folder is called <fixed>__<moving>, see `result_name`. An earlier result of the same pair is replaced,
    one of another pair never; see `results` for the manifest `files.json`. The tables of an earlier cohort in
    `output_dir` go: they would not fit the pair. The measures' `warnings` are those of loading the pair and of the
    reporters. An item's `request`, a text, is kept with the result.

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
        """Raises OSError: if the folder cannot be written to, or has another pair's result; ValueError: if the fields
        do not fit the grid."""
        pair = RegisteredPair.of(data, brain_only=self.brain_only)
        inputs = self._inputs(pair)
        name = result_name(self.output_dir, {**inputs, "id": data.get("id")})
        pair = pair if has_id(data) else replace(pair, name=name)
        report = Report()
        with collecting() as warnings:
            for reporter in self.reporters:
                report = report | reporter(pair, report)
        warnings = list(dict.fromkeys([*str(data.get("warnings", "")).splitlines(), *warnings]))
        if report.metrics or warnings:
            report = report | Report({"warnings": warnings})
            report = report | Report(files={"metrics": OutputFile("metrics.json", partial(_write, report.metrics))})
        if data.get("request"):
            names = {kind: file.name for kind, file in report.files.items()}
            content = {"request": data["request"], "files": names, "captions": report.captions}
            report = report | Report(files={"request": OutputFile(REQUEST, partial(_write, content))})
        folder = Path(self.output_dir) / name
        retract(self.output_dir, COHORT)
        with publishing(folder, PAIR, result_files(inputs), scratch_in=self.output_dir) as scratch:
            for file in report.files.values():
                file.write(scratch / file.name)
        files = {kind: folder / file.name for kind, file in report.files.items()}
        arrays = _arrays(pair, report) if self.keep_arrays else {}
        registration = Registration(pair.name, folder, files, report.metrics, report.captions, arrays)
        return {**release(data), "registration": registration}

    def _inputs(self, pair: RegisteredPair) -> dict[str, str]:
        paths = {role: pair.volumes[role].path for role in ("moving", "fixed")}
        # A template that the run itself wrote into its folder is a result, too.
        own = Path(self.output_dir).resolve()
        return {role: path for role, path in paths.items() if Path(path).resolve().parent != own}


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
