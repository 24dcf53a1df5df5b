"""From an image of a head to its brain mask and label map, each on the image's own grid.

Convention: images, probabilities and masks are MetaTensors (C, *S) whose affine maps voxels to RAS millimetres.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.affines import from_matvec
from torch import Tensor, nn

from ...checks import check_number
from ...memory import check_memory
from ...notices import warn
from ...space.background import without_air
from ...space.grids import Grid, canonical_grid, model_grid
from ...space.resampling import resample, rows_on_grid
from ...space.values import finite_values
from ...weights import FixedNetwork
from .intensities import normalize
from .morphology import closed, cut_free, largest_component, with_border
from .network import BrainUNet

BRIDGE_MM = 6.5  # half the width of bridges to scalp and eyes that are cut
SLAB_MM = 40.0  # images that are thinner show too little to tell bridges
CLOSING_MM = 2.5  # radius of the ball that closes a mask's sulci
PLAUSIBLE_ML = (400.0, 2500.0)  # volume of a whole brain
_BYTES_PER_VOXEL = (16.0, 300.0)  # that the image on the network's grid and the network take
_TRAINED_MM = (160.0, 224.0, 192.0)  # R, A, S: of the whole heads in training
_AIR = 0.1  # share of the range of intensities below which there is no head
_EMPTY_PLANE = 0.02  # times the voxels of the fullest plane: with fewer there is no head in it
_MARGIN = 1  # voxels around a head
_SLAB_VOXELS = 1_000_000  # of which all probabilities are held at a time


class BrainSegmenter:
    """A network and its weights, which are loaded at the first use.

    Args:
        weights: file of the network's weights; None uses the network as it is.
        network: default: `BrainUNet()`.
        spacing: of the network's voxels, mm.
        threshold: probability of brain from which a voxel is in the mask.
        device: where the network runs.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        network: nn.Module | None = None,
        *,
        spacing: float = 2.0,
        threshold: float = 0.6,
        device: str | torch.device = "cpu",
    ) -> None:
        check_number("threshold", threshold, above=0, below=1)
        self.spacing, self.threshold, self.device = spacing, threshold, torch.device(device)
        network, settings = BrainUNet() if network is None else network, {"spatial_dims": 3, "spacing": spacing}
        self.network = FixedNetwork(network, weights, "brain extraction", settings)

    def mask(self, image: MetaTensor, border: float = 0.0) -> MetaTensor:
        """The brain mask (1, *S), uint8, of an image (1, *S); see `brain_mask`."""
        found = brain_mask(
            self.probabilities(image), grid_of(image), threshold=self.threshold, border=border, name=name_of(image)
        )
        return MetaTensor(found, meta=image.meta)

    def labels(self, image: MetaTensor) -> MetaTensor:
        """The label map (1, *S), uint8, of an image (1, *S); see `label_map`."""
        return MetaTensor(label_map(self.probabilities(image), grid_of(image)), meta=image.meta)

    @torch.no_grad()
    def probabilities(self, image: MetaTensor) -> MetaTensor:
        """Probabilities (K, *S') of the classes on the network's grid, on the CPU."""
        given = network_input(image, self.spacing)
        logits = self.network.on(self.device)(given.as_tensor()[None].to(self.device))[0]
        return MetaTensor(logits.softmax(0).cpu(), affine=given.affine)


def network_input(image: MetaTensor, spacing: float | Sequence[float] = 2.0) -> MetaTensor:
    """An image (1, *S) as the network sees it: axes nearest to R, A and S, its own directions, intensities in [0, 1].

    Planes without head at the ends of each axis are left out, but for slabs.

    Raises:
        ValueError: if it is not 3-D with one channel, has values that are infinite, is far smaller than a head, or
            larger than the memory allows.
    """
    if image.ndim != 4 or len(image) != 1:
        raise ValueError(f"expected a 3-D image of one channel, (1, *S), got shape {tuple(image.shape)}")
    values = finite_values(image.as_tensor()[0].cpu().float().numpy(), name_of(image))
    data = torch.from_numpy(np.ascontiguousarray(without_air(values)))[None]
    own = grid_of(image)
    grid = model_grid(own.affine, own.size, spacing, multiple=8)
    extents = " x ".join(f"{n * step:.3g}" for n, step in zip(own.size, own.spacing, strict=True))
    if max(grid.size) <= 8:
        raise ValueError(f"{name_of(image)}: expected a head, got an image of {extents} mm")
    what, cure = f"{name_of(image)}: an image of {extents} mm", "crop it, or correct its header"
    check_memory(_BYTES_PER_VOXEL[0] * np.prod(grid.size, dtype=float), what, cure)
    data = resample(data - data.min(), own.affine, grid, antialias=True)
    is_slab = min(n * step for n, step in zip(own.size, own.spacing, strict=True)) < SLAB_MM
    box = head_box(
        normalize(data[0]), grid.size if is_slab else [mm / s for mm, s in zip(_TRAINED_MM, grid.spacing, strict=True)]
    )
    check_memory(_BYTES_PER_VOXEL[1] * data[0][box].numel(), what, cure)
    affine = grid.affine @ from_matvec(np.eye(3), [part.start for part in box])
    return MetaTensor(normalize(data[0][box])[None], affine=torch.from_numpy(affine))


