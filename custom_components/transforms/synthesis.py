"""From label maps to images of any contrast, in torch, batched, on whatever device the maps are on.

Each random step is a pair of methods: `draw` takes all random numbers from a generator and returns them as a dictionary
of tensors, one entry of the batch per sample; the call is then a pure function of its input and the draw, so that a
draw can be stored and replayed. Label maps are integers (B, 1, *S), images float32 (B, 1, *S) in [0, 1].
References: Hoffmann et al., SynthMorph, IEEE TMI 41(3), 2022; Billot et al., SynthSeg, Medical Image Analysis 86, 2023.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Generator, Tensor

from ..fields import (
    affine_to_ddf,
    compose_affine,
    integrate_velocity,
    invert_affine,
    resize_field,
    voxel_to_centred,
    warp,
)

Draw = dict[str, Tensor]
Range = tuple[float, float]


class RandomWarp:
    """Random diffeomorphic warp with random affine offsets: label maps -> moved label maps, by nearest neighbour.

    The velocity lives at half the resolution: for each of `scales` Gaussian noise with one value in `scale` voxels,
    linearly interpolated, of a standard deviation drawn from U(0, `std`) for each sample and scale; 5 squarings. What
    comes from outside the map is 0.

    Args:
        std: largest standard deviation of the velocity, in voxels of its half-resolution grid.
        scales: in voxels of the full grid.
        rotation_degrees, scaling, shear, shift: largest absolute offsets, each drawn uniformly; shift in voxels.
    References: the defaults are SynthMorph's for brains; for shapes std 3, scales (8, 16, 32).
    """

    def __init__(
        self,
        std: float = 0.5,
        scales: Sequence[float] = (16,),
        *,
        rotation_degrees: float = 0.0,
        scaling: float = 0.0,
        shear: float = 0.0,
        shift: float = 0.0,
    ) -> None:
        self.std, self.scales = std, tuple(scales)
        self.affine = {"rotation_degrees": rotation_degrees, "scaling": scaling, "shear": shear, "shift": shift}

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> Draw:
        """Draw "velocity" (B, D, *ceil(S / 2)), in voxels of its grid, and "matrix" (B, D + 1, D + 1)."""
        half = [-(-n // 2) for n in size]
        velocity = sum(
            smooth_noise(half, scale / 2, uniform((0, self.std), (batch,), generator), generator, channels=len(size))
            for scale in self.scales
        )
        return {"velocity": torch.as_tensor(velocity), "matrix": random_affine(batch, size, generator, **self.affine)}

    def field(self, draw: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        """The displacement x -> A(x + u(x)) - x of a draw, (B, D, *S), in voxels."""
        u = resize_field(integrate_velocity(draw["velocity"], 5), size)
        d = len(size)
        return affine_to_ddf(draw["matrix"], size) + torch.einsum("bij,bj...->bi...", draw["matrix"][:, :d, :d], u)

    def __call__(self, labels: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """The moved maps, (B, 1, *S), in the type of `labels`."""
        return warp(labels, self.field(draw, labels.shape[2:]), mode="nearest")


class RandomContrast:
    """Render label maps as images: per-label intensity and noise, background, blur, bias field, gamma, all random.

    Steps, on the scale 0 to 255: mean + std * noise with both drawn for each label; with probability
    `zero_background` the background becomes 0; blur; thick slices; multiplication with exp(smooth noise); clipping;
    min-max scaling to [0, 1]; image ** exp(N(0, gamma)); cropped field of view. With `statistics` the labels' means
    come from a table instead, for T1-like and other fixed contrasts.

    Args:
        num_labels: label ids lie in 0 ... num_labels - 1.
        mean, std: ranges of each label's mean and noise.
        background_mean, background_std: the same for label 0.
        zero_background: probability that label 0 is set to exactly 0, after the noise.
        blur: range of the Gaussian's standard deviation in voxels, drawn for each axis.
        bias: largest standard deviation of the log bias field. bias_scale: voxels per control value.
        gamma: standard deviation of the log exponent.
        thick_slices: probability of thick slices along one random axis; `thickness`: range of the stride in voxels.
        crop: probability of a cropped field of view (0 outside); `crop_share`: largest share lost at each end.
        statistics: CSV file with columns `id`, `t1_prior_mean`, `t1_prior_mean_spread` (0 to 255); replaces `mean`,
            `background_mean`. Labels of equal statistics (left and right) get equal means.
        contrast: with `statistics`, "t1", "t2" (fluid bright, grey above white; bone and background stay dark) or
            "inverted"; of several, one is drawn for each image.
        statistics_share: share of the images that the table colours; the others get random means.
    References: the defaults are SynthMorph's. The T2-like table is ours: 285 - 1.3 * T1 mean for ids below 500.
    """

    def __init__(
        self,
        num_labels: int = 531,
        *,
        mean: Range = (25, 225),
        std: Range = (5, 25),
        background_mean: Range = (0, 225),
        background_std: Range = (0, 25),
        zero_background: float = 0.2,
        blur: Range = (0, 1),
        bias: float = 0.3,
        bias_scale: float = 40,
        gamma: float = 0.25,
        thick_slices: float = 0.0,
        thickness: Range = (2, 8),
        crop: float = 0.0,
        crop_share: float = 0.2,
        statistics: str | os.PathLike | None = None,
        contrast: str | Sequence[str] = "t1",
        statistics_share: float = 1.0,
    ) -> None:
        self.num_labels = num_labels
        self.mean, self.std = mean, std
        self.background_mean, self.background_std = background_mean, background_std
        self.zero_background = zero_background
        self.blur, self.bias, self.bias_scale, self.gamma = blur, bias, bias_scale, gamma
        self.thick_slices, self.thickness = thick_slices, thickness
        self.crop, self.crop_share = crop, crop_share
        contrasts = [contrast] if isinstance(contrast, str) else contrast
        self.tables = [] if statistics is None else [read_statistics(statistics, num_labels, c) for c in contrasts]
        self.statistics_share = statistics_share

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> Draw:
        """All random numbers of `batch` images: per-label tables (B, L), the voxels' noise (B, 1, *S), and the rest."""
        d, device = len(size), generator.device
        std = uniform(self.std, (batch, self.num_labels), generator)
        std[:, 0] = uniform(self.background_std, (batch,), generator)
        mean = uniform(self.mean, (batch, self.num_labels), generator)
        mean[:, 0] = uniform(self.background_mean, (batch,), generator)
        if self.tables:
            drawn = [draw_means(m.to(device), s.to(device), batch, generator) for m, s in self.tables]
            which = torch.randint(len(drawn), (batch,), generator=generator, device=device)
            listed = torch.stack(drawn)[which, torch.arange(batch, device=device)]
            by_table = uniform((0, 1), (batch, 1), generator) < self.statistics_share
            mean = torch.where(by_table, listed, mean)
        thick = uniform((0, 1), (batch, 1), generator) < self.thick_slices
        axis = torch.arange(d, device=device) == torch.randint(d, (batch, 1), generator=generator, device=device)
        stride = uniform(self.thickness, (batch, 1), generator).round()
        cropped = uniform((0, 1), (batch, 1, 1), generator) < self.crop
        return {
            "mean": mean,
            "std": std,
            "noise": torch.randn(batch, 1, *size, generator=generator, device=device),
            "zero_background": uniform((0, 1), (batch,), generator) < self.zero_background,
            "blur": uniform(self.blur, (batch, d), generator),
            "stride": torch.where(thick & axis, stride, torch.ones(1, device=device)),
            "bias": smooth_noise(size, self.bias_scale, uniform((0, self.bias), (batch,), generator), generator),
            "exponent": (self.gamma * torch.randn(batch, generator=generator, device=device)).exp(),
            "crop": uniform((0, self.crop_share), (batch, d, 2), generator) * cropped,
        }

    def __call__(self, labels: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """The image (B, 1, *S), float32 in [0, 1], of integer maps (B, 1, *S) with ids below `num_labels`."""
        shape = (-1, *[1] * (labels.ndim - 1))
        index = labels.flatten(1).long()
        image = draw["mean"].gather(1, index).view(labels.shape)
        image = torch.addcmul(image, draw["std"].gather(1, index).view(labels.shape), draw["noise"])
        image = image.masked_fill((labels == 0) & draw["zero_background"].view(shape), 0)
        image = gaussian_blur(image, draw["blur"], radius=math.ceil(3 * self.blur[1]))
        if self.thick_slices:
            image = thick_slices(image, draw["stride"])
        image = (image * draw["bias"].exp()).clamp_(0, 255)
        low, high = image.flatten(1).amin(1).view(shape), image.flatten(1).amax(1).view(shape)
        image = ((image - low) / (high - low).clamp(min=1e-6)) ** draw["exponent"].view(shape)
        return crop_field_of_view(image, draw["crop"]) if self.crop else image


class SynthesizePair:
    """The training pair of SynthMorph: both label maps of a batch warped, then rendered independently.

    Args:
        warp: draws the spatial augmentation of either map.
        contrast: draws the images of the moving maps, and of the fixed ones unless `fixed_contrast` is given.
        fixed_contrast: for the fixed maps.
        flip: probability that both maps of a sample are flipped along an axis; one number, or one per axis.
        same_contrast: probability that the labels' means and noise levels are the same in both images; background,
            blur, bias field and gamma stay independent.
        strip: probability that both maps lose the labels from `first_extracerebral` on (skull-stripping).
    """

    def __init__(
        self,
        warp: RandomWarp,
        contrast: RandomContrast,
        fixed_contrast: RandomContrast | None = None,
        *,
        flip: float | Sequence[float] = 0.5,
        same_contrast: float = 0.0,
        strip: float = 0.0,
        first_extracerebral: int = 500,
    ) -> None:
        self.warp, self.contrasts = warp, (contrast, fixed_contrast or contrast)
        if same_contrast and self.contrasts[0].num_labels != self.contrasts[1].num_labels:
            raise ValueError("expected two contrasts of equal num_labels, so that a pair can share its means")
        self.same_contrast = same_contrast
        self.flip, self.strip, self.first_extracerebral = flip, strip, first_extracerebral

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> dict[str, Any]:
        """Draw "flip" (B, D) and "strip" (B,), shared by the pair, and the two maps' own draws by name."""
        contrasts = [contrast.draw(batch, size, generator) for contrast in self.contrasts]
        same = uniform((0, 1), (batch, 1), generator) < self.same_contrast
        if self.same_contrast:
            contrasts[1] |= {key: torch.where(same, contrasts[0][key], contrasts[1][key]) for key in ("mean", "std")}
        return {
            "flip": uniform((0, 1), (batch, len(size)), generator) < torch.tensor(self.flip, device=generator.device),
            "strip": uniform((0, 1), (batch,), generator) < self.strip,
            "warp": [self.warp.draw(batch, size, generator) for _ in range(2)],
            "contrast": contrasts,
        }

    def __call__(self, label_moving: Tensor, label_fixed: Tensor, draw: Mapping[str, Any]) -> dict[str, Tensor]:
        """`moving`, `fixed` (B, 1, *S), the label maps they show, in the input's type, and matrices (B, D, D + 1).

        `matrix_moving` and `matrix_fixed` are the affine parts of the warps, from each image to its map as it came in,
        centred coordinates; `matrix` is the map from fixed to moving that aligns the pair if the maps are aligned.

        Raises:
            ValueError: if the two batches differ in shape, or are not the integer maps of the draw's size.
        """
        for labels in (label_moving, label_fixed):
            if labels.shape != draw["contrast"][0]["noise"].shape or labels.is_floating_point():
                raise ValueError(
                    f"expected two batches of integer label maps {tuple(draw['contrast'][0]['noise'].shape)}, "
                    f"got {labels.dtype} {tuple(labels.shape)}"
                )
        result: dict[str, Tensor] = {}
        shape = (-1, *[1] * (label_moving.ndim - 1))
        for i, (role, labels) in enumerate((("moving", label_moving), ("fixed", label_fixed))):
            for axis in range(labels.ndim - 2):
                labels = torch.where(draw["flip"][:, axis].view(shape), labels.flip(axis + 2), labels)
            labels = self.warp(labels, draw["warp"][i])
            labels = labels.masked_fill((labels >= self.first_extracerebral) & draw["strip"].view(shape), 0)
            result[f"label_{role}"] = labels
            result[role] = self.contrasts[i](labels, draw["contrast"][i])
        d = label_moving.ndim - 2
        for role, warp_draw in zip(("moving", "fixed"), draw["warp"], strict=True):
            result[f"matrix_{role}"] = voxel_to_centred(warp_draw["matrix"][:, :d], label_moving.shape[2:])
        result["matrix"] = compose_affine(invert_affine(result["matrix_moving"]), result["matrix_fixed"])
        return result


class SynthesizeScan:
    """Single scans rendered from their label maps, where they lie.

    Args:
        contrast: draws the images.
        strip: probability that a map loses the labels from `first_extracerebral` on (skull-stripping).
        groups: ids of the label map that is handed on, for each structure's id ("id of the map": "id of its group"; an
            id that is not named becomes 0); None leaves the map as it is.
    """

    def __init__(
        self,
        contrast: RandomContrast,
        *,
        strip: float = 0.0,
        first_extracerebral: int = 500,
        groups: Mapping[Any, int] | None = None,
    ) -> None:
        self.contrast, self.strip, self.first_extracerebral = contrast, strip, first_extracerebral
        self.groups: Tensor | None = None
        if groups is not None:
            self.groups = torch.zeros(contrast.num_labels, dtype=torch.int16)
            for label, group in groups.items():
                self.groups[int(label)] = int(group)

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> dict[str, Any]:
        """Draw "strip" (B,) and "contrast"."""
        return {
            "strip": uniform((0, 1), (batch,), generator) < self.strip,
            "contrast": self.contrast.draw(batch, size, generator),
        }

    def __call__(self, label_moving: Tensor, draw: Mapping[str, Any]) -> dict[str, Tensor]:
        """`moving`, the images (B, 1, *S), and `label_moving`, for integer maps (B, 1, *S)."""
        shape = (-1, *[1] * (label_moving.ndim - 1))
        labels = label_moving.masked_fill((label_moving >= self.first_extracerebral) & draw["strip"].view(shape), 0)
        image = self.contrast(labels, draw["contrast"])
        if self.groups is not None:
            labels = self.groups.to(labels.device)[labels.long()]
        return {"moving": image, "label_moving": labels}


class RandomShapes:
    """Label maps of random shapes: the argmax over smooth random images, one for each label, each warped on its own.

    Args:
        size: of the maps.
        num_labels: labels 0 ... num_labels - 1.
        scales: of the images' noise, in voxels per control value; the standard deviation of each is drawn from U(0, 1).
        warp_scales, warp_std: the displacement of each label's image: scales, and largest standard deviation in voxels.
    References: Hoffmann et al., IEEE TMI 41(3), 2022. The defaults are those of the authors' 2-D demonstration with the
        26 labels of their 3-D training; scales are in voxels: halve them for maps of half the size.
    """

    def __init__(
        self,
        size: Sequence[int],
        num_labels: int = 26,
        *,
        scales: Sequence[float] = (32, 64),
        warp_scales: Sequence[float] = (16, 32, 64),
        warp_std: float = 16.0,
    ) -> None:
        self.size, self.num_labels = tuple(size), num_labels
        self.scales, self.warp_scales, self.warp_std = tuple(scales), tuple(warp_scales), warp_std

    def draw(self, generator: Generator) -> Tensor:
        """One map (1, *size), uint8. Labels are made one by one, so that memory does not grow with their number."""
        best, labels = None, torch.zeros(1, 1, *self.size, dtype=torch.uint8, device=generator.device)
        for label in range(self.num_labels):
            image = sum(smooth_noise(self.size, s, uniform((0, 1), (1,), generator), generator) for s in self.scales)
            shift = sum(
                smooth_noise(
                    self.size, s, uniform((0, self.warp_std), (1,), generator), generator, channels=len(self.size)
                )
                for s in self.warp_scales
            )
            image = warp(torch.as_tensor(image), torch.as_tensor(shift), padding="border")
            better = image > best if best is not None else torch.ones_like(image, dtype=torch.bool)
            labels = labels.masked_fill(better, label)
            best = image if best is None else torch.maximum(best, image)
        return labels[0]


class DrawShapesd(MapTransform):
    """A map of random shapes for an item of a data set: the entry `seed` decides which one.

    Args:
        keys: where the map goes, (1, *size), uint8.
        shapes: draws it.
    """

    def __init__(self, keys: KeysCollection, shapes: RandomShapes, seed_key: str = "seed") -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.shapes, self.seed_key = shapes, seed_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        generator = Generator().manual_seed(int(data[self.seed_key]))
        return {**data, **{key: self.shapes.draw(generator) for key in self.keys}}


class CheckLabelsd(MapTransform):
    """Refuse label maps that would make wrong images: unknown ids, or nothing but one label.

    Args:
        keys: label maps, integer.
        known: the ids that may occur, or a CSV file with a column `id`.
    Raises:
        ValueError: names the file and the ids.
    """

    def __init__(self, keys: KeysCollection, known: Sequence[int] | str | os.PathLike) -> None:
        super().__init__(keys)
        self.source = str(known) if isinstance(known, str | os.PathLike) else "the configured labels"
        self.known = torch.tensor(sorted(_ids_of(known)))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(dict(data)):
            name = data.get(f"{key}_path", key)
            present = torch.as_tensor(data[key]).unique()
            present = present if present.is_floating_point() else present.long()  # 8 bits cannot hold the known ids
            unknown = present[~torch.isin(present, self.known.to(present.dtype))].tolist()
            if unknown:
                raise ValueError(f"{name}: label ids {unknown[:10]} are not in {self.source}")
            if len(present) < 2:
                raise ValueError(f"{name}: the label map holds only one label, {present.tolist()}")
        return dict(data)


class TakeSlices:
    """2-D label maps for `SynthesizePair`: random parallel slices of 3-D maps that share a space.

    Args:
        count: slices of each pair of maps.
        levels: for each array axis that may be cut, the range of indices.
        jitter: largest difference between the levels of moving and fixed.
        transpose: probability that the two axes of all slices change places: 2-D files come either way.
    """

    def __init__(
        self, count: int, levels: Mapping[int, tuple[int, int]], jitter: int = 0, transpose: float = 0.0
    ) -> None:
        self.count, self.levels, self.jitter = count, {int(k): v for k, v in levels.items()}, jitter
        self.transpose = transpose

    def draw(self, generator: Generator) -> Draw:
        """Draw "axis" and "swap", one for all slices, and "levels" (2, count), of moving and of fixed."""
        axes = list(self.levels)
        axis = axes[int(torch.randint(len(axes), (1,), generator=generator, device=generator.device))]
        low, high = self.levels[axis]
        level = torch.randint(low, high + 1, (self.count,), generator=generator, device=generator.device)
        offset = torch.randint(
            -self.jitter, self.jitter + 1, (self.count,), generator=generator, device=generator.device
        )
        swap = bool(uniform((0, 1), (1,), generator) < self.transpose)
        return {
            "axis": torch.tensor(axis),
            "swap": torch.tensor(swap),
            "levels": torch.stack([level, (level + offset).clamp(low, high)]),
        }

    def __call__(self, label_moving: Tensor, label_fixed: Tensor, draw: Mapping[str, Tensor]) -> list[Tensor]:
        """Two batches (B * count, 1, H, W), of maps (B, 1, *S) in 3-D."""
        if label_moving.ndim != 5 or label_moving.shape != label_fixed.shape:
            raise ValueError(
                "expected two batches of 3-D maps of equal size, "
                f"got {tuple(label_moving.shape)} and {tuple(label_fixed.shape)}"
            )
        axis = int(draw["axis"]) + 2
        maps = zip((label_moving, label_fixed), draw["levels"], strict=True)
        slices = [labels.index_select(axis, level).movedim(axis, 1).flatten(0, 1) for labels, level in maps]
        return [one.mT.contiguous() for one in slices] if draw["swap"] else slices


def read_statistics(path: str | os.PathLike, num_labels: int = 531, contrast: str = "t1") -> tuple[Tensor, Tensor]:
    """Mean and spread of each label id, 0 to 255, shape (num_labels,); NaN for ids that the file does not have."""
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["id"]) < num_labels]
    means, spreads = torch.full((num_labels,), torch.nan), torch.full((num_labels,), torch.nan)
    for row in rows:
        means[int(row["id"])] = float(row["t1_prior_mean"])
        spreads[int(row["id"])] = float(row["t1_prior_mean_spread"])
    ids = torch.arange(num_labels)
    if contrast == "t2":
        means = torch.where((ids > 0) & (ids < 500), 285 - 1.3 * means, means)
    elif contrast == "inverted":
        means = torch.where(ids > 0, 255 - means, means)
    elif contrast != "t1":
        raise ValueError(f"expected contrast t1, t2 or inverted, got {contrast!r}")
    return means, spreads


