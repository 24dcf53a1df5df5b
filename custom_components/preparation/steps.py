"""The steps of a preparation, each a MONAI dictionary transform; the bundle `prepare` composes them.

Convention: an item has the images of one session under the names of their contrasts, MetaTensors (1, *S); the mask of
the brain under `brain_mask`, on the grid of the reference, the first contrast that there is; and under `maps` a matrix
for each other contrast, from world points of the reference to its own. Once it is aligned, `to_template` takes world
points of the template to the reference. All in RAS millimetres. `found` holds what a step wants to be kept in the log.
No image is interpolated before `OnGridd`, which does so once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from ..checks import check_number
from ..space.affine import register_affine
from ..space.affine_levels import Scan
from ..space.grids import Grid, canonical_grid, fixed_size_grid, model_grid
from ..space.memory_images import source_of
from ..space.planes import embed
from ..space.readers import import_itk
from ..space.resampling import resample
from ..space.volumes import Volume, load_image, load_labels
from ..vocabulary import Data, Item
from . import intensities
from .template import Template

MASK = "brain_mask"

_SAME_GRID_MM = 1e-3


def volume_of(item: Data, key: str) -> Volume:
    """An image of an item, or its mask, with its name for messages."""
    read = load_labels if key == MASK else load_image
    return read(source_of(item[key], str(item[key].meta.get("filename_or_obj", key))))


def mask_of(item: Data) -> Volume | None:
    """The mask of an item, if there is one."""
    return volume_of(item, MASK) if MASK in item else None


def present(item: Data, contrasts: Sequence[str]) -> list[str]:
    """The contrasts that an item has, the reference first."""
    return [name for name in contrasts if name in item]


def _tensor(image: Volume, data: torch.Tensor) -> MetaTensor:
    """Voxels (1, *S) on an image's grid, with its name."""
    result = image.meta_tensor(data)
    result.meta["filename_or_obj"] = str(image.path)
    return result


@dataclass(frozen=True)
class LoadSessiond(Transform):
    """Read the images of a session (`images`, paths by contrast) and its mask (`mask`, a path or None).

    Raises:
        ValueError: if a file is no image, does not say where it lies, or the mask is empty or not on the reference's
            grid.
    """

    contrasts: Sequence[str]

    def __call__(self, data: Data) -> Item:
        result = {key: value for key, value in data.items() if key not in ("images", "mask")}
        for name in present(data["images"], self.contrasts):
            image = load_image(data["images"][name])
            if not image.has_frame:
                raise ValueError(
                    f"{image.path}: the header does not say how the image lies (qform and sform codes are 0): left and "
                    "right are unknown; set it first"
                )
            result[name] = _tensor(image, image.data)
        if data.get("mask"):
            reference = volume_of(result, present(result, self.contrasts)[0])
            mask = load_labels(data["mask"])
            _refuse_other_grid(mask, reference)
            if not bool((mask.data > 0).any()):
                raise ValueError(f"{mask.path}: expected a brain mask, got 0 in every voxel")
            result[MASK] = _tensor(reference, (mask.data > 0).to(torch.int16))
        return result


def _refuse_other_grid(mask: Volume, image: Volume) -> None:
    if mask.grid.size != image.grid.size:
        raise ValueError(
            f"{mask.path}: expected a mask on the grid of {image.path}, {image.grid.size} voxels, got {mask.grid.size}"
        )
    corner = np.array([*image.grid.size, 1.0])
    apart = np.abs((mask.affine - image.affine) @ np.diag(corner)).max()
    if apart > _SAME_GRID_MM * max(1.0, float(np.abs(corner).max())):
        raise ValueError(f"{mask.path}: expected a mask on the grid of {image.path}, it lies {apart:.2g} mm elsewhere")


