"""Whether only one image of a pair was cut out of its surroundings, as a brain without its skull."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from ..notices import warn
from ..space.grids import Grid
from ..space.volumes import Volume
from ..vocabulary import Item

_SHOWN = 0.1  # of the brightest tissue: an object's voxels are brighter
_NEAR_MM, _FAR_MM = 4.0, 12.0  # outside of an object: where a head shows skull and scalp around its brain
_EMPTY = 0.98  # least share of what lies outside that has exactly the background's value
_TISSUE = 0.1  # intensities, 0 to 1, above which the other image shows something
_SHARE = 0.5  # least share of the shell in which it does
_FEW = 100  # voxels that tell nothing


def warn_of_one_skull(item: Item, grid: Grid, volumes: Mapping[str, Volume], seen: Tensor | None = None) -> None:
    """Warn if only one image of a loaded pair, "moving" and "fixed" on one grid, seems to be skull-stripped."""
    images = {role: item[role][:1] for role in ("moving", "fixed")}
    role = cut_out_alone(images, grid.spacing.tolist(), seen)
    if role is not None:
        other = "fixed" if role == "moving" else "moving"
        whole = volumes[other].path
        warn(
            f"{volumes[role].path}: shows nothing around its object, as a skull-stripped brain, and {whole} does: what "
            f"lies around may be pressed onto its rim; strip both or neither, or give --mask_{other} of the same object"
        )


def cut_out_alone(images: Mapping[str, Tensor], spacing_mm: Sequence[float], seen: Tensor | None = None) -> str | None:
    """The role of an image that shows an object with nothing around it, where the other one goes on.

    Args:
        images: "moving" and "fixed", (1, *S), aligned, from 0 to 1, where the background is 0.
        spacing_mm: of their grid.
        seen: where the moving image has data, (1, *S); None: everywhere.
    Returns:
        "moving" or "fixed"; None if both or neither were cut out.
    """
    for role, other in (("moving", "fixed"), ("fixed", "moving")):
        shares = shares_around(images[role], images[other], spacing_mm, seen)
        if shares is not None and shares[0] >= _EMPTY and shares[1] >= _SHARE:
            return role
    return None


def shares_around(
    image: Tensor, other: Tensor, spacing_mm: Sequence[float], seen: Tensor | None = None
) -> tuple[float, float] | None:
    """How much of what lies around an image's object is exactly empty, and in how much of a shell around it, 4 to 12 mm
    away, the other image shows something. None if there is no such shell."""
    inside = (image > _SHOWN).float()
    outside = _dilated(inside, _NEAR_MM, spacing_mm) == 0
    outside = outside if seen is None else outside & (seen > 0)
    shell = outside & (_dilated(inside, _FAR_MM, spacing_mm) > 0)
    if int(shell.sum()) < _FEW:
        return None
    return float((image[outside] == 0).float().mean()), float((other[shell] > _TISSUE).float().mean())


def _dilated(mask: Tensor, distance_mm: float, spacing_mm: Sequence[float]) -> Tensor:
    """A mask (1, *S) grown by a distance along each axis."""
    for axis, spacing in enumerate(spacing_mm, start=1):  # one axis after the other: a cube of voxels costs minutes
        radius = max(1, round(distance_mm / spacing))
        rows = mask.movedim(axis, -1)
        mask = F.max_pool1d(rows.flatten(1, -2), 2 * radius + 1, 1, radius).reshape(rows.shape).movedim(-1, axis)
    return mask
