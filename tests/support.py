"""What tests of several rooms share: the command in this process, images given by a formula in the world."""

from __future__ import annotations

import sys

import nibabel as nib
import numpy as np

from custom_components import __main__ as cli
from custom_components.transforms.publish import Publishd

ROTATION = np.array([[0.98, -0.17, 0.1], [0.19, 0.96, -0.2], [-0.06, 0.21, 0.976]])


def oriented(codes: str, size: tuple[int, ...], spacing: tuple[float, ...], *, oblique: bool = False) -> np.ndarray:
    """An affine with these axis codes whose grid is centred near the world's origin."""
    ornt = nib.orientations.axcodes2ornt(codes)
    linear = nib.orientations.inv_ornt_aff(ornt, (1, 1, 1))[:3, :3] @ np.diag(spacing)
    u, _, vt = np.linalg.svd(ROTATION)
    linear = u @ vt @ linear if oblique else linear
    return nib.affines.from_matvec(linear, [1.0, -2, 3] - linear @ (np.array(size) - 1) / 2)


def blobs(size: tuple[int, ...], affine: np.ndarray, shift: float = 0.0) -> np.ndarray:
    """A smooth image given by a formula in the world."""
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    x, y, z = np.moveaxis(index @ affine[:3, :3].T + affine[:3, 3] + shift, -1, 0)
    return (100 * np.exp(-(x**2 + y**2 + z**2) / 400) * (2 + np.sin(x / 4) + np.cos(y / 5) * np.sin(z / 3))).astype(
        "f4"
    )


def run(*words):
    """Run the command in this process; returns its exit message, None if it succeeded."""
    old = sys.argv
    sys.argv = ["morphzoo", *map(str, words)]
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code or None
    finally:
        sys.argv = old
    return None


def published(item, folder, *reporters, **options):
    """The `Registration` of an item with a prediction, written into the folder by these reporters."""
    return Publishd(str(folder), reporters, **options)(item)["registration"]
