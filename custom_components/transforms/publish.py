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

from ..data.label_names import read_label_names
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
from .page import PairPage, Writer
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
        like: the volume on whose grid the image is, if there is one.
    """

    name: str
    write: Callable[[Path], None]
    image: Tensor | None = None
    affine: np.ndarray | None = None
    like: Volume | None = None

    def meta_tensor(self) -> MetaTensor | None:
        """The image with its affine, if this is one."""
        if self.image is None or self.affine is None:
            return None
        if self.like is not None:
            return self.like.meta_tensor(self.image)
        return MetaTensor(self.image, affine=torch.from_numpy(self.affine))


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

    def __call__(self, pair: RegisteredPair, earlier: Report) -> Report:
        """Measures and files of the pair."""


def image_file(
    name: str, image: Tensor, affine: np.ndarray, *, like: Volume | None = None, dtype: np.dtype | None = None
) -> OutputFile:
    """An image (1, *S), or several (K, *S), as a NIfTI file; arguments as those of `write_image`."""
    return OutputFile(name, lambda path: write_image(path, image, affine, like=like, dtype=dtype), image, affine, like)


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
        page, origin: of the pair's page, if there are measures, see `PairPage`.
        label_names: path of a table of names of labels for the page, see `read_label_names`.
    Raises:
        ValueError: for another kind of page, or a table that is none.
    Returns (of the call): the item without the native volumes, with `registration`, a `Registration` in files.
    """

    def __init__(
        self,
        output_dir: str,
        reporters: Sequence[Reporter],
        *,
        brain_only: bool = False,
        page: str = "views",
        origin: Mapping[str, str] | None = None,
        label_names: str | None = None,
    ) -> None:
        self.output_dir, self.reporters, self.brain_only = output_dir, list(reporters), brain_only
        self.page = PairPage(page, origin, {} if label_names is None else read_label_names(label_names))

    def __call__(self, data: Data) -> Item:
        """Raises OSError: if the folder cannot be written to, or has another pair's result; ValueError: if the fields
        do not fit the grid."""
        return {**release(data), "registration": self.registration(data).save(self.output_dir).in_files()}

    def registration(self, data: Data) -> Registration:
        """What the reporters say about the pair, in memory; nothing is written until its `save`.

        Raises:
            ValueError: if the fields do not fit the grid.
        """
        pair, report = RegisteredPair.of(data, brain_only=self.brain_only), Report()
        with collecting() as warnings:
            for reporter in self.reporters:
                report = report | reporter(pair, report)
        warnings = list(dict.fromkeys([*str(data.get("warnings", "")).splitlines(), *warnings]))
        if report.metrics or warnings:
            report = report | Report({"warnings": warnings})
        page = partial(self.page.files, pair)
        publish = partial(_publish, report, page, _origins(pair), data.get("id"), data.get("request"))
        return Registration(
            pair.name, None, {}, report.metrics, report.captions, _arrays(pair, report), pair.transforms, publish
        )


def _publish(
    report: Report,
    page: Callable[..., Mapping[str, tuple[str, Writer]]],
    origins: Mapping[str, str],
    name: object,
    request: object,
    result: Registration,
    output: Path,
) -> Registration:
    """Write a result into a folder of results; the result with its files."""
    # A template that the run itself wrote into its folder is a result, too.
    inputs = {role: path for role, path in origins.items() if Path(path).resolve().parent != output.resolve()}
    item = {**inputs, "id": name}
    folder = output / result_name(output, item)
    result = result if has_id(item) else replace(result, id=folder.name)
    metrics = {**result.metrics, **({"id": result.id} if "id" in result.metrics else {})}
    files = dict(report.files)
    if metrics:
        files["metrics"] = OutputFile("metrics.json", partial(_write, metrics))
        names = {kind: file.name for kind, file in files.items()}
        shown = page(folder, metrics, result.captions, names)
        files |= {kind: OutputFile(*file) for kind, file in shown.items()}
    if request:
        names = {kind: file.name for kind, file in files.items()}
        content = {"request": request, "files": names, "captions": result.captions}
        files["request"] = OutputFile(REQUEST, partial(_write, content))
    retract(output, COHORT)
    with publishing(folder, PAIR, result_files(inputs), scratch_in=output) as scratch:
        for file in files.values():
            file.write(scratch / file.name)
    paths = {kind: folder / file.name for kind, file in files.items()}
    return replace(result, folder=folder, files=paths, metrics=metrics)


def _origins(pair: RegisteredPair) -> dict[str, str]:
    return {role: pair.volumes[role].origin for role in ("moving", "fixed")}


def _write(metrics: Metrics, path: Path) -> None:
    write_metrics(path, metrics)


def _arrays(pair: RegisteredPair, report: Report) -> dict[str, MetaTensor]:
    found = {kind: file.meta_tensor() for kind, file in report.files.items()}
    for name, tensor in pair.pred.items():
        # The inferer's "warped" is on the model grid; under that name the result has the native grid alone.
        if tensor.shape[1:] == pair.grid.size and name not in found and name != "warped":
            found[name] = MetaTensor(tensor, affine=torch.from_numpy(pair.grid.affine))
    return {name: image for name, image in found.items() if image is not None}
