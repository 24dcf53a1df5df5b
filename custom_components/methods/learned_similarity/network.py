"""The networks of `learned_similarity`: one that looks at a pair, and one that describes an image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from ...networks.blocks import check_pair, check_spatial_dims


class AlignmentNetwork(nn.Module):
    """One number for each cell of a pair: from two images (B, 2, *S), moving then fixed, to (B, 1, *S').

    Each level halves the resolution by its first convolution. Cell i lies at voxel i * 2**levels along each axis. The
    network has no dense layer, so that it takes images of any size. It sees both images, the lengths of their gradients
    and how parallel these are, which do not depend on the contrast: see `edges`. What the number means is a matter of
    the objective: a logit of "these patches correspond", or log(1 + distance in mm / 3).

    Args:
        spatial_dims: 2 or 3.
        channels: of the levels.
        depth: convolutions of each level.
        context: convolutions with dilation 2 that follow, for a wider view.
    Raises:
        ValueError: if there is not one depth for each level.
    """

    def __init__(
        self, spatial_dims: int = 3, channels: Sequence[int] = (16, 40), depth: Sequence[int] = (2, 2), context: int = 0
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        if len(channels) != len(depth):
            raise ValueError(f"expected a depth for each level, got {tuple(depth)} for channels {tuple(channels)}")
        self.spatial_dims, self.stride = spatial_dims, 2 ** len(channels)
        layers: list[nn.Module] = []
        for (n_in, n_out), count in zip(pairwise((5, *channels)), depth, strict=True):
            layers.append(_block(spatial_dims, n_in, n_out, strides=2))
            layers += [_block(spatial_dims, n_out, n_out) for _ in range(count - 1)]
        last = channels[-1]
        layers += [_block(spatial_dims, last, last, dilation=2) for _ in range(context)]
        layers.append(Convolution(spatial_dims, last, 1, kernel_size=1, conv_only=True))
        self.layers = nn.Sequential(*layers)

    @classmethod
    def patches(cls, spatial_dims: int = 3) -> AlignmentNetwork:
        """The one that classifies patches of 21 voxels (19, and a neighbour for the gradients), every 4 voxels."""
        return cls(spatial_dims)

    @classmethod
    def volumes(cls, spatial_dims: int = 3) -> AlignmentNetwork:
        """The one that estimates distances, every 4 voxels, from 65 voxels around."""
        return cls(spatial_dims, (16, 40), (1, 2), context=3)

    def forward(self, image: Tensor) -> Tensor:
        """Raises ValueError: unless the shape is (B, 2, *S)."""
        check_pair(image, self.spatial_dims)
        return self.layers(torch.cat([image, edges(image)], 1))


def edges(image: Tensor) -> Tensor:
    """What two images (B, 2, *S) show in any contrast, (B, 3, *S): their edges g / (g + mean g), g being the length of
    the gradient, then the squared cosine between both gradients, times both edges.

    References: Haber and Modersitzki, Intensity gradient based registration and fusion of multi-modal images, MICCAI
        2006 (normalised gradient fields).
    """
    slopes = torch.stack([_slope(image, axis) for axis in range(2, image.ndim)], 2)
    length = slopes.square().sum(2).add(1e-8).sqrt()
    typical = length.flatten(2).mean(2).view(*length.shape[:2], *[1] * (length.ndim - 2))
    edge = length / (length + typical + 1e-4)
    cosine = (slopes[:, 0] * slopes[:, 1]).sum(1, keepdim=True) / length.prod(1, keepdim=True)
    return torch.cat([edge, cosine.square() * edge.prod(1, keepdim=True)], 1)


def _slope(image: Tensor, axis: int) -> Tensor:
    """Central differences along an axis, 0 at its ends."""
    n = image.shape[axis] - 2
    inner = (image.narrow(axis, 2, n) - image.narrow(axis, 0, n)) / 2
    padding = [0, 0] * (image.ndim - 1 - axis) + [1, 1]
    return nn.functional.pad(inner, padding)


class PatchAutoencoder(nn.Module):
    """A convolutional autoencoder: an image (B, 1, *S) is described at a half and a quarter of its resolution, and
    restored from the coarser description.

    Args:
        spatial_dims: 2 or 3.
        channels: of both levels.
    References: Wu et al., Scalable high-performance image registration framework by unsupervised deep feature
        representations learning, IEEE TBME 63(7), 2016 (the idea; layers are ours).
    """

    def __init__(self, spatial_dims: int = 3, channels: Sequence[int] = (16, 32)) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        widths = (1, *channels)
        self.encoder = nn.ModuleList(
            nn.Sequential(_block(spatial_dims, a, b, strides=2), _block(spatial_dims, b, b))
            for a, b in pairwise(widths)
        )
        mode = "trilinear" if spatial_dims == 3 else "bilinear"
        layers: list[nn.Module] = []
        for a, b in pairwise(widths[::-1]):
            layers += [nn.Upsample(scale_factor=2, mode=mode, align_corners=False)]
            layers += [_block(spatial_dims, a, b) if b > 1 else Convolution(spatial_dims, a, 1, conv_only=True)]
        self.decoder = nn.Sequential(*layers)

    def encode(self, image: Tensor) -> list[Tensor]:
        """The features of both levels, the finer first."""
        found = []
        for level in self.encoder:
            image = level(image)
            found.append(image)
        return found

    def forward(self, image: Tensor) -> Tensor:
        """The restored image, of the same size if that is a multiple of 4."""
        restored: Tensor = self.decoder(self.encode(image)[-1])
        return restored


def _block(spatial_dims: int, n_in: int, n_out: int, *, strides: int = 1, dilation: int = 1) -> nn.Module:
    # Batch normalisation: in use a fixed linear map. So of other patches a score knows the typical edge alone.
    return Convolution(
        spatial_dims,
        n_in,
        n_out,
        strides=strides,
        dilation=dilation,
        norm="BATCH",
        act=("LEAKYRELU", {"negative_slope": 0.1}),
        adn_ordering="NA",
        bias=False,
    )


def small(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in half precision, as they are stored; counts stay."""
    return {k: v.to(torch.float16) if v.is_floating_point() else v for k, v in state.items()}
