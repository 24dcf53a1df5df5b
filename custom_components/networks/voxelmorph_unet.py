"""The VoxelMorph registration U-Nets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def inflate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the 3-D network that works on each slice across the last axis as the 2-D network does.

    Each 3 x 3 kernel becomes the middle of a 3 x 3 x 3 one; the third component of the field starts at 0, its log
    variance as the mean of the other two. A 2-D network sees many more contrasts in the same time, so that it is a
    start for the 3-D training.

    Args:
        weights: state dict of a 2-D `VoxelMorphUNet`.
    Returns:
        State dict of the 3-D one with the same features.
    """
    result = {}
    for name, value in weights.items():
        if value.ndim == 4:
            value = F.pad(value.unsqueeze(-1), (1, 1))
        if name.startswith("flow."):
            value = torch.cat([value, torch.zeros_like(value[:1])])
        elif name.startswith("log_variance."):
            value = torch.cat([value, value.mean(0, keepdim=True)])
        result[name] = value
    return result


class ConvBlock(nn.Sequential):
    """A convolution and its activation. `code` is for subclasses whose weights depend on it."""

    def forward(self, x: Tensor, code: Tensor | None = None) -> Tensor:
        return self[1](self[0](x))


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
        out_channels: channels of the output; default `spatial_dims`.
        encoder_channels: features of the encoder levels.
        decoder_channels: features of the decoder levels, then of the convolutions before the head.
        half_resolution: predict the field at half the resolution: the last upsampling and skip are left out.
        strided: the paper's encoder: stride-2 convolutions, and the input itself as the skip at full resolution.
        flow_std: standard deviation of the head's initial weights; other weights start as He et al. (ICCV 2015), biases
            at 0.
        log_variance: give the log variance of each output, too, by a second head beside the first, whose bias starts at
            this value and its weights near 0 (the probabilistic model's start is -10); None for the field alone.

    Shapes: input (B, in_channels, *S), output (B, C, *S) or (B, C, *ceil(S / 2)), C = out_channels; with
        `log_variance` C = 2 out_channels, the log variances last.
    References: Balakrishnan et al., CVPR 2018; IEEE TMI 38(8), 2019; log variance: Dalca et al., MICCAI 2018.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 2,
        out_channels: int | None = None,
        encoder_channels: Sequence[int] = (16, 32, 32, 32),
        decoder_channels: Sequence[int] = (32, 32, 32, 32, 32, 16, 16),
        half_resolution: bool = False,
        strided: bool = False,
        flow_std: float = 1e-5,
        log_variance: float | None = None,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"expected spatial_dims 2 or 3, got {spatial_dims}")
        levels = len(encoder_channels)
        if len(decoder_channels) < levels:
            raise ValueError(f"expected at least {levels} decoder_channels, got {tuple(decoder_channels)}")
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        pool = nn.MaxPool3d if spatial_dims == 3 else nn.MaxPool2d
        self.spatial_dims = spatial_dims
        self.multiple = 2**levels
        self.half_resolution = half_resolution
        self.strided = strided
        self.num_skips = levels - 1 if half_resolution else levels

        def block(n_in: int, n_out: int, stride: int = 1) -> ConvBlock:
            return ConvBlock(conv(n_in, n_out, 3, stride=stride, padding=1), nn.LeakyReLU(0.2, inplace=True))

        features = in_channels
        skips = [in_channels] if strided else []
        self.encoder = nn.ModuleList()
        for n_out in encoder_channels:
            self.encoder.append(block(features, n_out, 2 if strided else 1))
            features = n_out
            skips.append(n_out)
        self.pool: nn.Module = nn.Identity() if strided else pool(2)
        self.decoder = nn.ModuleList()
        self.second = nn.ModuleList()
        surplus = list(decoder_channels[levels:])
        for level, n_out in enumerate(decoder_channels[:levels]):
            self.decoder.append(block(features, n_out))
            features = n_out
            if strided and level == levels - 1 and surplus:
                # The paper's nets convolve twice at half resolution.
                n_out = surplus.pop(0)
                self.second.append(block(features, n_out))
                features = n_out
            if level < self.num_skips:
                features += skips[levels - 1 - level]
        self.final = nn.ModuleList()
        for n_out in surplus:
            self.final.append(block(features, n_out))
            features = n_out
        self.flow = conv(features, out_channels or spatial_dims, 3, padding=1)
        self.log_variance = nn.ModuleList()
        if log_variance is not None:
            self.log_variance.append(conv(features, out_channels or spatial_dims, 3, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                # torch's default shrinks the signal by half a layer: ten layers on, nothing is left to learn from.
                nn.init.kaiming_normal_(module.weight, a=0.2)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.flow.weight, std=flow_std)
        for head in self.log_variance:
            nn.init.normal_(head.weight, std=1e-10)  # type: ignore[arg-type]
            nn.init.constant_(head.bias, log_variance)  # type: ignore[arg-type]

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
        return self.decode(self.encode(image, None), list(image.shape[2:]), None)

    def encode(self, image: Tensor, code: Tensor | None) -> list[Tensor]:
        """Features at each level, the finest first; last, the input of the decoder."""
        padding: list[int] = []
        for n in image.shape[2:][::-1]:
            padding.extend([0, (self.multiple - n % self.multiple) % self.multiple])
        x = F.pad(image, padding)
        features: list[Tensor] = []
        if self.strided:
            features.append(x)
        for block in self.encoder:
            x = block(x, code)
            features.append(x)
            x = self.pool(x)
        if self.strided:
            features.pop()
        features.append(x)
        return features

    def decode(self, features: list[Tensor], size: list[int], code: Tensor | None) -> Tensor:
        """The field for an image of this size. With one image and several codes, a field for each code."""
        x = features[-1]
        skip = len(features) - 2
        for level, block in enumerate(self.decoder):
            x = block(x, code)
            if level == len(self.decoder) - 1:
                for second in self.second:
                    x = second(x, code)
            if level < self.num_skips:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
                x = torch.cat([x, features[skip].expand([x.shape[0], -1] + list(x.shape[2:]))], dim=1)
                skip -= 1
        for block in self.final:
            x = block(x, code)
        field = self.head(x, code)
        for axis, n in enumerate(size):
            field = field.narrow(axis + 2, 0, (n + 1) // 2 if self.half_resolution else n)
        return field

    def head(self, x: Tensor, code: Tensor | None) -> Tensor:
        field = self.flow(x)
        for head in self.log_variance:
            field = torch.cat([field, head(x)], dim=1)
        return field
