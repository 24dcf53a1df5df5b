"""What an affine map does: rotation, scaling, shear and translation, each for itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AffineParts:
    """An affine map x -> R S H x + t, in 2-D or 3-D.

    Args:
        rotation: R, (D, D), a rotation (its determinant is 1).
        scaling: the diagonal of S, (D,). All are above 0, but for a map that mirrors: then the first one is below.
        shear: H, (D, D): 1 on the diagonal, 0 below it; H[i, j] is what axis j adds to axis i.
        translation: t, (D,): where the origin goes.
    """

    rotation: np.ndarray
    scaling: np.ndarray
    shear: np.ndarray
    translation: np.ndarray

    @classmethod
    def of(cls, matrix: np.ndarray) -> AffineParts:
        """The parts of a map (D + 1, D + 1), which acts on columns (x_1, ..., x_D, 1). They are unique.

        Raises:
            ValueError: if the matrix is no affine map with an inverse.
        """
        matrix = np.asarray(matrix, dtype=np.float64)
        d = len(matrix) - 1
        if matrix.shape not in ((3, 3), (4, 4)) or not np.isfinite(matrix).all() or np.linalg.det(matrix) == 0:
            raise ValueError(f"expected an affine map (D + 1, D + 1) with an inverse, got {matrix.tolist()}")
        rotation, upper = np.linalg.qr(matrix[:d, :d])
        signs = np.sign(np.diag(upper))
        rotation, upper = rotation * signs, signs[:, None] * upper
        if np.linalg.det(rotation) < 0:
            mirror = np.array([-1.0, *[1.0] * (d - 1)])
            rotation, upper = rotation * mirror, mirror[:, None] * upper
        scaling = np.diag(upper).copy()
        return cls(rotation, scaling, upper / scaling[:, None], matrix[:d, d].copy())

    @property
    def matrix(self) -> np.ndarray:
        """The map (D + 1, D + 1)."""
        d = len(self.scaling)
        whole = np.eye(d + 1)
        whole[:d, :d] = self.rotation @ np.diag(self.scaling) @ self.shear
        whole[:d, d] = self.translation
        return whole

    @property
    def angle(self) -> float:
        """Of the rotation about its axis, degrees: from 0 to 180 in 3-D, from -180 to 180 in 2-D (from x to y)."""
        r = self.rotation
        if len(r) == 2:
            return math.degrees(math.atan2(r[1, 0] - r[0, 1], r[0, 0] + r[1, 1]))
        sine = np.linalg.norm([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]])
        return math.degrees(math.atan2(sine, np.trace(r) - 1))

    def as_row(self) -> dict[str, object]:
        """Plain numbers for a table of measures, of a map between points in mm."""
        return {
            "affine_rotation": self.rotation.tolist(),
            "affine_rotation_degrees": self.angle,
            "affine_scaling": self.scaling.tolist(),
            "affine_shear": self.shear.tolist(),
            "affine_translation_mm": self.translation.tolist(),
        }