def head_box(image: Tensor, least: Sequence[float]) -> tuple[slice, ...]:
    """The part of an image (*S) in [0, 1] that holds the head with a margin; its sizes are multiples of 8 where S are.

    The network normalises by all it sees, and in training that was little more than a head.

    Args:
        least: voxels of each axis that are kept, as far as the image has them.
    """
    shown, box = image > _AIR, []
    for axis, n in enumerate(image.shape):
        counts = shown.sum([other for other in range(image.ndim) if other != axis])
        places = (counts > _EMPTY_PLANE * counts.max()).nonzero().flatten()
        first, last = (int(places[0]), int(places[-1])) if len(places) else (0, n - 1)
        wanted = max(last - first + 1 + 2 * _MARGIN, round(least[axis]))
        length = min(n, -(-wanted // 8) * 8)
        start = min(max(0, (first + last + 1 - length) // 2), n - length)
        box.append(slice(start, start + length))
    return tuple(box)


def grid_of(image: MetaTensor) -> Grid:
    """Where a MetaTensor (C, *S) lies."""
    return Grid(image.affine.detach().cpu().double().numpy(), tuple(image.shape[1:]))


def name_of(image: MetaTensor) -> str:
    """What messages call an image: the name of its file, if it is known."""
    return str(image.meta.get("filename_or_obj", "image"))


def brain_mask(
    probabilities: MetaTensor, grid: Grid, *, threshold: float = 0.6, border: float = 0.0, name: str = "image"
) -> Tensor:
    """The brain (1, *grid.size), uint8: one component without holes.

    It holds the structures, and CSF only where a ball of 2.5 mm cannot get in from outside: deep sulci and cisterns are
    outside, ventricles inside. A mask that is empty, or whole and of a volume that no brain has, gives a warning.

    Args:
        probabilities: shape (K, *S), of the classes, background first, on a grid that covers the other one.
        grid: of the mask.
        threshold: probability of brain from which a voxel counts.
        border: mm of surroundings that are kept, too; negative: that are taken away.
        name: of the image, for warnings.
    """
    own = grid_of(probabilities)
    brain = 1 - probabilities.as_tensor()[0]
    core = np.zeros(own.size, dtype=bool)
    seen = _seen(own, grid)
    is_slab = min((s.stop - s.start) * step for s, step in zip(seen, own.spacing, strict=True)) < SLAB_MM
    core[seen] = cut_free((brain >= threshold).numpy()[seen], own.spacing, 0 if is_slab else BRIDGE_MM)
    whole = closed(core, own.spacing, CLOSING_MM)
    near = torch.from_numpy(with_border(whole, own.spacing, 1.5 * float(own.spacing.max())))
    brain = torch.where(torch.from_numpy(whole), brain.clamp(min=(1 + threshold) / 2), brain) * near
    mask = largest_component((rows_on_grid(brain[None], own, grid, 0, grid.size[0])[0] >= threshold).numpy())
    mask = with_border(closed(mask, grid.spacing, 0), grid.spacing, border)
    _check_volume(mask, grid, name)
    return torch.from_numpy(mask.astype(np.uint8))[None]


def label_map(probabilities: MetaTensor, grid: Grid) -> Tensor:
    """The most likely class (1, *grid.size), uint8, of probabilities (K, *S) on a grid that covers the other one."""
    own = grid_of(probabilities)
    rows = max(1, _SLAB_VOXELS // max(1, int(np.prod(grid.size[1:]))))
    slabs = [
        rows_on_grid(probabilities.as_tensor(), own, grid, start, min(start + rows, grid.size[0])).argmax(0)
        for start in range(0, grid.size[0], rows)
    ]
    return torch.cat(slabs).to(torch.uint8)[None]


def _seen(own: Grid, grid: Grid) -> tuple[slice, ...]:
    """The part of a network's grid in which its image lies: nothing is known beyond, so nothing is thin there."""
    extents = [np.array(one.size) * one.spacing for one in (own, canonical_grid(grid))]
    margins = ((extents[0] - extents[1]) / 2 / own.spacing).clip(min=0).astype(int)
    return tuple(slice(m, n - m) for m, n in zip(margins.tolist(), own.size, strict=True))


def _check_volume(mask: np.ndarray, grid: Grid, name: str) -> None:
    """Warn of a mask that is empty, or does not touch the image's faces and has a volume that no brain has."""
    volume = float(mask.sum() * grid.extent / max(1, mask.size)) / 1000
    cut = any(face.any() for axis in range(mask.ndim) for face in (mask.take(0, axis), mask.take(-1, axis)))
    low, high = PLAUSIBLE_ML
    if not mask.any():
        warn(f"{name}: no brain was found; is this a head, and does its header tell the right spacing?")
    elif volume > high or (volume < low and not cut):
        warn(f"{name}: the brain found has {volume:.0f} mL, which is implausible; look at the mask")
