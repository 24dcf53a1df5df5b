"""Label maps and masks, brought to where their image lies."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from ..notices import warn
from ..space.grids import Grid
from ..space.memory_images import Source
from ..space.resampling import resample
from ..space.volumes import Volume, load_labels, load_mask
from ..vocabulary import Data, Item
from .scan_paths import ScanPath, source_in

logger = logging.getLogger(__name__)


def labels_on_grid(data: Data, key: str, image: Volume, grid: Grid, world_matrix: np.ndarray | None) -> Item:
    """An image's label map, which stands under `key`, on the model grid, if the item names one."""
    if not data.get(key):
        return {}
    labels = load_labels_for(source_in(data, key), image)
    values = resample(labels.data, labels.affine, grid, world_matrix=world_matrix, mode="nearest")
    return {key: values, f"{key}_path": ScanPath(labels)}


def check_guides(data: Data) -> None:
    """Raises ValueError: if an item names a label map that guides one image, and none of the other."""
    given = [str(data[f"guide_{role}"]) for role in ("moving", "fixed") if data.get(f"guide_{role}")]
    if len(given) == 1:
        raise ValueError(f"{given[0]}: expected guides of both images, got that of one")


def masks_of(data: Data, images: Mapping[str, Volume]) -> dict[str, Volume]:
    """The masks of the images "moving" and "fixed" under the same names, as far as the item names them."""
    given = [role for role in images if data.get(f"mask_{role}")]
    return {role: load_labels_for(source_in(data, f"mask_{role}"), images[role], load_mask) for role in given}


def mask_on_grid(role: str, mask: Volume, grid: Grid, world_matrix: np.ndarray | None) -> Item:
    """The mask of an image on the model grid. Raises ValueError: if nothing of it is there."""
    mode = "linear" if mask.data.is_floating_point() else "nearest"
    values = resample(mask.data, mask.affine, grid, world_matrix=world_matrix, mode=mode)
    if not values.any():
        raise ValueError(f"{mask.path}: the mask is empty on the model grid of the pair")
    return {f"mask_{role}": values, f"mask_{role}_path": mask.path}


def load_labels_for(path: Source, image: Volume, read: Callable[[Source], Volume] = load_labels) -> Volume:
    """Read the label map of an image, or its mask; on another grid it must say where it lies.

    Raises:
        ValueError: if the sizes differ and one of the two files has no world frame, or the dimensions differ.
    """
    if image.whole is not None:
        return load_labels_for(path, image.whole, read).cut(image)
    labels = read(path)
    if labels.data.ndim != image.data.ndim:
        raise ValueError(f"{path}: expected labels for {image.path} {image.file_shape}, got shape {labels.file_shape}")
    same_size, apart = labels.grid.size == image.grid.size, _voxels_apart(labels, image)
    if not (labels.has_frame and image.has_frame):
        if not same_size:
            raise ValueError(
                f"{path}: expected labels of size {image.grid.size} as {image.path}, got {labels.grid.size} and no "
                "world frame to relate the two"
            )
        labels = replace(labels, affine=image.affine)
    elif same_size and apart > 1:
        cause = " (an identity: was the header lost?)" if _is_identity(labels.affine) else ""
        warn(
            f"{path}: the label map has the size of {image.path} but another affine{cause} and lies up to {apart:.3g} "
            "voxels away; it is looked up where its own header says"
        )
    elif not same_size or apart > 0.01:
        logger.info("%s: labels on another grid than %s, looked up in world coordinates", path, image.path)
    if not labels.data.any():
        warn(f"{path}: the label map is empty, every voxel is 0")
    return labels


def _voxels_apart(labels: Volume, image: Volume) -> float:
    """How far a corner of the label map lies from where the image's affine would place it, in voxels of the image."""
    ends = [(0, n - 1) for n in labels.grid.size]
    corners = np.array([[*corner, 1] for corner in itertools.product(*ends)])
    moved = corners @ (labels.affine - image.affine).T
    return float(np.linalg.norm(moved, axis=1).max() / image.grid.spacing.min())


def _is_identity(affine: np.ndarray) -> bool:
    """Whether an affine is that of a file without a header: voxels of 1 mm along the axes, the first one at 0."""
    return bool(np.array_equal(np.abs(affine), np.eye(len(affine))))