def draw_means(means: Tensor, spreads: Tensor, batch: int, generator: Generator) -> Tensor:
    """Draws of the means (B, L), N(mean, spread) clipped to 0 ... 255: labels of equal statistics get equal means.

    Labels without statistics (NaN) stay NaN: they must not occur (`CheckLabelsd`).
    """
    keys = torch.stack([means.nan_to_num(-1), spreads.nan_to_num(-1)], 1)
    unique, inverse = keys.unique(dim=0, return_inverse=True)
    normal = torch.randn(batch, len(unique), generator=generator, device=generator.device)
    drawn = (unique[:, 0] + unique[:, 1] * normal).clamp(0, 255)[:, inverse]
    return torch.where(means.isnan(), torch.nan, drawn)


def random_affine(
    batch: int,
    size: Sequence[int],
    generator: Generator,
    *,
    rotation_degrees: float = 0.0,
    scaling: float = 0.0,
    shear: float = 0.0,
    shift: float = 0.0,
) -> Tensor:
    """Random rotations, scalings, shears and shifts about the centre of a grid: voxel matrices (B, D + 1, D + 1).

    In 3-D the rotation's three components are drawn one by one, each within `rotation_degrees`.
    """
    d, device = len(size), generator.device
    upper = torch.triu_indices(d, d, 1, device=device)
    skew = torch.zeros(batch, d, d, device=device)
    angles = torch.pi / 180 * uniform((-rotation_degrees, rotation_degrees), (batch, upper.shape[1]), generator)
    skew[:, upper[0], upper[1]] = angles
    sheared = torch.eye(d, device=device).repeat(batch, 1, 1)
    sheared[:, upper[0], upper[1]] = uniform((-shear, shear), (batch, upper.shape[1]), generator)
    scale = torch.diag_embed(1 + uniform((-scaling, scaling), (batch, d), generator))
    linear = torch.linalg.matrix_exp(skew - skew.mT) @ scale @ sheared
    center = (torch.tensor(size, device=device) - 1) / 2
    matrix = torch.eye(d + 1, device=device).repeat(batch, 1, 1)
    matrix[:, :d, :d] = linear
    matrix[:, :d, d] = center - linear @ center + uniform((-shift, shift), (batch, d), generator)
    return matrix


