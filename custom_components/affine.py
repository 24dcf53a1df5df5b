"""Affine maps on voxel grids: as fields, composed, inverted, between voxel and centred coordinates.

A matrix (B, D, D + 1) acts on columns (x_1, ..., x_D, 1). All functions are pure and take 2-D and 3-D, any batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .constants import filled
from .fields import at_least_float32, identity_grid


def affine_to_ddf(matrix: Tensor, size: Sequence[int]) -> Tensor:
    """Displacement field of an affine map between voxel coordinates.

    Args:
        matrix: shape (B, D + 1, D + 1) or (B, D, D + 1), acting on column vectors (x_1, ..., x_D, 1): fixed voxel
            coordinates to moving voxel coordinates, origin at voxel (0, ..., 0).
        size: spatial size of the field.
    Returns:
        Shape (B, D, *size), voxels.
    Raises:
        ValueError: if the matrix does not fit the number of axes.
    """
    d = len(size)
    if matrix.ndim != 3 or matrix.shape[1] not in (d, d + 1) or matrix.shape[2] != d + 1:
        raise ValueError(f"expected a matrix of shape (B, {d + 1}, {d + 1}), got {tuple(matrix.shape)}")
    matrix = at_least_float32(matrix)
    grid = identity_grid(size, dtype=matrix.dtype, device=matrix.device)
    linear = matrix[:, :d, :d] - torch.eye(d, dtype=matrix.dtype, device=matrix.device)
    shift = matrix[:, :d, d].view(-1, d, *[1] * d)
    return torch.einsum("bij,j...->bi...", linear, grid) + shift


def compose_affine(outer: Tensor, inner: Tensor) -> Tensor:
    """Matrix of `x -> outer(inner(x))`; the inner map is applied first, as in `compose`.

    Args:
        outer, inner: shape (B, D, D + 1), acting on columns (x_1, ..., x_D, 1) of the same coordinates, whichever.
    Returns:
        Shape (B, D, D + 1).
    Raises:
        ValueError: if a matrix has another shape.
    """
    d = _check_affine(outer)
    _check_affine(inner, d)
    outer, inner = at_least_float32(outer), at_least_float32(inner)
    # Sums and not a matrix product, which autocast would round to bfloat16.
    return (outer[:, :, :d, None] * inner[:, None]).sum(2) + F.pad(outer[:, :, d:], (d, 0))


def invert_affine(matrix: Tensor) -> Tensor:
    """Matrix of the inverse map.

    Args:
        matrix: shape (B, D, D + 1), in any coordinates.
    Returns:
        Shape (B, D, D + 1).
    Raises:
        ValueError: if the matrix has another shape.
        torch.linalg.LinAlgError: if it is singular.
    """
    d = _check_affine(matrix)
    matrix = at_least_float32(matrix)
    linear = torch.linalg.inv(matrix[:, :, :d])
    return torch.cat([linear, -(linear * matrix[:, None, :, d]).sum(2, keepdim=True)], 2)


def rotation_matrix(vector: Tensor) -> Tensor:
    """Rotations by |vector| radians about an axis, or in the plane.

    Convention: in 3-D about the vector, by the right-hand rule; in 2-D from axis 0 to axis 1. A vector of 0 is the
    identity, where the gradient is that of the rotation, too.

    Args:
        vector: shape (B, 3), or (B, 1) for 2-D.
    Returns:
        Shape (B, D, D).
    """
    square = vector.square().sum(1).clamp(min=1e-20)[:, None, None]
    zero = torch.zeros_like(vector[:, 0])
    if vector.shape[1] == 1:
        rows = [[zero, -vector[:, 0]], [vector[:, 0], zero]]
    else:
        x, y, z = vector.unbind(1)
        rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    cross = torch.stack([torch.stack(row, 1) for row in rows], 1)
    angle = square.sqrt()
    # Rodrigues' formula: a matrix exponential would make the host wait for the device.
    identity = torch.eye(len(rows), dtype=vector.dtype, device=vector.device)
    return identity + angle.sin() / angle * cross + 2 * (angle / 2).sin().square() / square * (cross @ cross)


def ball_displacement(matrix: Tensor, radius: float) -> Tensor:
    """Root mean square of |A x + t - x| over the points x of a ball, or of a disc, about the origin; shape (B,).

    It is the root of |A - I|^2 radius^2 / (D + 2) + |t|^2, as the points' covariance is radius^2 / (D + 2) times I. Of
    a turn by an angle it is 2 sin(angle / 2) sqrt(2 / (D + 2)) radius, in 2-D and in 3-D.

    Args:
        matrix: (A, t), shape (B, D, D + 1), in any coordinates with the ball's centre as origin.
        radius: in their unit, which is that of the answer.
    Raises:
        ValueError: if the matrix has another shape.
    """
    d = _check_affine(matrix)
    moved = matrix[:, :, :d] - torch.eye(d, dtype=matrix.dtype, device=matrix.device)
    return (moved.square().sum((1, 2)) * radius**2 / (d + 2) + matrix[:, :, d].square().sum(1)).sqrt()


def centred_to_voxel(matrix: Tensor, size: Sequence[int]) -> Tensor:
    """An affine map between centred coordinates as one between voxel coordinates, which `affine_to_ddf` takes.

    Convention: centred coordinates have their origin at the grid's centre, (n - 1) / 2 voxels along each axis, and for
    all axes one unit, half of the grid's longest side: (max(size) - 1) / 2 voxels. The linear part is the same in both
    coordinates, so that a rotation stays one on any grid; coordinates from -1 to 1 along each axis would shear it.
    On 5 x 9 voxels the unit is 4 voxels: a shift by (0.5, 0) becomes one of 2 voxels along axis 0.

    Args:
        matrix: shape (B, D, D + 1), centred coordinates.
        size: spatial size of the grid.
    Returns:
        Shape (B, D, D + 1), voxel coordinates.
    Raises:
        ValueError: if the matrix does not fit the number of axes.
    """
    d = _check_affine(matrix, len(size))
    matrix = at_least_float32(matrix)
    centre, unit = _centred_frame(matrix, size)
    linear, shift = matrix[:, :, :d], matrix[:, :, d]
    return torch.cat([linear, (unit * shift + centre - (linear * centre).sum(2)).unsqueeze(2)], 2)


def voxel_to_centred(matrix: Tensor, size: Sequence[int]) -> Tensor:
    """The inverse of `centred_to_voxel`: an affine map between voxel coordinates as one between centred coordinates.

    Args:
        matrix: shape (B, D, D + 1), voxel coordinates.
        size: spatial size of the grid.
    Returns:
        Shape (B, D, D + 1), centred coordinates.
    Raises:
        ValueError: if the matrix does not fit the number of axes.
    """
    d = _check_affine(matrix, len(size))
    matrix = at_least_float32(matrix)
    centre, unit = _centred_frame(matrix, size)
    linear, shift = matrix[:, :, :d], matrix[:, :, d]
    return torch.cat([linear, ((shift - centre + (linear * centre).sum(2)) / unit).unsqueeze(2)], 2)


def _check_affine(matrix: Tensor, d: int | None = None) -> int:
    if d is None:
        d = matrix.shape[1] if matrix.ndim == 3 else 3
    if d not in (2, 3) or matrix.ndim != 3 or matrix.shape[1:] != (d, d + 1):
        raise ValueError(f"expected a matrix of shape (B, {d}, {d + 1}), got {tuple(matrix.shape)}")
    return d


def _centred_frame(like: Tensor, size: Sequence[int]) -> tuple[Tensor, float]:
    """Origin and unit of centred coordinates, in voxels."""
    return filled([(n - 1) / 2 for n in size], like), max(max(size) - 1, 1) / 2
