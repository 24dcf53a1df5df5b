"""A registered pair as reporters see it: native volumes, images on the model grid, and the prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..data.names import item_name
from ..evaluation.metrics import foreground_mask
from ..evaluation.written import WrittenField, written_field
from ..fields import plain
from ..space.grids import Grid
from ..space.planes import lift_field, lift_grid, lift_steps
from ..space.resampling import DisplacementField, Step, fading, rows_on_grid
from ..space.transform import Transform as SpatialTransform
from ..space.volumes import Volume
from ..space.warping import warp_image
from ..vocabulary import Data, Pred
from .scan_paths import ScanPath

_IMPLAUSIBLE = 0.25  # mean displacement, as a share of the image's diagonal

_IMAGES = ("moving", "fixed", "label_moving", "label_fixed", "mask_moving", "mask_fixed")
_FIELDS = ("ddf", "inverse_ddf")
_LANDMARKS = ("landmarks_moving", "landmarks_fixed")


@dataclass(frozen=True)
class RegisteredPair:
    """A pair and its deformation, all on the CPU.

    Args:
        name: of the pair: its id, or <fixed>__<moving>.
        volumes: the files on their own grids: "moving", "fixed", and "label_moving", "label_fixed" if there are labels.
        images: the same on the model grid, shape (1, *S), and "mask_moving", "mask_fixed" if there are masks.
        pred: the tensors and numbers that the inferer returned for this pair: "ddf" (D, *S) in voxels of the model
            grid, "warped", ...
        grid: the model grid.
        world_matrix: the pre-alignment (D + 1, D + 1), from fixed to moving points, RAS mm.
        landmarks: "landmarks_moving", "landmarks_fixed", shape (N, D), voxels of the model grid, or nothing.
        brain_only: judge where the fixed label map is not 0, instead of the image's foreground.
    """

    name: str
    volumes: Mapping[str, Volume]
    images: Mapping[str, Tensor]
    pred: Mapping[str, Tensor]
    grid: Grid
    world_matrix: np.ndarray
    landmarks: Mapping[str, Tensor] = field(default_factory=dict)
    brain_only: bool = False

    @classmethod
    def of(cls, item: Data, *, brain_only: bool = False) -> RegisteredPair:
        """The pair in a (decollated) item as `LoadPaird` made it, with a prediction under `pred`.

        Raises:
            ValueError: if the item did not come from `LoadPaird`, its fields do not fit the model grid, or the
                displacement is not finite or as large as the image.
        """
        volumes = {role: ScanPath.volume_of(item[f"{role}_path"]) for role in ("moving", "fixed")}
        labels = [f"label_{role}" for role in ("moving", "fixed") if item.get(f"label_{role}_path")]
        volumes |= {key: ScanPath.volume_of(item[f"{key}_path"]) for key in labels}
        # Pairs are judged by their first channel.
        images = {key: _on_cpu(item[key])[:1] for key in _IMAGES if item.get(key) is not None}
        pred = _prediction(item["pred"])
        affine = np.asarray(item["grid_affine"], dtype=np.float64)
        grid = Grid(affine, tuple(images["fixed"].shape[1:]))
        if "ddf" not in pred:
            raise ValueError(f"expected a field under pred['ddf'], got the keys {sorted(pred)}")
        for key in _FIELDS:
            if key in pred and pred[key].shape != (len(grid.size), *grid.size):
                wanted = (len(grid.size), *grid.size)
                raise ValueError(f"expected pred[{key!r}] of shape {wanted} for one pair, got {tuple(pred[key].shape)}")
        _check_plausible(pred["ddf"].float(), grid, volumes["moving"].path)
        name = item_name({"id": item.get("id"), **{role: volumes[role].path for role in ("moving", "fixed")}})
        matrix = np.asarray(item["world_matrix"], dtype=np.float64)
        return cls(name, volumes, images, pred, grid, matrix, _landmarks(item), brain_only)

    @property
    def spacing_mm(self) -> list[float]:
        """Voxel size of the model grid along each axis."""
        return [float(s) for s in self.grid.spacing]

    @property
    def is_aligned(self) -> bool:
        """Whether there was a pre-alignment."""
        return not np.allclose(self.world_matrix, np.eye(len(self.world_matrix)))

    def steps(self, ddf: Tensor) -> list[Step]:
        """The map from fixed to moving points whose dense part is `ddf` (D, *S), the step applied first comes first."""
        if not ddf.any():
            return [self.world_matrix]
        dense = DisplacementField(ddf.float(), self.grid)
        return [dense, self.world_matrix] if self.is_aligned else [dense]

    @property
    def is_deformed(self) -> bool:
        """Whether there is a dense part that moves anything; without it the transform is one matrix."""
        return bool(self.pred["ddf"].any())

    @cached_property
    def forward(self) -> list[Step]:
        """The map from fixed to moving points, for points of the fixed image: all lie in the model grid."""
        return self.steps(self.pred["ddf"])

    @cached_property
    def inverse(self) -> list[Step]:
        """The map from moving to fixed points; empty if the prediction has no inverse.

        Points of the moving image may come to lie outside the model grid: the field fades there.
        """
        if "inverse_ddf" not in self.pred:
            return []
        if not self.is_deformed:
            return [np.linalg.inv(self.world_matrix)]
        dense = DisplacementField(self.pred["inverse_ddf"].float(), self.grid).fading()
        return [np.linalg.inv(self.world_matrix), dense] if self.is_aligned else [dense]

    @property
    def is_in_slices(self) -> bool:
        """Whether the pair is 2-D, but its files, and the transforms that apply to them, are 3-D."""
        return any(self.volumes[role].is_slice for role in ("moving", "fixed"))

    def in_files(self, steps: Sequence[Step], *, inverse: bool = False) -> list[Step]:
        """A transform from fixed to moving points (inverse: back) as it applies to the files' points."""
        if not self.is_in_slices:
            return list(steps)
        fixed, moving = self.volumes["fixed"], self.volumes["moving"]
        start, end = (moving, fixed) if inverse else (fixed, moving)
        return lift_steps(steps, start.frame, fixed.frame, end.frame, fixed.thickness_mm)

    @cached_property
    def transforms(self) -> dict[str, SpatialTransform]:
        """The map from fixed to moving points and, if it is known, its inverse, as they apply to the files' points."""
        forward = tuple(self.in_files(fading(self.forward)))
        if not self.inverse:
            return {"transform": SpatialTransform(forward)}
        back = tuple(self.in_files(fading(self.inverse), inverse=True))
        return {"transform": SpatialTransform(forward, back), "inverse_transform": SpatialTransform(back, forward)}

    def field_in_files(self, ddf: Tensor) -> DisplacementField:
        """A field (D, *S) on the model grid as a file holds it: it fades beyond its grid."""
        field, fixed = DisplacementField(ddf.float(), self.grid).fading(), self.volumes["fixed"]
        return lift_field(field, fixed.frame, fixed.thickness_mm) if self.is_in_slices else field

    @property
    def grid_in_files(self) -> Grid:
        """The model grid as files place it."""
        fixed = self.volumes["fixed"]
        return lift_grid(self.grid, fixed.frame, fixed.thickness_mm) if self.is_in_slices else self.grid

    def warped(self, source: str, target: str, steps: Sequence[Step]) -> Tensor:
        """The image `source` on the grid of the image `target`, shape (C, *S), with one interpolation."""
        moved, like = self.volumes[source], self.volumes[target]
        if moved.whole is None:
            return warp_image(moved, like.grid, steps)
        warped = warp_image(moved.whole, like.grid_in_file, self.in_files(steps, inverse=source == "fixed"))
        return warped.reshape(-1, *like.grid.size)

    @cached_property
    def judged(self) -> dict[str, Tensor]:
        """Moving and fixed image as a batch of one, with `mask_fixed` if that decides where the pair is judged."""
        batch = {key: self.images[key][None] for key in ("moving", "fixed", "mask_fixed") if key in self.images}
        if self.brain_only and "label_fixed" in self.images:
            batch["mask_fixed"] = self.images["label_fixed"][None] > 0
        return batch

    @cached_property
    def foreground(self) -> Tensor:
        """Where the pair is judged, shape (1, *S), bool."""
        return foreground_mask(self.judged)[0]

    @cached_property
    def foreground_in_fixed(self) -> Tensor:
        """The foreground at the voxels of the fixed image, shape (1, *S), bool."""
        grid = self.volumes["fixed"].grid
        return rows_on_grid(self.foreground.float(), self.grid, grid, 0, grid.size[0]) > 0.5

    @cached_property
    def written(self) -> WrittenField:
        """The deformable part as it is written, with its inverse if there is one."""
        return self.as_written(*[self.pred[key] for key in _FIELDS if key in self.pred])

    def as_written(self, ddf: Tensor, inverse_ddf: Tensor | None = None) -> WrittenField:
        """A field (D, *S) on the model grid as its file holds it, at the voxels of the fixed image; measured where the
        pair is judged."""
        back = None if inverse_ddf is None else DisplacementField(inverse_ddf.float(), self.grid).fading()
        there = DisplacementField(ddf.float(), self.grid)
        return written_field(there, back, self.volumes["fixed"].grid, self.foreground_in_fixed)


