"""The answer of a registration as a value: what was measured, and where its files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from monai.data import MetaTensor

from ..vocabulary import Entry, Metrics, Row


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
    """One registered pair.

    Args:
        id: name of the pair.
        folder: where its files are.
        files: path of each file, by kind: "warped", "transform", "metrics", "picture", ...
        metrics: measures by name, as in metrics.json, and the list `warnings`.
        captions: one line of text for each measure that a summary shows, in the order of the lines. A measure "x" may
            stand in `metrics` as "x_before" and "x_after".
        arrays: images by kind with their affines (RAS mm), shape (C, *S). Empty unless they were asked for.
    """

    id: str
    folder: Path
    files: Mapping[str, Path]
    metrics: Metrics
    captions: Mapping[str, str] = field(default_factory=dict, repr=False)
    arrays: Mapping[str, MetaTensor] = field(default_factory=dict, repr=False)

    @property
    def warped(self) -> MetaTensor:
        """The moving image on the fixed image's own grid, shape (1, *S)."""
        return self._array("warped")

    @property
    def ddf(self) -> MetaTensor:
        """The displacement (D, *S) on the model grid, in its voxels, without a pre-alignment."""
        return self._array("ddf")

    @property
    def warnings(self) -> list[str]:
        """What is doubtful about this result, one sentence each; see `notices`."""
        found = self.metrics.get("warnings")
        return list(found) if isinstance(found, list | tuple) else []

    def _array(self, name: str) -> MetaTensor:
        if name not in self.arrays:
            kept = ", ".join(self.arrays) or "none"
            raise ValueError(f"{self.id}: expected the array {name!r}, got {kept}; register with keep_arrays=True")
        return self.arrays[name]

    @property
    def row(self) -> Row:
        """The measures as a row of a table, with the path of the picture if there is one."""
        return {**self.metrics, **{key: str(self.files[key].absolute()) for key in ("picture",) if key in self.files}}

    def __str__(self) -> str:
        """The most important measures and the warnings, one a line, and where the files are."""
        lines = []
        for key, text in self.captions.items():
            if f"{key}_before" in self.metrics:
                values = self.metrics[f"{key}_before"], self.metrics[f"{key}_after"]
                lines.append(f"{text:44s} {values[0]:8.4f} -> {values[1]:.4f}")
            elif key in self.metrics:
                lines.append(f"{text:44s} {self.metrics[key]:8.4f}")
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join([*lines, "", f"results in {self.folder}"])
