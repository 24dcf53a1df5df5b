"""What scans are aligned with: MNI152, an image of the user's, or the average of the group itself.

Convention: maps take world points of the template to world points of the scan, RAS millimetres.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..cohorts.averages import averaged as mean
from ..cohorts.middle import mean_stretch
from ..data.names import file_stem
from ..space.grids import canonical_grid
from ..space.memory_images import source_of
from ..space.resampling import resample
from ..space.volumes import Volume, load_image, load_labels
from .intensities import foreground

MNI152, GROUP, NONE = "mni152", "group", "none"

_MNI_SPACE = "MNI152NLin2009aSym"  # BIDS's name of the template that nilearn carries

_SIZES_APART = 3.0  # ratio of volumes from which on two heads are not of one species


@dataclass(frozen=True)
class Template:
    """An image with the mask of its brain, if that is known, and the name of its space."""

    space: str
    image: Volume
    mask: Volume | None = None

    def __str__(self) -> str:
        return f"{self.space} {self.digest}"

    @cached_property
    def digest(self) -> str:
        """Changes with the voxels, the masks and the frame."""
        parts = [self.image.data.numpy().tobytes(), self.image.affine.tobytes()]
        parts += [self.mask.data.numpy().tobytes()] if self.mask is not None else []
        return hashlib.sha256(b"".join(parts)).hexdigest()[:12]

    def check_size(self, image: Volume, mask: Volume | None) -> float:
        """How many times as large as the template's a head is; of both the brain, if their masks are known.

        Raises:
            ValueError: if they cannot be of one species, or one of them is a slice.
        """
        axes, wanted = len(image.grid.size), len(self.image.grid.size)
        if axes != wanted:
            raise ValueError(f"{image.path}: expected an image of {wanted} axes, as the template has, got {axes}")
        both = mask is not None and self.mask is not None
        own = head_volume(image, mask if both else None)
        ratio = own / head_volume(self.image, self.mask if both else None)
        if not 1 / _SIZES_APART < ratio < _SIZES_APART:
            what = "brain" if both else "head"
            raise ValueError(
                f"{image.path}: the {what}, {own / 1000:.3g} ml, has {ratio:.2g} times the size of the template's: "
                "another species, another unit of length, or a wrong mask"
            )
        return ratio


def head_volume(image: Volume, mask: Volume | None) -> float:
    """Of the voxels in a mask, or of what is not background (mm^D)."""
    inside = mask.data[0].numpy() > 0 if mask is not None else foreground(image.data[0].numpy())
    return float(inside.sum()) * float(np.prod((mask or image).grid.spacing))


def named_template(template: str, mask: str | None = None) -> Template | None:
    """The template of a word or a file; None for "none" and "group".

    Raises:
        ImportError: if MNI152 is wanted and nilearn is not installed.
        FileNotFoundError, ValueError: as `load_image`.
    """
    if template in (GROUP, NONE):
        return None
    if template != MNI152:
        space = re.sub(r"[^A-Za-z0-9]", "", file_stem(template)) or "template"
        return Template(space, load_image(template), load_labels(mask) if mask else None)
    try:
        from nilearn import datasets
    except ImportError as error:
        raise ImportError("MNI152 comes with the package nilearn: pip install 'morphzoo[demo]'") from error
    image = load_image(source_of(datasets.load_mni152_template(resolution=1), "MNI152"))
    inside = load_labels(source_of(datasets.load_mni152_brain_mask(resolution=1), "MNI152's mask"))
    return Template(_MNI_SPACE, image, inside)


def first_template(image: Volume, mask: Volume | None) -> Template:
    """A scan as the template of its group, before there is an average."""
    grid = canonical_grid(image.grid)
    data = resample(image.data, image.affine, grid, fill=0.0)
    moved = replace(image, data=data, affine=grid.affine, path="the group's average")
    inside = None
    if mask is not None:
        shown = resample(mask.data, mask.affine, grid, mode="nearest", fill=0.0)
        inside = replace(moved, data=shown, path="the group's mask")
    return Template(GROUP, moved, inside)


def averaged(before: Template, images: Sequence[Path], masks: Sequence[Path], maps: Sequence[np.ndarray]) -> Template:
    """The average of scans on a template's grid, of the mean size and shape of all.

    Args:
        before: to which they were aligned.
        images: .npy files (1, *S), float32. masks: of their brains, 0 or 1, of all or of none.
        maps: from the template to each scan (D + 1, D + 1).
    """
    grid = before.image.grid
    back = np.linalg.inv(mean_stretch(maps, grid.center))

    def middle(paths: Sequence[Path]) -> Tensor:
        return resample(mean(paths, [1.0] * len(paths)).image, grid.affine, grid, world_matrix=back, fill=0.0)

    inside = None
    if masks and before.mask is not None:
        share = middle(masks)
        inside = replace(before.mask, data=(share > 0.5).to(torch.int16))
    return Template(before.space, replace(before.image, data=middle(images)), inside)


def template_of(path: Path, mask: Path | None) -> Template:
    """The average that `write_image` wrote."""
    return Template(GROUP, load_image(path), load_labels(mask) if mask is not None else None)
