"""The middle of a group: what moves a template to the mean size, shape and place of those who are registered to it.

Convention: maps take points of the template to points of the scan, matrices (D + 1, D + 1) in RAS mm, fields (1, D, *S)
in voxels as in `fields`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..fields import integrate_velocity
from ..space.grids import Grid
from ..space.resampling import DisplacementField, field_rows
from ..vocabulary import Row
from .maps import PersonsMap


def mean_stretch(
    maps: Sequence[np.ndarray],
    center: np.ndarray,
    *,
    weights: Sequence[float] | None = None,
    normal: np.ndarray | None = None,
) -> np.ndarray:
    """The mean of what maps stretch, without their rotations, about a point: a matrix (D + 1, D + 1).

    Of M = R S, with a rotation R, it is the exponential of the mean of log S (Arsigny et al., 2006).

    Args:
        center: the point (D,), RAS mm.
        weights: one for each map.
        normal: of a plane (D,): the mean is that of the maps and of their mirror images.
    """
    logs = []
    for matrix in maps:
        linear = matrix[:-1, :-1]
        values, vectors = np.linalg.eigh(linear.T @ linear)
        logs.append(vectors @ np.diag(np.log(values) / 2) @ vectors.T)
    mean = np.average(logs, axis=0, weights=weights)
    if normal is not None:
        mirror = np.eye(len(normal)) - 2 * np.outer(normal, normal) / (normal @ normal)
        mean = (mean + mirror @ mean @ mirror) / 2
    values, vectors = np.linalg.eigh(mean)
    result = np.eye(len(center) + 1)
    result[:-1, :-1] = vectors @ np.diag(np.exp(values)) @ vectors.T
    result[:-1, -1] = center - result[:-1, :-1] @ center
    return result


def mirrored(field: Tensor) -> Tensor:
    """A velocity or displacement (1, D, *S) seen in a mirror across the middle of the first axis."""
    flipped = field.flip(2)
    flipped[:, 0] *= -1
    return flipped


def middle_of(
    maps: Iterable[PersonsMap], weights: Sequence[float], grid: Grid, *, symmetric: bool = False
) -> tuple[PersonsMap, Row]:
    """The map from the points of the people's middle to those of the template that they were registered to.

    Affine maps are led to their mean stretch. Of deformations phi_i it is exp(-mean velocity): the maps
    phi_i o exp(-mean) have to first order the mean velocity 0.

    Args:
        maps: of the people, all affine or all deformable; one is in memory at a time.
        weights: how much each of them counts, positive.
        grid: of the template.
        symmetric: the middle of the people and their mirror images, across the middle of the grid's first axis.
    Returns:
        The map, and `moved_mm`, the mean length of the deformations.
    """
    matrices, total, moved = [], None, 0.0
    for found, weight in zip(maps, weights, strict=True):
        if found.dense is None:
            matrices.append(found.matrix)
            continue
        velocity = found.velocity
        own = velocity.grid if total is None else total.grid
        added = field_rows(velocity, own, 0, own.size[0]) * (weight / sum(weights))
        total = DisplacementField(added if total is None else total.ddf + added, own)
        moved += float((velocity.ddf * _column(velocity.grid)).norm(dim=0).mean()) * weight / sum(weights)
    if total is None:
        normal = grid.affine[:-1, 0] if symmetric else None
        stretch = mean_stretch(matrices, grid.center, weights=weights, normal=normal)
        return PersonsMap(np.linalg.inv(stretch)), {}
    mean = total.ddf[None]
    mean = (mean + mirrored(mean)) / 2 if symmetric else mean
    there, back = (DisplacementField(integrate_velocity(sign * mean)[0], total.grid) for sign in (-1, 1))
    return PersonsMap(np.eye(len(grid.size) + 1), (there, back)), {"moved_mm": moved}


def _column(grid: Grid) -> Tensor:
    return torch.tensor(grid.spacing, dtype=torch.float32).view(-1, *[1] * len(grid.size))


def half_rigid(matrix: np.ndarray) -> np.ndarray:
    """The rigid map that is `matrix` when applied twice (D + 1, D + 1); of a turn by less than 180 degrees."""
    identity = np.eye(len(matrix) - 1)
    u, _, vt = np.linalg.svd(identity + matrix[:-1, :-1])  # the bisector of both rotations
    result = np.eye(len(matrix))
    result[:-1, :-1] = u @ vt
    result[:-1, -1] = np.linalg.solve(identity + u @ vt, matrix[:-1, -1])
    return result
