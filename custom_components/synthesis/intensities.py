"""The first step of a rendering: a mean and a noise level for each label, random or from a table of statistics."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from ..constants import Constant
from .noise import Draw, Range, pass_over, uniform

# SynthMorph's ranges of the means, on the scale 0 to 255.
_MEAN: Range = (25, 225)
_BACKGROUND_MEAN: Range = (0, 225)


class LabelIntensities:
    """Label maps -> images on the scale 0 to 255: mean + std * noise, with both drawn for each label.

    Args:
        num_labels: label ids lie in 0 ... num_labels - 1.
        std, background_std: ranges of the noise of each label, and of label 0.
        statistics: CSV file with columns `id`, `t1_prior_mean`, `t1_prior_mean_spread` (0 to 255). The means come from
            it; without it each label's mean is random. Labels of equal statistics (left and right) get equal means.
        contrast: with `statistics`, "t1", "t2" (fluid bright, grey above white; bone and background stay dark) or
            "inverted"; of several, one is drawn for each image.
        statistics_share: share of the images that the table colours; the others get random means.
    References: the defaults are SynthMorph's. The T2-like table is ours: 285 - 1.3 * T1 mean for ids below 500.
    """

    def __init__(
        self,
        num_labels: int = 531,
        *,
        std: Range = (5, 25),
        background_std: Range = (0, 25),
        statistics: str | os.PathLike[str] | None = None,
        contrast: str | Sequence[str] = "t1",
        statistics_share: float = 1.0,
    ) -> None:
        self.num_labels, self.std, self.background_std = num_labels, std, background_std
        contrasts = [contrast] if isinstance(contrast, str) else contrast
        self.tables = (
            [] if statistics is None else [Means(*read_statistics(statistics, num_labels, c)) for c in contrasts]
        )
        self.statistics_share = statistics_share

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> Draw:
        """Draw "mean" and "std" of each label (B, L), and "noise" of each voxel (B, 1, *S)."""
        device = generator.device
        std = uniform(self.std, (batch, self.num_labels), generator)
        std[:, 0] = uniform(self.background_std, (batch,), generator)
        mean = uniform(_MEAN, (batch, self.num_labels), generator)
        mean[:, 0] = uniform(_BACKGROUND_MEAN, (batch,), generator)
        if self.tables:
            drawn = [table.draw(batch, generator) for table in self.tables]
            which = torch.randint(len(drawn), (batch,), generator=generator, device=device)
            listed = torch.stack(drawn)[which, torch.arange(batch, device=device)]
            by_table = uniform((0, 1), (batch, 1), generator) < self.statistics_share
            mean = torch.where(by_table, listed, mean)
        # Thick slices and crops were once drawn here for every image: a seed still renders what it did in the figures.
        pass_over(generator, *[(batch, 1)] * 4)
        return {"mean": mean, "std": std, "noise": torch.randn(batch, 1, *size, generator=generator, device=device)}

    def __call__(self, labels: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """The image (B, 1, *S), float32, not clipped, of integer maps (B, 1, *S) with ids below `num_labels`."""
        index = labels.flatten(1).long()
        mean = draw["mean"].gather(1, index).view(labels.shape)
        return torch.addcmul(mean, draw["std"].gather(1, index).view(labels.shape), draw["noise"])


def read_statistics(path: str | os.PathLike[str], num_labels: int = 531, contrast: str = "t1") -> tuple[Tensor, Tensor]:
    """Mean and spread of each label id, 0 to 255, shape (num_labels,); NaN for ids that the file does not have.

    Raises:
        ValueError: for another contrast.
    """
    with open(path, encoding="utf-8", newline="") as file:
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


class Means:
    """Draws the labels' means from their statistics: labels of equal statistics get equal means.

    Args:
        means, spreads: of each label, 0 to 255, (L,), as `read_statistics` gives them.
    """

    def __init__(self, means: Tensor, spreads: Tensor) -> None:
        keys = torch.stack([means.nan_to_num(-1), spreads.nan_to_num(-1)], 1)
        unique, inverse = keys.unique(dim=0, return_inverse=True)
        self.count = len(unique)
        self.unique, self.inverse, self.unknown = Constant(unique), Constant(inverse), Constant(means.isnan())

    def draw(self, batch: int, generator: Generator) -> Tensor:
        """Draws (B, L) of N(mean, spread), clipped to 0 ... 255, on the generator's device.

        Labels without statistics (NaN) stay NaN: they must not occur (`CheckLabelsd`).
        """
        device = generator.device
        unique = self.unique.on(device)
        normal = torch.randn(batch, self.count, generator=generator, device=device)
        drawn = (unique[:, 0] + unique[:, 1] * normal).clamp(0, 255)[:, self.inverse.on(device)]
        return drawn.masked_fill(self.unknown.on(device), torch.nan)
