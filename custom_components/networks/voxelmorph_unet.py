"""The VoxelMorph registration U-Nets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import check_spatial_dims, convolution, crop, half, initialize_layers, max_pool, pad_to_multiple


class VoxelMorphUNet(nn.Module):
    """U-Net from a pair of images to a velocity or displacement field (VoxelMorph).

    Plain convolutions of width 3 with bias and LeakyReLU(0.2), no normalisation, no dropout. Each encoder level halves
    the resolution (max pooling, or a stride-2 convolution with `strided=True`); each decoder level doubles it (nearest)
    and concatenates the encoder's features. Decoder features beyond the number of encoder levels are plain convolutions
    before the flow head.

    Convention: input channels are moving, then fixed. The output field is in voxels of its own grid, which is the input
    grid or, with `half_resolution`, a grid of `ceil(n / 2)` voxels along each axis over the same extent.
    Inputs of any size: zero-padded at their ends to a multiple of 2**levels, and the field is cropped; never stretched.

    The defaults are those of the reference implementation: 327,331 parameters in 3-D, 109,170 in 2-D. See
    `VoxelMorphUNet.paper` for the networks of the CVPR 2018 paper.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of moving and fixed together.
        encoder_channels: features of the encoder levels.
        decoder_channels: features of the decoder levels, then of the convolutions before the head.
        half_resolution: predict the field at half the resolution: the last upsampling and skip are left out.
        strided: the paper's encoder: stride-2 convolutions, and the input itself as the skip at full resolution.
        flow_std: standard deviation of the head's initial weights; other weights start as He et al. (ICCV 2015), biases
            at 0.
        log_variance: give the log variance of each output, too, by a second head beside the first, whose bias starts at
            this value and its weights near 0 (the probabilistic model's start is -10); None for the field alone.

    Shapes: input (B, in_channels, *S), output (B, C, *S) or (B, C, *ceil(S / 2)), C = spatial_dims; with
        `log_variance` C = 2 spatial_dims, the log variances last.
    Raises:
        ValueError: for fewer decoder features than encoder levels.
    References: Balakrishnan et al., CVPR 2018; IEEE TMI 38(8), 2019; log variance: Dalca et al., MICCAI 2018.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 2,
        encoder_channels: Sequence[int] = (16, 32, 32, 32),
        decoder_channels: Sequence[int] = (32, 32, 32, 32, 32, 16, 16),
        half_resolution: bool = False,
        strided: bool = False,
        flow_std: float = 1e-5,
        log_variance: float | None = None,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        levels = len(encoder_channels)
        if len(decoder_channels) < levels:
            raise ValueError(f"expected at least {levels} decoder_channels, got {tuple(decoder_channels)}")
        self.spatial_dims, self.multiple = spatial_dims, 2**levels
        self.half_resolution, self.strided = half_resolution, strided
        self.num_skips = levels - 1 if half_resolution else levels
        self._build_encoder(in_channels, encoder_channels)
        features = self._build_decoder([*([in_channels] if strided else []), *encoder_channels], decoder_channels)
        self.flow = convolution(spatial_dims, features, spatial_dims)
        self.log_variance = nn.ModuleList()
        if log_variance is not None:
            self.log_variance.append(convolution(spatial_dims, features, spatial_dims))
        # torch's default shrinks the signal by half a layer: ten layers on, nothing is left to learn from.
        initialize_layers(self, 0.2)
        nn.init.normal_(self.flow.weight, std=flow_std)
        for head in self.log_variance:
            nn.init.normal_(head.weight, std=1e-10)  # type: ignore[arg-type]
            nn.init.constant_(head.bias, log_variance)  # type: ignore[arg-type]

    def _block(self, n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
        layer = convolution(self.spatial_dims, n_in, n_out, stride=stride)
        return nn.Sequential(layer, nn.LeakyReLU(0.2, inplace=True))

    def _build_encoder(self, in_channels: int, channels: Sequence[int]) -> None:
        self.encoder = nn.ModuleList(
            self._block(n_in, n_out, 2 if self.strided else 1)
            for n_in, n_out in itertools.pairwise([in_channels, *channels])
        )
        self.pool = nn.Identity() if self.strided else max_pool(self.spatial_dims)

    def _build_decoder(self, skips: Sequence[int], channels: Sequence[int]) -> int:
        """The decoder for skips of so many channels, the finest first; returns the head's number of features."""
        levels = len(self.encoder)
        self.decoder, self.second, self.final = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        features, surplus = skips[-1], list(channels[levels:])
        for level, n_out in enumerate(channels[:levels]):
            self.decoder.append(self._block(features, n_out))
            features = n_out
            if self.strided and level == levels - 1 and surplus:
                # The paper's nets convolve twice at half resolution.
                features = surplus.pop(0)
                self.second.append(self._block(n_out, features))
            if level < self.num_skips:
                features += skips[levels - 1 - level]
        for n_out in surplus:
            self.final.append(self._block(features, n_out))
            features = n_out
        return features

    @classmethod
    def paper(cls, variant: int = 1, spatial_dims: int = 3, **kwargs: object) -> VoxelMorphUNet:
        """VoxelMorph-1 (259,675 parameters in 3-D) or VoxelMorph-2 (300,547), with strided encoder.

        Raises:
            ValueError: for another variant.
        """
        decoders = {1: (32, 32, 32, 32, 8, 8), 2: (32, 32, 32, 32, 32, 16, 16)}
        if variant not in decoders:
            raise ValueError(f"expected variant 1 or 2, got {variant}")
        return cls(spatial_dims, decoder_channels=decoders[variant], strided=True, **kwargs)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        return self.decode(self.encode(image), list(image.shape[2:]))

    def encode(self, image: Tensor) -> list[Tensor]:
        """Features at each level, the finest first; last, the input of the decoder."""
        x = pad_to_multiple(image, self.multiple)
        features: list[Tensor] = []
        if self.strided:
            features.append(x)
        for block in self.encoder:
            x = block(x)
            features.append(x)
            x = self.pool(x)
        if self.strided:
            features.pop()
        features.append(x)
        return features

    def decode(self, features: list[Tensor], size: list[int]) -> Tensor:
        """The field for an image of this size."""
        x = features[-1]
        for level, block in enumerate(self.decoder):
            x = block(x)
            if level == len(self.decoder) - 1:
                for second in self.second:
                    x = second(x)
            if level < self.num_skips:
                x = self.enlarge(x, features[len(features) - 2 - level])
        for block in self.final:
            x = block(x)
        field = self.flow(x)
        for head in self.log_variance:
            field = torch.cat([field, head(x)], dim=1)
        return self.cropped(field, size)

    def enlarge(self, x: Tensor, skip: Tensor) -> Tensor:
        """Twice the resolution, with the encoder's features there; one image's serve all samples of x."""
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return torch.cat([x, skip.expand([x.shape[0], -1] + list(x.shape[2:]))], dim=1)

    def cropped(self, field: Tensor, size: list[int]) -> Tensor:
        """The field without what padding added, for an image of this size."""
        return crop(field, half(size) if self.half_resolution else size)
