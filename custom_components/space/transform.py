"""A spatial transform as a value: it moves points, warps images, composes, inverts, and is saved.

Convention: RAS millimetres. A transform phi maps points; images go the other way, as in ITK: warped(x) = image(phi(x)).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..fields import invert
from .components import load_components
from .dialects import read_transform, write_transform
from .dialects.base import Frames
from .memory_images import Image, source_of
from .resampling import DisplacementField, Step, dense_field, spatial_dims_of_steps, transform_points_world
from .volumes import Volume, load_grid
from .warping import interpolation_named, looks_like_labels, warp_components

if TYPE_CHECKING:
    from monai.data import MetaTensor

_RESIDUAL = 0.5  # voxels by which a numerical inverse may miss


@dataclass(frozen=True, eq=False)
class Transform:
    """A map of points of one space to another's, with its inverse where that is known.

    That of a registration takes points of the fixed image to the moving one. So `warp` brings the moving image onto the
    fixed image's grid. `outer @ inner` is phi_outer o phi_inner: the inner map is applied first.

    Args:
        steps: matrices (D + 1, D + 1) and dense fields, in the order in which they apply.
        back: those of the inverse map, if it is known.
    """

    steps: tuple[Step, ...]
    back: tuple[Step, ...] | None = None

    ndim = 0  # with `item`, MONAI's decollating takes it for one thing, and hands it through

    def item(self) -> Transform:
        """Itself."""
        return self

    def __repr__(self) -> str:
        kinds = ["field" if isinstance(step, DisplacementField) else "matrix" for step in self.steps]
        return f"Transform({', '.join(kinds)})"

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        *,
        fixed: Image | None = None,
        moving: Image | None = None,
        dialect: str | None = None,
    ) -> Transform:
        """A transform of a file of any tool.

        Args:
            path: of the file.
            fixed, moving: the images it maps from and to, for dialects that count from their corners (FSL).
            dialect: by default what the file's name and content say.
        Raises: as `dialects.read_transform`.
        """
        return cls(tuple(read_transform(path, _frames(fixed, moving), dialect=dialect)))

    @property
    def spatial_dims(self) -> int:
        """Whether it moves 2-D or 3-D points."""
        return spatial_dims_of_steps(self.steps)

    @property
    def matrix(self) -> np.ndarray | None:
        """The whole map as one matrix (D + 1, D + 1); None if it has a dense field."""
        result = np.eye(self.spatial_dims + 1)
        for step in self.steps:
            if isinstance(step, DisplacementField):
                return None
            result = step @ result
        return result

    def points(self, points: np.ndarray | Tensor | Sequence[Sequence[float]]) -> np.ndarray:
        """Points (N, D), RAS mm, where the map takes them.

        Raises:
            ValueError: if they have another shape or are not finite.
        """
        found = np.asarray(points, dtype=np.float64)
        if found.ndim != 2 or found.shape[1] != self.spatial_dims:
            raise ValueError(f"expected points (N, {self.spatial_dims}) in RAS mm, got shape {found.shape}")
        if not np.isfinite(found).all():
            raise ValueError("expected finite points, got some that are not")
        return transform_points_world(found, self.steps)

    def warp(self, image: Image, like: Image, *, interpolation: str = "auto", fill: float | None = None) -> MetaTensor:
        """An image of the space that the map leads to, on a grid of the space that it comes from.

        Args:
            image: whatever `source_of` takes, of any number of channels.
            like: an image on the grid that is wanted; its voxels do not matter.
            interpolation: "linear", "nearest", "cubic", "label" (the most likely one), or ITK's names for them; "auto"
                is nearest for label maps and linear for others.
            fill: value outside the image; default: its background.
        Returns:
            Shape (C, *S), of the image's type for labels, else float32.
        """
        mode, d = interpolation_named(interpolation), self.spatial_dims
        components, target = load_components(source_of(image, "image"), d), _grid_of(like)
        if mode == "auto":
            is_labels = components.says_labels or looks_like_labels(components.data)
            mode = "nearest" if is_labels else "linear"
        grid = target.grid_in_file if d == 3 else target.grid
        warped = warp_components(components, grid, self.steps, mode=mode, fill=fill)
        return target.meta_tensor(torch.from_numpy(np.ascontiguousarray(warped)))

    def displacement(self, like: Image) -> MetaTensor:
        """How far the map moves the voxel centres of an image, (D, *S), RAS mm."""
        target = _grid_of(like)
        grid = target.grid_in_file if self.spatial_dims == 3 else target.grid
        ddf = dense_field(self.steps, grid).ddf
        linear = torch.from_numpy(grid.affine[:-1, :-1]).to(ddf.dtype)
        return target.meta_tensor((linear @ ddf.flatten(1)).view_as(ddf))

    def __matmul__(self, inner: Transform) -> Transform:
        """The composition; its inverse is known if both inverses are.

        Raises:
            ValueError: if one moves 2-D points and the other 3-D ones.
        """
        known = self.back is not None and inner.back is not None
        back = (*self.back, *inner.back) if known else None  # type: ignore[misc]
        result = Transform((*inner.steps, *self.steps), back)
        spatial_dims_of_steps(result.steps)
        return result

    def inverse(self) -> Transform:
        """The inverse map: the one that is known, else matrices are inverted, and fields by fixed-point iteration.

        Raises:
            ValueError: if a field folds or stretches so much that it has no inverse.
        """
        if self.back is not None:
            return Transform(self.back, self.steps)
        return Transform(tuple(_inverted(step) for step in reversed(self.steps)), self.steps)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        fixed: Image | None = None,
        moving: Image | None = None,
        dialect: str | None = None,
    ) -> None:
        """Write the map as a tool keeps it: ITK's .h5 holds every one, other files fields or matrices alone.

        Args:
            path: of the file, whose ending names the dialect.
            fixed, moving: the images it maps from and to, for dialects that need their grids.
            dialect: where several have the ending.
        Raises: as `dialects.write_transform`.
        """
        write_transform(path, self.steps, _frames(fixed, moving), dialect=dialect)


def _frames(fixed: Image | None, moving: Image | None) -> Frames:
    return Frames(*(None if image is None else _grid_of(image) for image in (fixed, moving)))


def _grid_of(like: Image) -> Volume:
    return load_grid(source_of(like, "like"))


def _inverted(step: Step) -> Step:
    if not isinstance(step, DisplacementField):
        return np.linalg.inv(step)
    field = step.fading()
    inverse, residual = invert(field.ddf.float()[None])
    if not float(residual) <= _RESIDUAL:
        raise ValueError(
            f"this field has no inverse that can be found: the way back misses by {float(residual):.2g} voxels, where "
            "it folds or stretches"
        )
    return DisplacementField(inverse[0], field.grid)
