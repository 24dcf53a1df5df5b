"""`morphzoo apply`: bring images, label maps and points through saved transforms."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from .workflow import as_list, words_of

if TYPE_CHECKING:
    import numpy as np

    from ..space.resampling import Step


@dataclass(frozen=True)
class Applied:
    """A file that was brought through transforms: its path, and the interpolation or the number of points."""

    path: Path
    how: str

    def __str__(self) -> str:
        return f"wrote {self.path} ({self.how})"


@dataclass(frozen=True)
class _Chain:
    """Transform files, in the order in which points go through them, and what was said about their images."""

    paths: list[str]
    reference: str | None
    moving: str | None
    dialect: str | None

    def steps(self, source: str | None = None) -> list[Step]:
        """All their steps; a source that is an image stands for the moving image if none was named."""
        from ..space.dialects import depends_on_moving

        if self.moving is None and source and depends_on_moving(self.paths, dialect=self.dialect):
            return self._read(source)
        return self._for_all

    @cached_property
    def _for_all(self) -> list[Step]:
        """The steps of every source, read once."""
        return self._read(self.moving)

    def _read(self, moving: str | None) -> list[Step]:
        from ..space.dialects import Frames, read_chain

        return read_chain(self.paths, Frames.of_files(self.reference, moving), dialect=self.dialect)


def apply(
    transform: str | Sequence[str],
    source: str | Sequence[str],
    output: str,
    *,
    reference: str | None = None,
    interpolation: str | Sequence[str] = "auto",
    fill: float | None = None,
    space: str | None = None,
    header_only: bool = False,
    moving: str | None = None,
    dialect: str | None = None,
) -> Applied | list[Applied]:
    """Apply a saved transform to images, label maps or lists of points.

    Images are resampled onto the reference; for that give the transform from reference to image (`transform.h5` brings
    the moving image into the fixed space, `inverse_transform.h5` the fixed one into the moving space). Points move the
    other way: `transform.h5` takes points of the fixed space to the moving space. Each file is written whole or not at
    all, and never over one that was given.

    Args:
        transform: file of ITK, ANTs (or the prefix of its pair), FSL, FreeSurfer, AFNI or X5; several, separated by
            commas, are applied to points in the order given.
        source: image (series, vectors, colours and complex numbers, too), label map, or points in mm: CSV or TSV with
            the columns x, y[, z], or 3D Slicer's fcsv or mrk.json. Several, separated by commas, go into a folder.
        output: image or points file to write, points in the format of the source; or, for several sources or if it ends
            with /, the folder that takes them under their own names (equal names with those of the folders that
            differ).
        reference: image whose grid the result takes; needed for images.
        interpolation: "linear", "nearest", "cubic", "label" (the most likely label), or ITK's and ANTs' names for them;
            "auto" is nearest for label maps, which are integers that neighbours share, and linear for others. One for
            all, or one for each source.
        fill: value outside the image; default: what most voxels on its faces hold, and air of a CT.
        space: world of the coordinates of points, RAS or LPS; default: what the file says, else RAS.
        header_only: keep the voxels and move the header of the image; for rigid transforms and similarities.
        moving: the image that was registered, for transforms that count from its corner (FSL, AFNI); default: the
            source. With it and the reference they move points, too.
        dialect: of the transform files: itk, ants, fsl, freesurfer, afni or x5; default: as their content says.
    Examples:
        `morphzoo apply out/fixed__moving/transform.h5 seg.nii.gz moved.nii.gz --reference fixed.nii.gz`
        `morphzoo apply out/fixed__moving/transform.h5 points.csv moved.csv`
    Returns:
        What was written, and how; a list for several sources.
    Raises:
        ValueError: if points and images come together, or an image comes without a reference.
    """
    from ..space.points import is_points_file

    chain = _Chain(as_list(transform), reference, moving, dialect)
    sources, output = as_list(source), str(output)
    several = len(sources) > 1 or output.endswith(("/", os.sep)) or Path(output).is_dir()
    targets = _targets(sources, output, several, [*chain.paths, *filter(None, (reference, moving))])
    modes = _modes(interpolation, len(sources))
    if {is_points_file(one) for one in sources} == {True, False}:
        raise ValueError("points move the other way than images: bring them along in a call of their own")
    if not is_points_file(sources[0]) and reference is None and not header_only:
        raise ValueError("an image needs --reference: the image whose grid the result takes")
    done = []
    for one, target, mode in zip(sources, targets, modes, strict=True):
        if is_points_file(one):
            how = _move_points(chain, one, target, space)
        elif header_only:
            how = _move_header(chain.steps(one), one, target)
        else:
            how = _resample(chain.steps(one), one, target, str(reference), mode, fill)
        done.append(Applied(Path(target), how))
    return done if len(sources) > 1 else done[0]


def _targets(sources: Sequence[str], output: str, several: bool, given: Sequence[str]) -> list[str]:
    """The files to write; none is one that was given.

    Raises:
        ValueError: also if a source is given twice, or an output has no ending of an image.
    """
    from ..data.names import distinct_names
    from ..space.dialects.ants import parts_of
    from ..space.points import is_points_file
    from ..space.writers import check_image_ending

    if len({os.path.realpath(one) for one in sources}) < len(sources) or not sources:
        raise ValueError(f"expected sources that differ, got {', '.join(sources) or 'none'}")
    if not several:
        targets = [output]
    else:
        if Path(output).exists() and not Path(output).is_dir():
            raise ValueError(f"{output}: several sources need a folder, and this is a file")
        names = distinct_names(sources)
        targets = [str(Path(output) / (names[one] + _ending(one))) for one in sources]
    # Of a prefix of ANTs' its files were given.
    inputs = {os.path.realpath(part) for one in (*sources, *given) for part in (parts_of(one) or [one])}
    for source, target in zip(sources, targets, strict=True):
        if os.path.realpath(target) in inputs:
            raise ValueError(f"{target}: this file was given; choose another output")
        if not is_points_file(source):
            check_image_ending(target)
    return targets


def _ending(source: str) -> str:
    """The ending of the result of a source: its own, if we write such files."""
    from ..space.points import is_points_file
    from ..space.writers import image_ending

    return Path(source).suffix if is_points_file(source) else image_ending(source) or ".nii.gz"


def _modes(interpolation: str | Sequence[str], number: int) -> list[str]:
    from ..space.warping import interpolation_named

    modes = [interpolation_named(one) for one in words_of(interpolation)]
    if len(modes) not in (1, number):
        raise ValueError(f"expected one interpolation or one for each of {number} sources, got {len(modes)}")
    return modes * (number if len(modes) == 1 else 1)


def _move_points(chain: _Chain, source: str, output: str, space: str | None) -> str:
    from ..space.points import move_points

    number, space = move_points(chain.steps(), source, output, space)
    return f"{number} points, {space} mm"


def _resample(steps: list[Step], source: str, output: str, reference: str, mode: str, fill: float | None) -> str:
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


def _move_header(steps: list[Step], source: str, output: str) -> str:
    """Write the image with its voxels as they are, in the place to which the transform's inverse brings it."""
    from dataclasses import replace

    from ..space.components import load_components, write_components
    from ..space.frames import refuse_shear
    from ..space.volumes import load_grid

    matrix = _matrix_3d(steps)
    image, place = load_components(source, 3), load_grid(source)
    affine = matrix @ place.file_affine
    try:
        refuse_shear(affine, source)
    except ValueError as error:
        raise ValueError(f"{source}: this transform shears the image, which no header can say; resample it") from error
    write_components(output, image.data, image, like=replace(place, file_affine=affine))
    return "header only"


def _matrix_3d(steps: list[Step]) -> np.ndarray:
    """The matrix (4, 4) by which a transform from fixed to moving points brings the moving image into the fixed world.

    Raises:
        ValueError: if it has a dense field.
    """
    import numpy as np

    from ..space.planes import embed
    from ..space.resampling import merged

    whole = merged(steps)
    matrix = whole[0] if whole else np.eye(4)
    if len(whole) > 1 or not isinstance(matrix, np.ndarray):
        raise ValueError("a header can move by an affine transform only, and this one has a dense field; resample")
    return np.linalg.inv(embed(matrix))
