"""Free-form deformation: a displacement that cubic B-splines make of control points."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..fields import at_least_float32, invert, per_channel
from .base import Deformation, Fields
from .kernels import Spacing, per_axis

if TYPE_CHECKING:
    from typing_extensions import Self

_ROUNDING = 1e-6  # of a distance between control points


def control_size(size: Sequence[int], spacing: Spacing) -> list[int]:
    """Number of control points along each axis that a cubic B-spline needs on a grid of voxels.

    Convention: the first control point lies one spacing before the first voxel, the second one on it. An axis of n
    voxels takes ceil((n - 1) / spacing) + 3.

    Args:
        size: of the grid, *S.
        spacing: distance between control points in voxels, one number or one for each axis.
    Raises:
        ValueError: if a spacing is not above 0.
    """
    spacing = per_axis(spacing, len(size))
    return [math.ceil((n - 1) / h - _ROUNDING) + 3 for n, h in zip(size, spacing, strict=True)]


def bspline_field(control_points: Tensor, size: Sequence[int], spacing: Spacing) -> Tensor:
    """The values of a cubic B-spline on a grid of voxels; differentiable by its control points.

    Convention: control point k along an axis lies at voxel (k - 1) * spacing. Equal control points make a constant
    field, control points on a line make that line. With D channels of displacements in voxels the result is a ddf. It
    has no folds if no component exceeds spacing / (1.5 D); in practice 0.4 * spacing is safe, too.

    Args:
        control_points: shape (B, C, *control_size(size, spacing)).
        size: of the grid, *S.
        spacing: distance between control points in voxels, one number or one for each axis; it need not be whole.
    Returns:
        Shape (B, C, *S).
    Raises:
        ValueError: if the control points are not as many as `control_size` says.
    References: Rueckert et al., IEEE Transactions on Medical Imaging 18(8), 1999.
    """
    spacing, wanted = per_axis(spacing, len(size)), control_size(size, spacing)
    if control_points.ndim != len(size) + 2 or list(control_points.shape[2:]) != wanted:
        raise ValueError(
            f"expected control points of shape (B, C, {', '.join(map(str, wanted))}) for an image of size "
            f"{tuple(size)} and spacing {spacing}, got {tuple(control_points.shape)}"
        )
    field = at_least_float32(control_points)
    with torch.autocast(field.device.type, enabled=False):
        for axis, (n, h) in enumerate(zip(size, spacing, strict=True)):
            where = torch.arange(n, dtype=torch.float64, device=_exact_device(field)) / h
            field = _along(field, axis + 2, _basis(where, field.shape[axis + 2]))
    return field


def bending_energy(control_points: Tensor, size: Sequence[int], spacing: Spacing, voxel_size: Spacing = 1.0) -> Tensor:
    """The bending energy of a displacement that is a cubic B-spline, exactly.

    It is the mean over the extent of the grid, between its first and last voxels, of the squares of all second
    derivatives of all components. Mixed derivatives count twice. u = a x^2 costs 4 a^2, u = a x y costs 2 a^2; an
    affine displacement costs nothing.

    Args:
        control_points: shape (B, D, *control_size(size, spacing)), displacements in voxels.
        size: of the grid, *S.
        spacing: distance between control points in voxels, one number or one for each axis.
        voxel_size: one number or one for each axis; in mm the energy is in 1 / mm^2.
    Returns:
        Shape (B,).
    """
    d = len(size)
    spacing, voxel_size = per_axis(spacing, d), per_axis(voxel_size, d)
    points = at_least_float32(control_points)
    with torch.autocast(points.device.type, enabled=False):
        points = points * per_channel(voxel_size, points)
        total = points.new_zeros(len(points))
        for i in range(d):
            for j in range(i, d):
                result = points
                for axis, (n, h) in enumerate(zip(size, spacing, strict=True)):
                    gram = _gram_on(points.device, points.dtype, n, h, (axis == i) + (axis == j))
                    result = _along(result, axis + 2, gram)
                share = (1 if i == j else 2) / (voxel_size[i] * voxel_size[j]) ** 2
                total = total + share * (points * result).flatten(1).sum(1)
    return total


class BSplineDeformation(Deformation):
    """phi = id + u: u is a cubic B-spline, the parameters are its control points; it may fold (`bspline_field`).

    Convention: the control points (B, D, *`control_size`) are displacements in units of their own distance, so that a
    finer grid's are larger numbers. 1 / (1.5 D) is the bound below which nothing folds.

    On a grid `on_grid` that is about 2, 4, ... times coarser the control points lie exactly 2, 4, ... times as far
    apart. `resize` from there to the finer control points is exact: the field stays the same function. To other grids
    it is the best fit; parameters on another grid than the deformation's own are resized.

    Returns "ddf" and "bending", `bending_energy`. The inverse is found as that of a `Displacement`.

    Args:
        spacing: distance between control points in voxels, one number or one for each axis.
        voxel_size: of the image grid, the same; None is 1. The bending energy is in its units.
    Raises:
        ValueError: if a spacing is not above 0.
    References: as `bspline_field`; the refinement is that of Lane and Riesenfeld, IEEE PAMI 2(1), 1980.
    """

    def __init__(self, spacing: Spacing = 8.0, voxel_size: Spacing | None = None) -> None:
        per_axis(spacing, 1 if isinstance(spacing, int | float) else len(spacing))
        self.spacing, self.voxel_size = spacing, 1.0 if voxel_size is None else voxel_size

    def description(self) -> dict[str, object]:
        return {**super().description(), "spacing": self.spacing}

    def __call__(self, parameters: Tensor, size: Sequence[int], *, inverse: bool = False) -> Fields:
        spacing = per_axis(self.spacing, len(size))
        parameters = self.resize(at_least_float32(parameters), self.parameter_size(size))
        points = parameters * per_channel(spacing, parameters)
        fields = {"ddf": bspline_field(points, size, spacing)}
        fields["bending"] = bending_energy(points, size, spacing, self.voxel_size)
        if inverse:
            fields["inverse_ddf"], fields["inverse_residual"] = invert(fields["ddf"].detach())
        return fields

    def parameter_size(self, size: Sequence[int]) -> list[int]:
        return control_size(size, self.spacing)

    def resize(self, parameters: Tensor, size: Sequence[int]) -> Tensor:
        old = parameters.shape[2:]
        if list(old) == list(size):
            return parameters
        result = at_least_float32(parameters)
        ratios = _ratios(old, size)
        for axis, (n, ratio) in enumerate(zip(size, ratios, strict=True)):
            result = _along(result, axis + 2, _refinement(old[axis], n, ratio))
        return result * per_channel(ratios, result)

    def fit(self, ddf: Tensor) -> Tensor:
        """The parameters whose field is closest to a ddf (B, D, *S), by least squares. Control points that hardly any
        voxel sees stay small."""
        spacing = per_axis(self.spacing, ddf.ndim - 2)
        points = at_least_float32(ddf)
        for axis, h in enumerate(spacing):
            (number,) = control_size([ddf.shape[axis + 2]], h)
            where = torch.arange(ddf.shape[axis + 2], dtype=torch.float64) / h
            points = _along(points, axis + 2, torch.linalg.pinv(_basis(where, number), rcond=1e-3))
        return points / per_channel(spacing, points)

    def on_grid(self, full: Sequence[int], size: Sequence[int]) -> Self:
        factors = [(n - 1) / (m - 1) if m > 1 else 1.0 for n, m in zip(full, size, strict=True)]
        # The longest axis tells best which power of two is meant: sizes are rounded.
        longest = max(range(len(full)), key=lambda axis: full[axis])
        power = 2.0 ** round(math.log2(factors[longest]))
        other = copy(self)
        other.spacing = [h * power / f for h, f in zip(per_axis(self.spacing, len(full)), factors, strict=True)]
        other.voxel_size = [h * f for h, f in zip(per_axis(self.voxel_size, len(full)), factors, strict=True)]
        return other


def _cubic(distance: Tensor, derivative: int = 0) -> Tensor:
    """The centred cubic B-spline, or a derivative, at distances from its control point, in units of the spacing."""
    far, sign = distance.abs(), distance.sign()
    rest = (2 - far).clamp(min=0)
    near, beyond = (
        (2 / 3 - far.square() + far**3 / 2, rest**3 / 6),
        (sign * (1.5 * far.square() - 2 * far), -sign * rest.square() / 2),
        (3 * far - 2, rest),
    )[derivative]
    return torch.where(far < 1, near, beyond)


def _basis(where: Tensor, number: int, derivative: int = 0) -> Tensor:
    """Weights (N, number) of control points at -1, 0, 1, ... for N places."""
    points = torch.arange(-1, number - 1, dtype=where.dtype, device=where.device)
    return _cubic(where[:, None] - points, derivative)


@functools.lru_cache(maxsize=128)
def _gram_on(device: torch.device, dtype: torch.dtype, n: int, spacing: float, derivative: int) -> Tensor:
    """`_gram`, kept where it is used: to bring it there makes the host wait."""
    return _gram(n, spacing, derivative).to(dtype).to(device)


def _gram(n: int, spacing: float, derivative: int) -> Tensor:
    """Mean products of the derivatives of two control points' splines along an axis of n voxels, (M, M)."""
    (number,) = control_size([n], spacing)
    if n == 1:
        (value,) = _basis(torch.zeros(1, dtype=torch.float64), number)
        return torch.outer(value, value) * (derivative == 0)
    # Four places an interval integrate the sixth power exactly.
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(4))
    knots = torch.arange(number - 2, dtype=torch.float64)
    knots[-1] = (n - 1) / spacing
    half = knots.diff() / 2
    where = (knots[:-1, None] + half[:, None] * (nodes + 1)).flatten()
    mass = (half[:, None] * weights).flatten() * spacing / (n - 1)
    slopes = _basis(where, number, derivative) / spacing**derivative
    return slopes.T @ (mass[:, None] * slopes)