def _landmarks(item: Data) -> dict[str, Tensor]:
    return {key: _on_cpu(item[key]) for key in _LANDMARKS if isinstance(item.get(key), Tensor)}


def _check_plausible(ddf: Tensor, grid: Grid, path: str) -> None:
    """Refuse a displacement (D, *S), voxels, that no registration gives: not finite, or as large as the image."""
    if not torch.isfinite(ddf).all():
        raise ValueError(f"{path}: the deformation is not finite; the weights may be damaged")
    spacing = torch.tensor(grid.spacing, dtype=ddf.dtype).view(-1, *[1] * (ddf.ndim - 1))
    mean, across = float((ddf * spacing).norm(dim=0).mean()), float(np.linalg.norm(grid.spacing * np.array(grid.size)))
    if mean > _IMPLAUSIBLE * across:
        raise ValueError(
            f"{path}: the deformation moves points by {mean:.4g} mm in the mean, in an image {across:.4g} mm across; "
            "the weights may be damaged"
        )


def _prediction(pred: Pred) -> dict[str, Tensor]:
    """Tensors and numbers by name; of several steps an inferer also returns what each did, which is of no interest."""
    found = {str(key): _on_cpu(value) for key, value in pred.items() if isinstance(value, Tensor | int | float)}
    return found | {"warped": found["warped"][:1]} if "warped" in found else found


def _on_cpu(value: Tensor | np.ndarray | float) -> Tensor:
    return plain(torch.as_tensor(value)).detach().cpu()
