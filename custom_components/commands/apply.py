"""`morphzoo apply`: bring images, label maps and points through saved transforms."""

from __future__ import annotations

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
    fill: float | None = None,
    space: str | None = None,
) -> Applied:
    """Apply a saved transform to an image, a label map or a list of points.

    Images are resampled onto the reference; for that give the transform from reference to image (`transform.h5` brings
    the moving image into the fixed space, `inverse_transform.h5` the fixed one into the moving space). Points move the
    other way: `transform.h5` takes points of the fixed space to the moving space.

    Args:
        transform: ITK transform file or displacement field; several, separated by commas, are applied to points in
            the order given.
        source: image (series, vectors, colours and complex numbers, too), label map, or points in mm: CSV or TSV with
            the columns x, y[, z], or 3D Slicer's fcsv or mrk.json.
        output: image or points file to write; points in the format of the source.
        reference: image whose grid the result takes; needed for images.
        interpolation: "linear", "nearest", "cubic", "label" (the most likely label), or ITK's and ANTs' names for them;
            "auto" is nearest for label maps, which are integers that neighbours share, and linear for others.
        fill: value outside the image; default: what most voxels on its faces hold, and air of a CT.
        space: world of the coordinates of points, RAS or LPS; default: what the file says, else RAS.
    Returns:
        What was written, and how.
    """
    from ..space.dialects import read_transform
    from ..space.points import is_points_file, move_points
    from ..space.warping import interpolation_named
    from ..space.writers import check_image_ending

    mode = interpolation_named(interpolation)
    if is_points_file(source):
        steps = [step for path in as_list(transform) for step in read_transform(path)]
        number, space = move_points(steps, source, output, space)
        return Applied(Path(output), f"{number} points, {space} mm")
    check_image_ending(output)
    if reference is None:
        raise ValueError("an image needs --reference: the image whose grid the result takes")
    steps = [step for path in as_list(transform) for step in read_transform(path)]
    return Applied(Path(output), _apply_to_image(steps, source, output, reference, mode, fill))


def _apply_to_image(steps: list[Step], source: str, output: str, reference: str, mode: str, fill: float | None) -> str:
    """Write the resampled image; by which interpolation."""
    from ..space.components import load_components, write_components
    from ..space.resampling import spatial_dims_of_steps
    from ..space.volumes import load_grid
    from ..space.warping import looks_like_labels, warp_components

    d = spatial_dims_of_steps(steps)
    image, target = load_components(source, d), load_grid(reference)
    grid = target.grid_in_file if d == 3 else target.grid
    if mode == "auto":
        mode = "nearest" if image.says_labels or looks_like_labels(image.data) else "linear"
    write_components(output, warp_components(image, grid, steps, mode=mode, fill=fill), image, like=target)
    return mode
