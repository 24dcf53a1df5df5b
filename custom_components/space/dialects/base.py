"""What a dialect is, and where the images lie from whose corners some of them count."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..grids import Grid
from ..resampling import DisplacementField, Step, dense_field, spatial_dims_of_steps
from ..volumes import Volume, load_grid


@dataclass(frozen=True)
class Frames:
    """Where the two images of a transform lie, as far as it is known.

    Args:
        fixed, moving: the images; their voxels do not matter.
    """

    fixed: Volume | None = None
    moving: Volume | None = None

    @classmethod
    def of_files(
        cls, fixed: str | os.PathLike[str] | None = None, moving: str | os.PathLike[str] | None = None
    ) -> Frames:
        """Of image files. Errors as `load_grid`."""
        return cls(*(load_grid(path) if path else None for path in (fixed, moving)))

    def swapped(self) -> Frames:
        """Of the way back."""
        return Frames(self.moving, self.fixed)

    def both(self, path: str | os.PathLike[str]) -> tuple[Grid, Grid]:
        """The grids of the fixed and the moving image in their files, of three axes.

        Raises:
            ValueError: if one of them is not known.
        """
        if self.fixed is None or self.moving is None:
            raise ValueError(
                f"{path}: this kind of transform counts from the corners of its images; name both, or convert it into "
                "another kind first (morphzoo convert --moving --fixed)"
            )
        return self.fixed.grid_in_file, self.moving.grid_in_file

    def whole(self, path: str | os.PathLike[str], steps: Sequence[Step]) -> DisplacementField:
        """A transform as one dense field on the fixed image's grid.

        Raises:
            ValueError: if the fixed image is not known.
        """
        if self.fixed is None:
            raise ValueError(f"{path}: a dense field needs the fixed image, whose grid it takes (--fixed)")
        is_3d = spatial_dims_of_steps(steps) == 3
        return dense_field(steps, self.fixed.grid_in_file if is_3d else self.fixed.grid)


@dataclass(frozen=True)
class Dialect:
    """How a tool keeps transforms; all functions take a path, and transforms from fixed to moving points.

    Args:
        name: of the tool.
        matrix, field: endings of the files that hold a single matrix, or a dense field and whatever it can express.
        recognises: whether a file that is there is of this dialect.
        read: the steps of a file.
        write: writes merged steps, to a path that has one of the endings.
        in_2d: whether transforms of 2-D points can be written.
        needs: a package without which nothing can be written.
    """

    name: str
    matrix: tuple[str, ...]
    field: tuple[str, ...]
    recognises: Callable[[str], bool]
    read: Callable[[str, Frames], list[Step]]
    write: Callable[[Path, list[Step], Frames], None]
    in_2d: bool = False
    needs: str | None = None


def one_matrix(steps: Sequence[Step], path: str | os.PathLike[str]) -> np.ndarray:
    """The matrix that is a whole transform.

    Raises:
        ValueError: if it has a dense field.
    """
    matrix = steps[0]
    if len(steps) != 1 or not isinstance(matrix, np.ndarray):
        raise ValueError(f"{path}: files of this kind hold a matrix, and the transform has a dense field")
    return matrix


def numbers_in(text: str) -> list[list[float]] | None:
    """The rows of numbers of a text without its comments (#); None if there is anything else in it."""
    lines = [line.partition("#")[0].split() for line in text.splitlines()]
    try:
        return [[float(word) for word in line] for line in lines if line]
    except ValueError:
        return None


def mapped(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A matrix (4, 4) applied to points (3, *S)."""
    return np.einsum("ij,j...->i...", matrix[:3, :3], points) + matrix[:3, 3].reshape(3, 1, 1, 1)
