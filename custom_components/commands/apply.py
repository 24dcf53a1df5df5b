"""`morphzoo apply`: bring images, label maps and points through saved transforms."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .workflow import as_list

if TYPE_CHECKING:
    from ..space.resampling import Step


@dataclass(frozen=True)
class Applied:
    """A file that was brought through transforms: its path, and the interpolation or the number of points."""

    path: Path
    how: str

    def __str__(self) -> str:
        return f"wrote {self.path} ({self.how})"


def apply(
    transform: str | Sequence[str],
    source: str,
    output: str,
    *,
    reference: str | None = None,
    interpolation: str = "auto",
    space: str = "RAS",
) -> Applied:
    """Apply a saved transform to an image, a label map or a list of points.

    Images are resampled onto the reference; for that give the transform from reference to image (`transform.h5` brings
    the moving image into the fixed space, `inverse_transform.h5` the fixed one into the moving space). Points move the
    other way: `transform.h5` takes points of the fixed space to the moving space.

    Args:
        transform: ITK transform file or displacement field; several, separated by commas, are applied to points in
            the order given.
        source: image, label map, or CSV file with the columns x, y[, z] in mm.
        output: NIfTI or CSV file to write.
        reference: image whose grid the result takes; needed for images.
        interpolation: "linear", "nearest", or "auto": nearest for integer files of few values (label maps).
        space: world of the CSV's coordinates, RAS or LPS.
    Returns:
        What was written, and how.
    """
    from ..space.files import read_transform, write_image
    from ..space.resampling import resample
    from ..space.volumes import load_image, load_labels

    steps = [step for path in as_list(transform) for step in read_transform(path)]
    if str(source).endswith(".csv"):
        number = _apply_to_points(steps, source, output, space)
        return Applied(Path(output), f"{number} points, {space} mm")
    if reference is None:
        raise ValueError("an image needs --reference: the image whose grid the result takes")
    target = load_image(reference)
    is_label = interpolation == "nearest" or (interpolation == "auto" and _looks_like_labels(source))
    volume = load_labels(source) if is_label else load_image(source)
    result = resample(volume.data, volume.affine, target.grid, steps=steps, mode="nearest" if is_label else "linear")
    extra = {"dtype": volume.file_dtype} if is_label else {}
    write_image(output, result, target.affine, like=target, **extra)
    return Applied(Path(output), "nearest" if is_label else "linear")


def _looks_like_labels(path: str) -> bool:
    from ..space.volumes import load_labels

    try:
        volume = load_labels(path)
    except ValueError:
        return False
    return not str(volume.file_dtype).startswith("float") and len(volume.data.unique()) <= 128


def _apply_to_points(steps: list[Step], source: str, output: str, space: str) -> int:
    """Write the moved points; how many there are."""
    import numpy as np

    from ..files import replacing
    from ..space.resampling import transform_points_world

    if space not in ("RAS", "LPS"):
        raise ValueError(f"expected space RAS or LPS, got {space!r}")
    with open(source, newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in ("x", "y", "z") if rows and name in rows[0]]
    if len(columns) < 2:
        raise ValueError(f"{source}: expected a CSV file with the columns x, y and z in mm")
    try:
        points = np.array([[float(row[name]) for name in columns] for row in rows])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: a coordinate is not a number ({error})") from error
    flip = np.array([-1.0, -1.0, 1.0][: len(columns)]) if space == "LPS" else np.ones(len(columns))
    moved = transform_points_world(points * flip, steps) * flip
    with replacing(output) as path, open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for row, point in zip(rows, moved, strict=True):
            writer.writerow({**row, **{name: f"{value:.6f}" for name, value in zip(columns, point, strict=True)}})
    return len(rows)