def smooth_noise(
    size: Sequence[int], scale: float, std: float | Tensor, generator: Generator, *, channels: int = 1
) -> Tensor:
    """Gaussian noise with one value in about `scale` voxels, linearly interpolated.

    Args:
        std: of the values before interpolation; a tensor (B,) gives a batch of B, a number a batch of 1.
    Returns:
        Shape (B, channels, *size), on the generator's device.
    """
    std = torch.as_tensor(std, device=generator.device).view(-1, *[1] * (len(size) + 1))
    coarse = [max(2, round(n / scale) + 1) for n in size]
    noise = torch.randn(std.shape[0], channels, *coarse, generator=generator, device=generator.device)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return F.interpolate(std * noise, size=tuple(size), mode=mode, align_corners=True)


def gaussian_blur(image: Tensor, sigma: float | Tensor, *, radius: int | None = None) -> Tensor:
    """Separable Gaussian smoothing of (B, C, *S), border values continued.

    Args:
        sigma: in voxels: one number, or a tensor (B, D), a value for each sample and axis; at least 0.
        radius: of the kernel in voxels; default 3 sigma, to be given with a tensor (reading one stalls a GPU).
    """
    axes = image.ndim - 2
    if not isinstance(sigma, Tensor):
        radius = math.ceil(3 * sigma) if radius is None else radius
        sigma = image.new_full((1, axes), sigma)
    if radius is None:
        raise ValueError("expected a radius for sigmas given as a tensor")
    if radius == 0:
        return image
    sigma = sigma.to(image)
    offsets = torch.arange(-radius, radius + 1, device=image.device)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3).unsqueeze(-1)) ** 2)
    kernel = (kernel / kernel.sum(-1, keepdim=True)).view(*sigma.shape, -1, *[1] * (axes + 1))
    for axis in range(axes):
        n = image.shape[axis + 2]
        index = torch.arange(-radius, n + radius, device=image.device).clamp(0, n - 1)
        padded = image.index_select(axis + 2, index)
        weights = kernel[:, axis].unbind(1)
        image = weights[0] * padded.narrow(axis + 2, 0, n)
        for i, weight in enumerate(weights[1:], 1):
            image = torch.addcmul(image, weight, padded.narrow(axis + 2, i, n))
    return image


