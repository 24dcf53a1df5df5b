"""From label maps to images: T1-like rendering, for training and testing without scans."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from torch import Tensor

from ..fields import affine_to_ddf, warp


class RenderT1d(MapTransform, Randomizable):
    """Render label maps as T1-weighted images, and give both maps of a pair one random flip and small affine offsets.

    For each entry `label_X` of `keys`, the image is written to `X`, in [0, 1]: a mean
    for each label (drawn around the table's), noise, smoothing (partial volume), a smooth bias field and a contrast
    exponent. With probability `strip`, the pair is skull-stripped: labels from `first_extracerebral` on become 0, in
    the label maps too.

    Args:
        keys: label maps of one pair, shape (1, *S), integer.
        statistics: CSV file with the columns `id`, `t1_prior_mean` and `t1_prior_mean_spread` (0 to 255).
        strip: probability of skull-stripping.
        noise: range of the noise's standard deviation, on the scale of 0 to 1.
        blur: range of the smoothing's standard deviation, in voxels.
        bias: largest standard deviation of the log bias field's control values (one in about 40 voxels).
        contrast: standard deviation of the log contrast exponent.
        rotation_degrees, scaling, shift: largest absolute random offset of each map; shift in voxels.
        zoom: largest absolute log scale given to both maps alike.
        flip: probability that both maps are flipped along their first axis (left-right in RAS grids).
    Raises:
        ValueError: if a label map holds an id that the table does not know.
    """

    def __init__(
        self,
        keys: KeysCollection,
        statistics: str | os.PathLike,
        *,
        strip: float = 0.5,
        noise: Sequence[float] = (0.01, 0.04),
        blur: Sequence[float] = (0.3, 0.9),
        bias: float = 0.2,
        contrast: float = 0.2,
        rotation_degrees: float = 5.0,
        scaling: float = 0.05,
        shift: float = 2.0,
        zoom: float = 0.1,
        flip: float = 0.5,
        first_extracerebral: int = 500,
    ) -> None:
        super().__init__(keys)
        self.means, self.spreads = read_statistics(statistics)
        self.statistics = str(statistics)
        self.strip, self.flip, self.first_extracerebral = strip, flip, first_extracerebral
        self.noise, self.blur, self.bias, self.contrast = noise, blur, bias, contrast
        self.rotation_degrees, self.scaling, self.shift, self.zoom = rotation_degrees, scaling, shift, zoom

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        generator = torch.Generator().manual_seed(int(self.R.randint(2**31)))
        strip, flip = (bool(torch.rand(1, generator=generator) < p) for p in (self.strip, self.flip))
        zoom = math.exp(_uniform((-self.zoom, self.zoom), generator))
        for key in self.key_iterator(result):
            label = torch.as_tensor(result[key])
            label = label.flip(1) if flip else label
            matrix = random_affine(
                label.shape[1:],
                generator,
                rotation_degrees=self.rotation_degrees,
                scaling=self.scaling,
                shift=self.shift,
                zoom=zoom,
            )
            label = warp(label[None], affine_to_ddf(matrix[None], label.shape[1:]), mode="nearest")[0]
            if strip:
                label = torch.where(label < self.first_extracerebral, label, torch.zeros_like(label))
            result[key] = label
            image = self.render(label, generator)
            result[str(key).removeprefix("label_")] = image * (label > 0) if strip else image
        return result

    def render(self, label: Tensor, generator: torch.Generator) -> Tensor:
        """An image (1, *S), float32 in [0, 1], of a label map (1, *S)."""
        table = draw_means(self.means, self.spreads, generator)
        index = label.long()
        image = table[index.clamp(0, len(table) - 1)]
        if int(index.max()) >= len(table) or int(index.min()) < 0 or bool(image.isnan().any()):
            unknown = [i for i in index.unique().tolist() if not 0 <= i < len(table) or torch.isnan(table[i])]
            raise ValueError(f"label ids {unknown} are not in {self.statistics}")
        image = gaussian_blur(image[None], _uniform(self.blur, generator))[0]
        image = image + _uniform(self.noise, generator) * torch.randn(image.shape, generator=generator)
        image = image * smooth_noise(label.shape[1:], 40, self.bias * _uniform((0, 1), generator), generator).exp()
        image = image.clamp(min=0)
        image = image / torch.quantile(image.flatten()[:: max(1, image.numel() // 100_000)], 0.999).clamp(min=1e-3)
        exponent = float((self.contrast * torch.randn(1, generator=generator)).exp())
        return image.clamp(0, 1) ** exponent


def read_statistics(path: str | os.PathLike) -> tuple[Tensor, Tensor]:
    """Tables from label id to mean and spread, on the scale of 0 to 1; NaN for ids that the file does not have."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    size = max(int(row["id"]) for row in rows) + 1
    means, spreads = torch.full((size,), torch.nan), torch.full((size,), torch.nan)
    for row in rows:
        means[int(row["id"])] = float(row["t1_prior_mean"]) / 255
        spreads[int(row["id"])] = float(row["t1_prior_mean_spread"]) / 255
    return means, spreads


def draw_means(means: Tensor, spreads: Tensor, generator: torch.Generator) -> Tensor:
    """One draw of the mean intensities: labels of equal statistics (left and right) get equal means."""
    keys = torch.stack([means.nan_to_num(-1), spreads.nan_to_num(-1)], 1)
    unique, inverse = keys.unique(dim=0, return_inverse=True)
    drawn = (unique[:, 0] + unique[:, 1] * torch.randn(len(unique), generator=generator)).clamp(0, 1)
    return torch.where(means.isnan(), torch.nan, drawn[inverse])


def random_affine(
    size: Sequence[int],
    generator: torch.Generator,
    *,
    rotation_degrees: float,
    scaling: float,
    shift: float,
    zoom: float = 1.0,
) -> Tensor:
    """Random rotation, scaling and shift about the centre of a grid, as a voxel matrix (D + 1, D + 1), float32."""
    d = len(size)
    skew = torch.zeros(d, d)
    for i in range(d):
        for j in range(i):
            skew[i, j] = torch.pi / 180 * rotation_degrees * (2 * torch.rand(1, generator=generator) - 1)
    linear = (
        zoom
        * torch.linalg.matrix_exp(skew - skew.T)
        @ torch.diag(1 + scaling * (2 * torch.rand(d, generator=generator) - 1))
    )
    center = (torch.tensor(size) - 1) / 2
    matrix = torch.eye(d + 1)
    matrix[:d, :d] = linear
    matrix[:d, d] = center - linear @ center + shift * (2 * torch.rand(d, generator=generator) - 1)
    return matrix


def smooth_noise(size: Sequence[int], scale: float, std: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise on a coarse grid (one value in `scale` voxels), linearly upsampled to (1, *size)."""
    coarse = torch.randn(1, 1, *[max(2, round(n / scale) + 1) for n in size], generator=generator)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return std * F.interpolate(coarse, size=tuple(size), mode=mode, align_corners=True)[0]


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian smoothing of (B, C, *S), sigma in voxels, border values continued."""
    if sigma <= 0:
        return image
    radius = max(1, round(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=image.device) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(image.dtype)
    for axis in range(2, image.ndim):
        n = image.shape[axis]
        index = torch.arange(-radius, n + radius, device=image.device).clamp(0, n - 1)
        padded = image.index_select(axis, index)
        image = sum(k * padded.narrow(axis, i, n) for i, k in enumerate(kernel))
    return image


def _uniform(bounds: Sequence[float], generator: torch.Generator) -> float:
    low, high = bounds
    return float(low + (high - low) * torch.rand(1, generator=generator))
