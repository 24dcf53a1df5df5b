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
from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from .acquisition import crop_field_of_view, thick_slices
from .noise import Draw, Range, gaussian_blur, smooth_noise, uniform


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