def thick_slices(image: Tensor, stride: Tensor) -> Tensor:
    """Partial volume of thick slices: average over slabs of `stride` voxels, then interpolate linearly between them.

    Args:
        image: shape (B, C, *S).
        stride: shape (B, D), whole numbers of voxels per slice along each axis; 1 changes nothing.
    """
    for axis in range(image.ndim - 2):
        n = image.shape[axis + 2]
        position = torch.arange(n, device=image.device, dtype=image.dtype)
        step = stride[:, axis : axis + 1].to(image.dtype)
        sums = F.pad(image.movedim(axis + 2, -1).cumsum(-1, dtype=torch.float64), (1, 0))
        centre = ((position - (step - 1) / 2) / step).clamp(min=0)
        last = torch.div(n - 1, step, rounding_mode="floor")
        below = centre.floor().clamp(max=last)
        above = (below + 1).clamp(max=last)
        values = []
        for slab in (below, above):
            shape = (image.shape[0], *[1] * (image.ndim - 2), n)
            start = (slab * step).long().view(shape).expand(*sums.shape[:-1], n)
            stop = ((slab + 1) * step).clamp(max=n).long().view(shape).expand_as(start)
            values.append((sums.gather(-1, stop) - sums.gather(-1, start)) / (stop - start))
        share = (centre - below).clamp(0, 1).view(image.shape[0], *[1] * (image.ndim - 2), n)
        image = torch.lerp(values[0], values[1], share.double()).to(image.dtype).movedim(-1, axis + 2)
    return image


def crop_field_of_view(image: Tensor, share: Tensor) -> Tensor:
    """Set the ends of the axes to 0.

    Args:
        share: shape (B, D, 2), the share of each axis lost at its start and end.
    """
    for axis in range(image.ndim - 2):
        n = image.shape[axis + 2]
        position = (torch.arange(n, device=image.device) + 0.5) / n
        inside = (position >= share[:, axis, :1]) & (position <= 1 - share[:, axis, 1:])
        shape = [1] * image.ndim
        shape[0], shape[axis + 2] = share.shape[0], n
        image = image * inside.view(shape)
    return image


def uniform(bounds: Sequence[float], shape: Sequence[int], generator: Generator) -> Tensor:
    """Draws from U(low, high), float32, on the generator's device."""
    low, high = bounds
    return low + (high - low) * torch.rand(*shape, generator=generator, device=generator.device)


def _ids_of(known: Sequence[int] | str | os.PathLike) -> list[int]:
    if not isinstance(known, str | os.PathLike):
        return [int(i) for i in known]
    with open(known, newline="") as file:
        return [int(row["id"]) for row in csv.DictReader(file)]
