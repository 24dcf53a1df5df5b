"""BIDS's X5 as nitransforms writes it: HDF5 with matrices and dense fields in RAS mm, from fixed to moving points.

Needs nitransforms. A file with several transforms holds a chain, which says their order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from ...fields import identity_grid
from ...results import replacing
from ..grids import Grid
from ..resampling import DisplacementField, Step
from .base import Dialect, Frames, mapped


def _import_nitransforms(purpose: str) -> Any:
    try:
        import nitransforms.io.x5
        import nitransforms.linear
        import nitransforms.manip
        import nitransforms.nonlinear
    except ImportError as error:
        raise ImportError(f"{purpose} needs the package nitransforms: pip install 'morphzoo[x5]'") from error
    return nitransforms


def _read(path: str, frames: Frames) -> list[Step]:
    nitransforms = _import_nitransforms(f"reading {path}")
    try:
        nodes = nitransforms.io.x5.from_filename(path)
    except (TypeError, KeyError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as an X5 file ({error})") from error
    if len(nodes) == 1:
        return [_step(nodes[0], path)]
    return [_step(nodes[index], path) for index in _chain(path)]


def _chain(path: str) -> list[int]:
    """Which transforms of a file are applied one after the other."""
    import h5py  # nitransforms brings it

    with h5py.File(path, "r") as file:
        if "TransformChain" not in file:
            raise ValueError(f"{path}: expected one transform, or a chain of them, got several without their order")
        chain = file["TransformChain"]["0"][()]
    return [int(index) for index in (chain.decode() if isinstance(chain, bytes) else chain).split("/")]


def _step(node: Any, path: str) -> Step:
    if node.type == "linear" and node.array_length == 1:
        return np.asarray(node.transform, dtype=np.float64).reshape(4, 4)
    vectors = np.asarray(node.transform)
    if node.type != "nonlinear" or node.subtype != "densefield" or node.domain is None or vectors.ndim != 4:
        raise ValueError(f"{path}: expected matrices and dense 3-D fields, got a {node.type} {node.subtype or ''}")
    grid = Grid(np.asarray(node.domain.mapping, dtype=np.float64), vectors.shape[:3])
    vectors = np.moveaxis(vectors.astype(np.float64), -1, 0)
    if node.representation == "deformations":
        voxels = identity_grid(grid.size, dtype=torch.float64).numpy()
        vectors = vectors - mapped(grid.affine, voxels)
    ddf = np.einsum("ij,j...->i...", np.linalg.inv(grid.affine[:3, :3]), vectors)
    return DisplacementField(torch.from_numpy(ddf).float(), grid)


def _write(path: Path, steps: list[Step], frames: Frames) -> None:
    nitransforms = _import_nitransforms(f"writing {path}")
    chain = []
    for step in steps:
        if isinstance(step, DisplacementField):
            ras = np.einsum("ij,j...->...i", step.grid.affine[:3, :3], step.ddf.numpy().astype(np.float64))
            image = nib.Nifti1Image(ras.astype(np.float32), step.grid.affine)
            chain.append(nitransforms.nonlinear.DenseFieldTransform(image))
        else:
            chain.append(nitransforms.linear.Affine(step))
    with replacing(path) as temporary:
        nitransforms.manip.TransformChain(chain).to_filename(temporary, fmt="X5")


X5 = Dialect("x5", (), (".x5",), lambda path: path.lower().endswith(".x5"), _read, _write, needs="nitransforms")