def _exact_device(field: Tensor) -> torch.device:
    """Where float64 is known, for weights that are computed there."""
    return torch.device("cpu") if field.device.type == "mps" else field.device


def _along(field: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """A matrix (N, M) applied along an axis of M."""
    matrix = matrix.to(field.dtype).to(field.device)
    if axis == field.ndim - 1:
        return field @ matrix.T
    rest = field.shape[axis + 1 :]
    return (matrix @ field.flatten(axis + 1)).unflatten(-1, rest)


def _ratios(old: Sequence[int], new: Sequence[int]) -> list[float]:
    """How many distances of new control points one of the old ones is, for each axis.

    A power of two, the same for all axes, if the numbers of control points can be explained by one; else as if both
    spanned the image without a rest.
    """
    pairs = [(m - 3, n - 3) for m, n in zip(old, new, strict=True)]
    for power in range(1, 16):
        if all(m == -(-n // 2**power) for m, n in pairs):
            return [2.0**power] * len(pairs)
        if all(n == -(-m // 2**power) for m, n in pairs):
            return [0.5**power] * len(pairs)
    return [n / m if m > 0 and n > 0 else 1.0 for m, n in pairs]


def _refinement(old: int, new: int, ratio: float) -> Tensor:
    """The matrix (new, old) from control points to those of the same spline, or of the closest one."""
    # Where both are known. A last interval that is hardly covered does not fix its control point.
    extent = max(min(new - 3, (old - 3) * ratio), 1)
    where = torch.linspace(0, extent, 8 * max(new, round(old * ratio)), dtype=torch.float64)
    return torch.linalg.pinv(_basis(where, new), rcond=1e-3) @ _basis(where / ratio, old)
