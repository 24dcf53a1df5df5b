"""The answer of a registration as a value: what was measured, and where its files are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
from monai.data import MetaTensor

from ..results import told
from ..space.memory_images import read_meta_tensor, to_itk, to_nibabel
from ..space.readers import Itk
from ..space.transform import Transform
from ..vocabulary import Entry, Metrics, Row

MEASURED = ("before", "aligned", "after")  # by the headers, after the linear stages, through the whole transform


@dataclass(frozen=True)
class Failure:
    """A pair that could not be registered.

    Args:
        id: name of the pair.
        item: with the paths of its files.
        reason: one sentence.
    """

    id: str
    item: Entry
    reason: str

    @property
    def row(self) -> Row:
        """A row of the cohort's table: the pair, and why it has no measures."""
        paths = {role: str(self.item[role]) for role in ("moving", "fixed", "image") if self.item.get(role)}
        return {"id": self.id, **paths, "failure": self.reason}


@dataclass(frozen=True)
class Registration:
    """One registered pair: in memory, in files, or both. What is not in memory is read from the files.

    Args:
        id: name of the pair.
        folder: where its files are; None until it is saved.
        files: path of each file, by kind: "warped", "transform", "metrics", "picture", ...
        metrics: measures by name, as in metrics.json, and the list `warnings`.
        captions: one line of text for each measure that a summary shows, in the order of the lines. A measure "x" may
            stand in `metrics` as "x_before" (as the headers place the images), "x_aligned" (after the linear stages
            alone) and "x_after".
        arrays: images by kind with their affines (RAS mm), shape (C, *S).
        transforms: "transform" and, if the inverse is known, "inverse_transform".
        publish: writes this result into a folder of results; None for one that was read from files.
    """

    id: str
    folder: Path | None
    files: Mapping[str, Path]
    metrics: Metrics
    captions: Mapping[str, str] = field(default_factory=dict, repr=False)
    arrays: Mapping[str, MetaTensor] = field(default_factory=dict, repr=False)
    transforms: Mapping[str, Transform] = field(default_factory=dict, repr=False)
    publish: Callable[[Registration, Path], Registration] | None = field(default=None, repr=False)

    @property
    def warped(self) -> MetaTensor:
        """The moving image on the fixed image's own grid, shape (C, *S)."""
        return self._array("warped")

    @property
    def warped_label(self) -> MetaTensor:
        """The moving label map on the fixed image's own grid, shape (1, *S)."""
        return self._array("warped_label")

    @property
    def transform(self) -> Transform:
        """The map of fixed points to moving ones, which warps the moving image; its inverse is known."""
        return self._transform("transform")

    @property
    def inverse(self) -> Transform:
        """The map of moving points to fixed ones, which warps the fixed image onto the moving one."""
        return self._transform("inverse_transform")

    @property
    def field(self) -> MetaTensor:
        """How far the whole transform moves the voxel centres of the fixed image, (D, *S), RAS mm."""
        return self.transform.displacement(self.warped)

    @property
    def ddf(self) -> MetaTensor:
        """The deformable part alone: the displacement (D, *S) on the model grid, in its voxels."""
        return self._array("ddf")

    @property
    def warnings(self) -> list[str]:
        """What is doubtful about this result, one sentence each; see `notices`."""
        found = self.metrics.get("warnings")
        return list(found) if isinstance(found, list | tuple) else []

    def save(self, folder: str | os.PathLike[str]) -> Registration:
        """Write everything into FOLDER/<id>, as the command does; the result with its files.

        Raises:
            OSError: if nothing can be written there, or it holds the result of something else.
            ValueError: if this result was itself read from files.
        """
        if self.publish is None:
            raise ValueError(f"{self.id}: this result was read from {self.folder}; copy that folder")
        return self.publish(self, Path(folder))

    def to_nibabel(self, name: str = "warped") -> nib.Nifti1Image:
        """One of the images as nibabel's, channels last."""
        return to_nibabel(self._array(name))

    def to_itk(self, name: str = "warped") -> Itk:
        """One of the images as ITK's. Raises ImportError: if `itk` is not installed."""
        return to_itk(self._array(name))

    def in_files(self) -> Registration:
        """The same without what is in memory."""
        return replace(self, arrays={}, transforms={}, publish=None)

    def _array(self, name: str) -> MetaTensor:
        if name in self.arrays:
            return self.arrays[name]
        if name in self.files and self.files[name].name.endswith(".nii.gz"):
            return read_meta_tensor(self.files[name])
        raise ValueError(f"{self.id}: there is no {name!r} in this result; there are {self._kinds() or 'no images'}")

    def _transform(self, name: str) -> Transform:
        if name in self.transforms:
            return self.transforms[name]
        if name in self.files:
            return Transform.read(self.files[name])
        raise ValueError(f"{self.id}: there is no {name!r} in this result; there are {self._kinds() or 'no files'}")

    def _kinds(self) -> str:
        return ", ".join(dict.fromkeys([*self.arrays, *self.transforms, *self.files]))

    @property
    def row(self) -> Row:
        """The measures as a row of a table, with the paths of the picture and of the report if there are."""
        return {**self.metrics, **self._paths({"picture": "picture", "report": "page"})}

    @property
    def shown(self) -> Row:
        """The row as the page of a cohort takes it, with the path of its views."""
        return {**self.row, **self._paths({"views": "views"})}

    def _paths(self, kinds: Mapping[str, str]) -> dict[str, str]:
        return {name: str(self.files[kind].absolute()) for name, kind in kinds.items() if kind in self.files}

    def __str__(self) -> str:
        """The most important measures and the warnings, one a line, and where the files are."""
        lines = []
        for key, text in self.captions.items():
            names = [name for name in (key, *(f"{key}_{stage}" for stage in MEASURED)) if name in self.metrics]
            if names:
                first, *others = (self.metrics[name] for name in names)
                lines.append(f"{text:44s} {first:8.4f}" + "".join(f" -> {value:.4f}" for value in others))
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join([*lines, *([] if self.folder is None else ["", told(self.folder, "report.html")])])
