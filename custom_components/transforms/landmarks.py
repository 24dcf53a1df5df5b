"""Landmarks of a pair: read as points or as label maps, brought to the model grid, and measured.

Convention: landmarks that correspond stand in the same row of two files of points, or have the same label in two maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..notices import warn
from ..space.grids import Grid, center_of_mass
from ..space.points import is_points_file, read_points
from ..space.resampling import transform_points_world
from ..space.volumes import Volume, load_labels
from ..vocabulary import Data, Item

if TYPE_CHECKING:
    from .registered import RegisteredPair

_ROLES = ("moving", "fixed")
_WORTH_SAYING_MM = 0.01


def landmarks_on_grid(data: Data, volumes: Mapping[str, Volume], grid: Grid, world_matrix: np.ndarray) -> Item:
    """The landmarks of both images on the model grid, if the item names them under `landmarks_moving` and `_fixed`.

    Args:
        data: paths of files of points (CSV and others, see `space.points`: mm, or voxel indices i, j[, k] of the image)
            or of label maps, of whose labels the centres are taken.
        volumes: the images of the pair.
        grid: the model grid.
        world_matrix: (D + 1, D + 1), from fixed to moving points, RAS mm.
    Returns:
        `landmarks_moving`, `landmarks_fixed`, shape (N, D), float64: voxels of the model grid, where a map without
        error takes the fixed ones to the moving ones; and `landmarks_mm`, (1, D), its voxel size. Nothing if the item
        names none.
    Raises:
        FileNotFoundError, ValueError: if a file is missing or damaged, or the two do not correspond.
    """
    paths = {role: str(data[f"landmarks_{role}"]) for role in _ROLES if data.get(f"landmarks_{role}")}
    if not paths:
        return {}
    if len(paths) < 2:
        raise ValueError(f"{next(iter(paths.values()))}: expected landmarks of both images, got those of one")
    found = {role: _world_points(paths[role], volumes[role]) for role in _ROLES}
    common = [name for name in found["fixed"] if name in found["moving"]]
    numbers = [len(points) for points in found.values()]
    is_rows = all(is_points_file(path) for path in paths.values())
    if not common or (is_rows and numbers[0] != numbers[1]):
        raise ValueError(
            f"{paths['moving']}: expected landmarks that correspond to those of {paths['fixed']}, got {numbers[0]} and "
            f"{numbers[1]}, of which {len(common)} have a partner"
        )
    to_grid = {"fixed": np.linalg.inv(grid.affine), "moving": np.linalg.inv(world_matrix @ grid.affine)}
    result: Item = {}
    for role in _ROLES:
        voxels = transform_points_world(np.stack([found[role][name] for name in common]), [to_grid[role]])
        result |= {f"landmarks_{role}": torch.from_numpy(voxels), f"landmarks_{role}_path": paths[role]}
    return result | {"landmarks_mm": torch.from_numpy(grid.spacing)[None]}


def _world_points(path: str, image: Volume) -> dict[int, np.ndarray]:
    """The points of a file (D,), RAS mm, or in the coordinates of a slice's plane, by their row or label."""
    if not is_points_file(path):
        return _label_centers(path, image)
    file = read_points(path)
    points, d = file.points, file.points.shape[1]
    if file.space == "LPS":
        points = points * ([-1.0, -1.0, 1.0][:d])
    if file.space == "voxels":
        points = transform_points_world(points, [(image.whole or image).file_affine if d == 3 else image.affine])
    if d == 3 and image.is_slice:
        points = _in_plane(path, points, image)
    if points.shape[1] != len(image.affine) - 1:
        raise ValueError(f"{path}: expected points of {len(image.affine) - 1} coordinates, got {d}")
    return dict(enumerate(points))


def _label_centers(path: str, image: Volume) -> dict[int, np.ndarray]:
    labels, source = load_labels(path), image.whole or image
    if labels.data.ndim != source.data.ndim:
        raise ValueError(f"{path}: expected landmarks for {image.path} {image.file_shape}, got {labels.file_shape}")
    ids = [int(label) for label in torch.unique(labels.data) if label]
    centers = np.stack([center_of_mass(labels.data[0] == label, labels.affine) for label in ids])
    centers = centers if image.whole is None else _in_plane(path, centers, image)
    return dict(zip(ids, centers, strict=True))


def _in_plane(path: str, points: np.ndarray, image: Volume) -> np.ndarray:
    """World points (N, 3) in the coordinates (N, 2) of a slice's plane.

    Raises:
        ValueError: if one does not lie in the slice.
    """
    points = transform_points_world(points, [np.linalg.inv(image.frame)])
    apart = float(np.abs(points[:, 2]).max())
    if apart > image.thickness_mm:
        raise ValueError(
            f"{path}: expected landmarks in the slice of {image.path}, got one {apart:.3g} mm away from it"
        )
    return points[:, :2]


def landmark_metrics(pair: RegisteredPair) -> dict[str, float]:
    """How far the landmarks of a pair lie apart, the target registration error: nothing if there are none.

    A warning says so if they lie farther apart after the registration than before, or than by the alignment alone.

    Returns:
        `num_landmarks`, and mean, median and largest distance in mm, as the headers place them and through the whole
        transform: `tre_mm_before`, `tre_mm_after`, `tre_median_mm_...`, `tre_max_mm_...`; and `tre_mm_aligned`, through
        the alignment alone.
    """
    if not pair.landmarks:
        return {}
    grids = {"fixed": pair.grid.affine, "moving": pair.world_matrix @ pair.grid.affine}
    world = {
        role: transform_points_world(pair.landmarks[f"landmarks_{role}"].double().numpy(), [grids[role]])
        for role in _ROLES
    }
    through = transform_points_world(world["fixed"], pair.forward)
    result: dict[str, float] = {"num_landmarks": len(through)}
    for name, points in (("before", world["fixed"]), ("after", through)):
        mm = np.linalg.norm(points - world["moving"], axis=1)
        result |= {f"tre_mm_{name}": float(mm.mean()), f"tre_median_mm_{name}": float(np.median(mm))}
        result[f"tre_max_mm_{name}"] = float(mm.max())
    aligned = transform_points_world(world["fixed"], [pair.world_matrix]) - world["moving"]
    result["tre_mm_aligned"] = float(np.linalg.norm(aligned, axis=1).mean())
    _warn_of_distances(pair.volumes["moving"].path, result)
    return result


def _warn_of_distances(path: str, found: Mapping[str, float]) -> None:
    before, aligned, after = (found[f"tre_mm_{name}"] for name in ("before", "aligned", "after"))
    if after > before + _WORTH_SAYING_MM:
        warn(
            f"{path}: the landmarks lie farther apart after registration, {after:.2f} mm, than before, {before:.2f} mm "
            f"({aligned:.2f} mm by the alignment alone)"
        )
    elif after > aligned + _WORTH_SAYING_MM:
        warn(
            f"{path}: the deformation drove the landmarks apart, from {aligned:.2f} to {after:.2f} mm; a larger "
            "--smoothness may help, or --optimize 0"
        )
