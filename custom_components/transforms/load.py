"""The dictionary transform that loads pairs onto a model grid.

Convention: a loaded item holds tensors (1, *S) on one grid under `moving`, `fixed` and, where the list gives them,
`label_moving`, `label_fixed`, `mask_moving`, `mask_fixed`, `guide_moving`, `guide_fixed` (label maps that guide the
refinement), and points (N, D) in its voxels under `landmarks_moving`, `landmarks_fixed`; the network's input `image`
(2, *S) is moving, then fixed. Beside them travels what is needed to go back to the files: `grid_affine`,
`world_matrix`, and `*_path`, where the paths of a pair carry the volumes that were read (`ScanPath`), so that nobody
reads a scan twice. `warnings` holds the lines that loading a pair gave rise to (see `notices`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict

import torch
from monai.transforms import Transform

from ..notices import collecting, warn
from ..space.fit import check_overlap, fitting_grid, halved_grid
from ..space.grids import Grid
from ..space.resampling import resample
from ..space.volumes import Volume
from ..vocabulary import Data, Item
from .alignment import Aligner, Alignment, world_matrix_of
from .channels import channel_weights, load_with_channels
from .field_of_view import seen_by
from .intensities import check_window, compared, scale_intensity
from .labels import check_guides, labels_on_grid, mask_on_grid, masks_of
from .landmarks import landmarks_on_grid
from .scan_paths import ScanPath
from .surroundings import warn_of_one_skull

_SAME_PLANE = 0.7  # cosine of the angle between the normals of two slices


class GridOptions(TypedDict, total=False):
    """Arguments of `LoadPaird` on the model grid, the learned alignment and the intensities, by keyword."""

    spatial_dims: int | None
    halve: bool
    aligner: Aligner | None
    fit: bool
    window: Sequence[float] | None
    fill: float | None


class LoadOptions(GridOptions, total=False):
    """All arguments of `LoadPaird`, by keyword."""

    spacing: float | Sequence[float] | None
    affine: str | Alignment


class LoadPaird(Transform):
    """Load a pair of images, and its labels and masks, onto one model grid in the fixed image's space.

    Intensities are scaled to [0, 1] on their own grid, smoothed where the model grid is coarser, and interpolated
    linearly; labels and masks are looked up by nearest neighbour, masks of probabilities linearly. Outside the moving
    image all are 0. If the fixed image shows something there, `mask_moving` says where the moving one has data.

    Args:
        spacing: of the model grid in mm, one number or one per axis (R, A, S); None keeps the fixed image's own.
        affine: how the pair is aligned first, and how far; an item's own entry `affine` goes before the text here.
        spatial_dims: refuse images of another dimension.
        halve: take half the spacing where both images are fine enough and it is not too much, see `halved_grid`. The
            item's `finer` is then 2: a network sees the pair with so many times fewer voxels along each axis.
        aligner: for "learned": from both volumes, fixed then moving, intensities in [0, 1], to the matrix from fixed
            world points to moving ones (`inference.alignment.NetworkAligner`).
        fit: another spacing is taken for an image that is too small for this one, with a warning; see `fitting_grid`.
        window: lowest and highest intensity that is compared, in both images; default: all, but of a CT no air.
        fill: value of the warped moving image outside of it; default: its background.
    """

    def __init__(
        self,
        spacing: float | Sequence[float] | None = None,
        affine: str | Alignment = "none",
        *,
        spatial_dims: int | None = None,
        halve: bool = False,
        aligner: Aligner | None = None,
        fit: bool = True,
        window: Sequence[float] | None = None,
        fill: float | None = None,
    ) -> None:
        check_window(window)
        self.window, self.fill = window, fill
        self.spacing, self.fit = spacing, fit
        self.alignment = affine if isinstance(affine, Alignment) else Alignment(affine)
        self.spatial_dims = spatial_dims
        self.halve = halve
        self.aligner = aligner

    def __call__(self, data: Data) -> Item:
        """Raises ValueError, FileNotFoundError: if a file is no image, or the two do not go together or overlap."""
        with collecting() as warnings:
            result = self._load(data)
        # One text, for collation knows no lists of unequal lengths.
        return {**result, "warnings": "\n".join(warnings)}

    def _load(self, data: Data) -> Item:
        result = {key: value for key, value in data.items() if not str(key).startswith("channel")}
        volumes = self._volumes(data)
        fixed, moving = volumes["fixed"], volumes["moving"]
        contrasts = {role: replace(volume, data=compared(volume, self.window)) for role, volume in volumes.items()}
        scaled = {role: replace(volume, data=scale_intensity(volume.data)) for role, volume in contrasts.items()}
        alignment = replace(self.alignment, affine=str(data.get("affine") or self.alignment.affine))
        masks = masks_of(data, volumes)
        first, first_scaled = ({role: volume.first for role, volume in found.items()} for found in (contrasts, scaled))
        world_matrix = world_matrix_of(alignment, first, first_scaled, masks, self.aligner)
        check_overlap(fixed, moving, world_matrix, alignment.affine)
        grid, found = self._grid(fixed, moving)
        result |= found
        check_guides(data)
        for role, volume in volumes.items():
            matrix = world_matrix if role == "moving" else None
            image = resample(scaled[role].data, volume.affine, grid, world_matrix=matrix, antialias=True)
            if image.min() == image.max():
                raise ValueError(f"{volume.path}: nothing of it shows on the model grid, which lies in {fixed.path}")
            result |= {role: image, f"{role}_path": ScanPath(volume), f"label_{role}_path": ""}
            result |= labels_on_grid(data, f"label_{role}", volume, grid, matrix)
            result |= labels_on_grid(data, f"guide_{role}", volume, grid, matrix)
            if role in masks:
                result |= mask_on_grid(role, masks[role], grid, matrix)
        seen = seen_by(moving.first, grid, world_matrix, result["fixed"][:1])
        warn_of_one_skull(result, grid, volumes, seen)
        if seen is not None:
            given = result.get("mask_moving", seen)
            result["mask_moving"] = given * seen.to(given.dtype)
            if not result["mask_moving"].any():
                raise ValueError(f"{moving.path}: its mask leaves nothing of it that lies on the fixed image")
        result |= landmarks_on_grid(data, volumes, grid, world_matrix)
        result |= channel_weights(data, volumes)
        result["image"] = torch.cat([result["moving"], result["fixed"]])
        result["grid_affine"] = torch.from_numpy(grid.affine)
        result["world_matrix"] = torch.from_numpy(world_matrix)
        return result

    def _grid(self, fixed: Volume, moving: Volume) -> tuple[Grid, Item]:
        """The model grid and, where it may be halved, what an item says of that."""
        grid = fitting_grid(fixed, self.spacing, fit=self.fit)
        if not self.halve:
            return grid, {}
        halved = halved_grid(fixed, moving, grid)
        return (grid, {"finer": 1}) if halved is None else (halved, {"finer": 2})

    def _volumes(self, data: Data) -> dict[str, Volume]:
        volumes = {role: load_with_channels(data, role) for role in ("moving", "fixed")}
        fixed, moving = volumes["fixed"], volumes["moving"]
        if fixed.is_slice and moving.data.ndim == 4:
            warn(f"{moving.path}: registered where the slice {fixed.path} cuts it; its other slices are not looked at")
            volumes["moving"] = moving = moving.cut(fixed)
        check_dimensions(fixed, moving)
        if self.spatial_dims not in (None, fixed.data.ndim - 1):
            raise ValueError(
                f"expected {self.spatial_dims}-D images, as the network is for, got {fixed.path} of shape "
                f"{fixed.file_shape}; configs/inference_2d.json is for 2-D ones"
            )
        if self.fill is not None:
            volumes["moving"] = moving.filled(self.fill)
        return volumes


def check_dimensions(fixed: Volume, moving: Volume) -> None:
    """Warn of slices that do not lie in one plane.

    Raises:
        ValueError: if one image is 2-D and the other 3-D.
    """
    if fixed.data.ndim != moving.data.ndim:
        flat, whole = sorted((fixed, moving), key=lambda volume: volume.data.ndim)
        raise ValueError(
            f"expected two images of one dimension, got one slice, {flat.path} of shape {flat.file_shape}, and "
            f"{whole.path} of shape {whole.file_shape}; as the fixed image a slice of a 3-D file cuts the moving one"
        )
    if fixed.data.ndim == 3 and abs(fixed.frame[:3, 2] @ moving.frame[:3, 2]) < _SAME_PLANE:
        warn(f"{moving.path}: its slice is not parallel to that of {fixed.path}; their planes are laid on one another")
