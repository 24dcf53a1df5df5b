"""Small volumes of two images as text, for the viewer of a page.

Convention: as in `views`. Volumes are NIfTI files of 8 bits a voxel, at least 2 mm apart, compressed and in base64.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from functools import partial

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from ...fields import jacobian_determinant, warp
from ...space.grids import Grid
from ...space.resampling import resample
from ..drawing import grey_window
from .pages import FOLDER

Volumes = dict[str, dict[str, str] | dict[str, float]]

_SPACING_MM = 2.0


def check_viewer() -> None:
    """Raises FileNotFoundError: if the viewer is not there, as in a bundle exported without it."""
    if not _VIEWER.is_file():
        raise FileNotFoundError(
            "page 'volumes': the viewer NiiVue is not here; an exported bundle carries it if one of its configs asks "
            f"for volumes; take 'views', or put NiiVue's script at {_VIEWER}"
        )


_VIEWER = FOLDER / "niivue" / "niivue.umd.js"


def packed_viewer() -> str:
    """NiiVue's script, compressed, in base64."""
    return base64.b64encode(gzip.compress(_VIEWER.read_bytes(), 9, mtime=0)).decode()


def make_volumes(
    images: Mapping[str, Tensor], ddf: Tensor, grid: Grid, labels: Mapping[str, Tensor] | None = None
) -> Volumes:
    """Volumes of a pair, see `pack_volumes`, with log2 det J and label maps above them.

    Args:
        images: "fixed", "aligned" and others, shape (C, *S), of which the first channel is shown.
        ddf: shape (D, *S), voxels.
        grid: on which all lie.
        labels: "fixed labels" and "moving labels" (1, *S), as far as there are; the latter are warped, too.
    """
    logarithm = jacobian_determinant(ddf[None].float())[0].clamp_min(1e-3).log2()
    labels = dict(labels or {})
    if "moving labels" in labels:
        labels["warped labels"] = warp(labels["moving labels"][None].float(), ddf[None].float(), mode="nearest")[0]
    return pack_volumes([images], grid, {"log2 J": (logarithm, 1.0)}, labels)


def pack_volumes(
    images: Sequence[Mapping[str, Tensor]],
    grid: Grid,
    signed: Mapping[str, tuple[Tensor, float]],
    labels: Mapping[str, Tensor],
) -> Volumes:
    """Volumes of a page: "images" by name, "overlays", and "limits" of those overlays that have two signs.

    Args:
        images: groups of images (C, *S), each group on one grey scale, that of its first two.
        grid: on which all lie.
        signed: maps (1, *S) with the limit of their colours.
        labels: label maps (1, *S). An id shows as its remainder by 256.
    """
    steps = np.maximum(1.0, _SPACING_MM / np.asarray(grid.spacing))
    size = tuple(max(1, int(n / step)) for n, step in zip(grid.size, steps, strict=True))
    coarse = Grid(grid.affine @ np.diag([*steps, 1.0]), size)
    at = partial(resample, image_affine=grid.affine, grid=coarse)
    shown: dict[str, str] = {}
    for group in images:
        volumes = {name: at(image[:1].float(), antialias=True)[0] for name, image in group.items()}
        one, other = list(volumes.values())[:2]
        low, high = grey_window({"fixed": one, "moving": other})["intensity"]
        shown |= {name: _packed((one - low) / (high - low) * 255, coarse) for name, one in volumes.items()}
    overlays = {}
    for name, (values, limit) in signed.items():
        scaled = at(values.float())[0] / limit
        overlays[name] = _packed((scaled + 1) * 127.5, coarse, slope=limit / 127.5, intercept=-limit)
    for name, label in labels.items():
        found = at(label.float(), mode="nearest")[0]
        overlays[name] = _packed(torch.where(found > 255, found % 255 + 1, found), coarse)
    return {"images": shown, "overlays": overlays, "limits": {name: limit for name, (_, limit) in signed.items()}}


def _packed(values: Tensor, grid: Grid, *, slope: float = 1.0, intercept: float = 0.0) -> str:
    d = values.ndim
    affine = np.eye(4)
    affine[:d, :d], affine[:d, 3] = grid.affine[:d, :d], grid.affine[:d, d]
    pixels = values.round().clamp(0, 255).numpy().astype(np.uint8)
    image = nib.Nifti1Image(pixels.reshape(*pixels.shape, *[1] * (3 - d)), affine)
    image.header.set_slope_inter(slope, intercept)
    return base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode()
