"""Learned similarities as losses, called as all others: `similarity(warped, fixed, mask)`, smaller is more similar."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...losses.similarity import checked_images, masked_mean
from ...weights import load_weights
from .network import AlignmentNetwork, PatchAutoencoder
from .objective import at_cells, distance_of

FORMS = ("patches", "volumes")


class LearnedSimilarity(nn.Module):
    """What a network says of a pair of images: minus the mean logit of "these patches correspond", or the mean of
    log(1 + distance in mm / 3).

    The logit, and not the probability, is the measure: it still has a slope where the network is sure. Several channels
    are compared one by one. The weights are fixed, and move to the images' device.

    Args:
        form: "patches" (classification) or "volumes" (regression of distances, at the spacing of the weights).
        spatial_dims: 2 or 3.
        weights: file of the network's state; None takes the network as it is.
        network: another one than that of the form.
    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another form, or if the weights are another network's.
    References: Cheng et al., Deep similarity learning for multimodal medical images, 2016; Haskins et al., IJCARS 14,
        2019.
    """

    def __init__(
        self,
        form: str = "patches",
        *,
        spatial_dims: int = 3,
        weights: str | os.PathLike[str] | None = None,
        network: AlignmentNetwork | None = None,
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"expected a form of {', '.join(FORMS)}, got {form!r}")
        make = AlignmentNetwork.patches if form == "patches" else AlignmentNetwork.volumes
        self.form, self.network = form, make(spatial_dims) if network is None else network
        _fix(self.network, weights, f"similarity ({form})", {"spatial_dims": spatial_dims})

    def forward(self, warped: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        warped, fixed, mask = checked_images(warped, fixed, mask)
        found = self.cells(warped, fixed)
        sign = -1 if self.form == "patches" else 1
        return masked_mean(sign * found, _of_cells(mask, fixed, self.network.stride))

    def cells(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """The network's number for each cell, (B, C, *S')."""
        pairs = torch.stack([warped, fixed], 2).flatten(0, 1).float()
        found: Tensor = self.network.to(pairs.device)(pairs)
        return found.view(*fixed.shape[:2], *found.shape[2:])

    def error(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """The mean distance from its place that a network of volumes estimates for each pair, mm, shape (B,)."""
        return distance_of(self.cells(warped, fixed)).flatten(1).mean(1)


class FeatureDistance(nn.Module):
    """Mean squared difference of the features of two images, each channel normalised to mean 0 and variance 1.

    The features are those of the warped image. Warped features would be cheaper, and wrong under rotations.

    Args:
        spatial_dims: 2 or 3.
        weights: of the network; None takes it as it is.
        network: whose weights they are; default: a `PatchAutoencoder`.
        stages: parts of the network, one after the other; the output of each is compared. Default: the encoder's
            levels.
    Raises: as `LearnedSimilarity`.
    References: Wu et al., IEEE TBME 63(7), 2016. The normalisation is ours.
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 3,
        weights: str | os.PathLike[str] | None = None,
        network: nn.Module | None = None,
        stages: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        network = PatchAutoencoder(spatial_dims) if network is None else network
        self.network, self.stages = network, list(stages or network.encoder)  # type: ignore[arg-type]
        _fix(network, weights, "feature", {"spatial_dims": spatial_dims})

    def forward(self, warped: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        warped, fixed, mask = checked_images(warped, fixed, mask)
        terms = []
        for a, b in zip(self.features(warped), self.features(fixed), strict=True):
            inside = None if mask is None else _resized(mask.amax(1, keepdim=True), a)
            terms.append(masked_mean((_normalized(a, inside) - _normalized(b, inside)).square(), inside))
        return torch.stack(terms).mean()

    def features(self, image: Tensor) -> list[Tensor]:
        """The output of each stage, (B * C, K, *S'), for an image (B, C, *S), whose channels are described alone."""
        self.network.to(image.device)
        found, x = [], image.float().flatten(0, 1)[:, None]
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


def _fix(network: nn.Module, weights: str | os.PathLike[str] | None, name: str, settings: dict[str, object]) -> None:
    if weights is not None:
        load_weights(network, weights, name, settings)
    network.eval().requires_grad_(False)


def _of_cells(mask: Tensor | None, image: Tensor, stride: int) -> Tensor | None:
    return None if mask is None else at_cells(mask.expand_as(image), stride)


def _resized(mask: Tensor, like: Tensor) -> Tensor:
    """A mask (B, 1, *S) on the grid of features (B * C, K, *S')."""
    return nn.functional.interpolate(mask, size=like.shape[2:]).repeat_interleave(len(like) // len(mask), 0)


def _normalized(values: Tensor, mask: Tensor | None) -> Tensor:
    """Channels of mean 0 and variance 1, over the voxels of a mask."""
    axes = tuple(range(2, values.ndim))
    weights = torch.ones_like(values[:, :1]) if mask is None else mask
    count = weights.sum(axes, keepdim=True).clamp(min=1e-6)
    centred = values - (values * weights).sum(axes, keepdim=True) / count
    variance = (centred.square() * weights).sum(axes, keepdim=True) / count
    return centred / (variance + 1e-6).sqrt()