@dataclass(frozen=True)
class CorrectBiasd(Transform):
    """Divide images by their bias field, as ITK's N4 finds it (Tustison et al., 2010).

    It looks at the brain, or without a mask at what is brighter than Otsu's threshold.

    Args:
        contrasts: which images.
        spacing: mm, of the coarser grid on which the field is found.
        iterations: at each of the levels of the field's splines.
    Raises:
        ImportError: if `itk` is not installed.
    """

    contrasts: Sequence[str]
    spacing: float = 6.0
    iterations: Sequence[int] = (50, 50, 50)

    def __call__(self, data: Data) -> Item:
        result = dict(data)
        for name in present(data, self.contrasts):
            image = volume_of(data, name)
            inside = torch.from_numpy(intensities.foreground(image.data.numpy())).float()
            coarse = Scan(image.data, inside, image.grid).reduced(self.spacing)
            log_field = self._log_field(coarse.image[0].numpy(), (coarse.weights[0] > 0.5).numpy())
            shown = resample(torch.from_numpy(log_field)[None], coarse.grid.affine, image.grid, padding="border")
            result[name] = _tensor(image, image.data / shown.exp())
        return result

    def _log_field(self, image: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """The logarithm of the field (*S), 0 on the average inside of the mask."""
        itk, d = import_itk("N4's bias correction"), image.ndim
        kinds = itk.Image[itk.F, d], itk.Image[itk.UC, d], itk.Image[itk.F, d]
        # N4 takes the logarithm.
        shown = itk.image_from_array(np.ascontiguousarray(image - image.min() + 1e-3 * np.ptp(image)))
        n4 = itk.N4BiasFieldCorrectionImageFilter[kinds].New(shown)
        n4.SetMaskImage(itk.image_from_array(np.ascontiguousarray(inside.astype(np.uint8))))
        n4.SetNumberOfFittingLevels(len(self.iterations))
        n4.SetMaximumNumberOfIterations([int(n) for n in self.iterations])
        n4.Update()
        field = itk.array_from_image(n4.ReconstructBiasField(n4.GetLogBiasFieldControlPointLattice()))
        return field - field[inside].mean()


@dataclass(frozen=True)
class FindBraind(Transform):
    """Find the brain in the reference, unless the session came with a mask.

    Args:
        contrasts: the reference is the first one that there is.
        extract: adds a mask of an image "x" to an item under "x_brain", as `ExtractBraind` does.
    Raises:
        ValueError: if the reference is a slice, or shows no brain.
    """

    contrasts: Sequence[str]
    extract: Callable[[Data], Item]

    def __call__(self, data: Data) -> Item:
        if MASK in data:
            return dict(data)
        first = present(data, self.contrasts)[0]
        reference = volume_of(data, first)
        if len(reference.grid.size) < 3:
            advice = "the brain is found in 3-D images alone: give --masks, or --brain False"
            raise ValueError(f"{reference.path}: this is a slice, and {advice}")
        mask = self.extract({first: data[first]})[f"{first}_brain"]
        if not bool(mask.any()):
            raise ValueError(f"{reference.path}: no brain was found in it")
        return {**data, MASK: _tensor(reference, mask.as_tensor().to(torch.int16))}


@dataclass(frozen=True)
class Coregisterd(Transform):
    """Find the rigid map from the reference to each other contrast of the session."""

    contrasts: Sequence[str]
    engine: str = "torch"

    def __call__(self, data: Data) -> Item:
        first, *others = present(data, self.contrasts)
        reference = volume_of(data, first)
        maps = {
            name: register_affine(reference, volume_of(data, name), stage="rigid", engine=self.engine)
            for name in others
        }
        return {**data, "maps": maps}


@dataclass(frozen=True)
class ToTemplated(Transform):
    """Find the affine map from the template (`template`) to the reference. Without a template nothing is done.

    Where both brains are known only they are compared.

    Raises:
        ValueError: if the head is more than three times as large or small as the template's.
    """

    contrasts: Sequence[str]
    engine: str = "torch"
    stage: Literal["rigid", "similarity", "affine"] = "affine"

    def __call__(self, data: Data) -> Item:
        template: Template | None = data["template"]
        if template is None:
            return dict(data)
        image, mask = volume_of(data, present(data, self.contrasts)[0]), mask_of(data)
        ratio = template.check_size(image, mask)
        fixed = template.image
        if mask is not None and template.mask is not None:
            image, fixed = _masked(image, mask), _masked(fixed, template.mask)
        matrix = register_affine(fixed, image, stage=self.stage, engine=self.engine)
        found = {"size_ratio": ratio, "determinant": float(np.linalg.det(matrix))}
        return {**data, "to_template": matrix, "found": found}


def _masked(image: Volume, mask: Volume) -> Volume:
    return replace(image, data=image.data * (mask.data > 0))


@dataclass(frozen=True)
class OnGridd(Transform):
    """Bring all images of a session, and its mask, to one grid, each with one interpolation.

    Args:
        contrasts: which images.
        spacing: mm, one number or one per axis; None: the template's, or without one the reference's.
        size: voxels per axis, about the middle of the template; None: as many as cover it.
        stripped: what lies outside of the brain mask, if there is one, becomes 0.
    Raises:
        ValueError: if a number of spacing or size is none above 0, or nothing of the brain lies on the grid.
    """

    contrasts: Sequence[str]
    spacing: float | Sequence[float] | None = None
    size: Sequence[int] | None = None
    stripped: bool = True

    def __post_init__(self) -> None:
        for step in [] if self.spacing is None else np.atleast_1d(self.spacing).tolist():
            check_number("spacing", step, above=0)
        for number in [] if self.size is None else np.atleast_1d(self.size).tolist():
            check_number("size", number, least=1, whole=True)

    def __call__(self, data: Data) -> Item:
        names = present(data, self.contrasts)
        volumes = {name: volume_of(data, name) for name in names}
        template: Template | None = data["template"]
        grid = self._grid(volumes[names[0]].grid if template is None else template.image.grid)
        matrix = data.get("to_template", np.eye(len(grid.affine)))
        result, inside = dict(data), None
        if MASK in data:
            mask = volume_of(data, MASK)
            inside = resample((mask.data > 0).float(), mask.affine, grid, world_matrix=matrix, fill=0.0) > 0.5
            if not bool(inside.any()):
                raise ValueError(f"{mask.path}: nothing of the brain lies on the grid of {grid.size} voxels")
            result[MASK] = _placed(inside.to(torch.int16), grid, mask)
        for name, image in volumes.items():
            whole = data.get("maps", {}).get(name, np.eye(len(matrix))) @ matrix
            moved = resample(image.data, image.affine, grid, world_matrix=whole, fill=image.background, antialias=True)
            result[name] = _placed(moved * inside if self.stripped and inside is not None else moved, grid, image)
        return result

    def _grid(self, base: Grid) -> Grid:
        if self.size is None:
            return canonical_grid(base) if self.spacing is None else model_grid(base.affine, base.size, self.spacing)
        spacing = canonical_grid(base).spacing.tolist() if self.spacing is None else self.spacing
        return fixed_size_grid(spacing, self.size, base.center)


def _placed(data: torch.Tensor, grid: Grid, image: Volume) -> MetaTensor:
    """Voxels (1, *S) on a grid; of a slice with a third axis of one voxel, as its file has it."""
    d = len(grid.size)
    affine = torch.from_numpy(embed(grid.affine))
    return MetaTensor(data.reshape(1, *grid.size, *[1] * (3 - d)), affine=affine, meta={"filename_or_obj": image.path})


@dataclass(frozen=True)
class Landmarksd(Transform):
    """Note the intensities of each contrast at `intensities.LANDMARKS`, of which the scheme of Nyul takes the mean."""

    contrasts: Sequence[str]

    def __call__(self, data: Data) -> Item:
        mask, found = mask_of(data), {}
        for name in present(data, self.contrasts):
            image = volume_of(data, name)
            inside = intensities.foreground(image.data.numpy())
            if mask is not None:
                back = np.linalg.inv(data.get("maps", {}).get(name, np.eye(len(image.affine))))
                shown = resample(mask.data, mask.affine, image.grid, world_matrix=back, mode="nearest", fill=0.0)
                inside = shown.numpy() > 0
            found[name] = intensities.landmarks(image.data.numpy()[inside])
        return {**data, "found": {"landmarks": found}}


@dataclass(frozen=True)
class Normalized(Transform):
    """Make the intensities of a session's images, which are on one grid, comparable with those of others.

    Args:
        contrasts: which images.
        scheme: one of `intensities.SCHEMES`. The brain decides, or without a mask what is not air.
    Raises:
        ValueError: for another scheme, or if "fcm" or "gmm" have no T1w image to find white matter in.
    """

    contrasts: Sequence[str]
    scheme: str = "percentile"

    def __post_init__(self) -> None:
        if self.scheme not in intensities.SCHEMES:
            raise ValueError(f"--normalize: expected one of {', '.join(intensities.SCHEMES)}, got {self.scheme!r}")

    def __call__(self, data: Data) -> Item:
        result = dict(data)
        names = present(data, self.contrasts) if self.scheme != "none" else []
        arrays = {name: data[name].as_tensor().numpy().astype(np.float64) for name in names}
        inside = data[MASK].as_tensor().numpy() > 0 if MASK in data else None
        white = None
        if names and self.scheme in ("fcm", "gmm"):
            inside = intensities.foreground(arrays[names[0]]) if inside is None else inside
            if names[0] != "T1w":
                raise ValueError(f"--normalize {self.scheme}: needs a T1w image, got {', '.join(names)}")
            find = intensities.white_matter_by_fcm if self.scheme == "fcm" else intensities.white_matter_by_gmm
            white = find(arrays["T1w"][inside])
        for name, array in arrays.items():
            values = array[intensities.foreground(array) if inside is None else inside]
            mapped = self._map(name, values, white, data.get("scales", {}))(array)
            result[name] = MetaTensor(torch.from_numpy(mapped.astype(np.float32)), meta=data[name].meta)
        return result

    def _map(
        self, name: str, values: np.ndarray, white: np.ndarray | None, scales: Mapping[str, Sequence[float]]
    ) -> intensities.Map:
        if white is not None:
            return intensities.tissue(values, white)
        if self.scheme == "nyul":
            return intensities.nyul(values, scales[name])
        if self.scheme == "whitestripe":
            return intensities.whitestripe(values, name)
        return intensities.zscore(values) if self.scheme == "zscore" else intensities.percentile(values)
