"""The momentum network of AVSM: from a pair of images to the momentum of a stationary velocity field."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import check_pair, convolution, crop, half, pad_to_multiple, transposed_convolution


class MomentumNetwork(nn.Module):
    """U-Net with residual blocks from a pair of images to the momentum at half their resolution (AVSM).

    Convolutions of width 3 with bias, no normalisation. Each encoder level halves the resolution by a convolution of
    stride 2 and refines by two more with additive residuals (the last level by one), all with ReLU; each decoder level
    doubles it by a transposed convolution, sees the encoder's features of that size and refines once more, all with
    LeakyReLU. The last level ends at half resolution in two convolutions without activation, as published.

    At the start the momentum is nearly zero: the last convolution has weights of standard deviation `head_std` and no
    bias; the other weights start as He et al. (ICCV 2015), those of the residuals at a fourth of that.

    Convention: input channels are moving, then fixed, intensities in [0, 1] (mapped to [-1, 1] inside).
    Images of any size: background is added at their ends to a multiple of `2**(len(widths) - 1)`, and the momentum is
    cropped; never stretched. The scale of a momentum depends on the kernel it is trained with.

    The defaults are those of the paper: 5,938,515 parameters in 3-D, 2,036,514 in 2-D. Widths (16, 32, 64, 64) make its
    small network of 776,403.

    Args:
        spatial_dims: 2 or 3.
        widths: features at full resolution and at each encoder level; three at least.
        head_std: standard deviation of the last convolution's initial weights.
        scale: of the answer: what the last convolution gives is multiplied by it.
        limit: of the answer: x becomes limit * tanh(x / limit), so that no step of training makes a momentum that
            cannot be integrated; None for none. (Published: clipping at 1, in other units, or nothing.)
    Shapes: input (B, 2, *S), output (B, D, *ceil(S / 2)).
    Raises:
        ValueError: for other numbers of axes, fewer widths, or an input that is no pair of such images.
    References: Shen et al., Networks for joint affine and non-parametric image registration, CVPR 2019.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        head_std: float = 1e-5,
        scale: float = 1.0,
        limit: float | None = None,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3) or len(widths) < 3 or min(widths) < 1:
            raise ValueError(
                f"expected spatial_dims 2 or 3 and three widths or more of at least 1, got {spatial_dims} and "
                f"{tuple(widths)}"
            )
        if scale <= 0 or (limit is not None and limit <= 0):
            raise ValueError(f"expected scale and limit above 0, got {scale} and {limit}")
        levels = len(widths) - 1
        self.spatial_dims, self.multiple = spatial_dims, 2**levels
        self.scale, self.limit = float(scale), 0.0 if limit is None else float(limit)
        self.first = nn.Sequential(convolution(spatial_dims, 2, widths[0]), nn.ReLU())
        self.encoder = nn.ModuleList(
            _Down(spatial_dims, widths[i - 1], widths[i], refinements=2 if i < levels else 1)
            for i in range(1, levels + 1)
        )
        self.decoder = nn.ModuleList()
        features = widths[levels]
        for i in range(levels - 1, 1, -1):
            # Below a fourth of the resolution a level is as wide as its encoder, there already as the next finer one.
            n = widths[i] if i > 2 else widths[1]
            self.decoder.append(_Up(spatial_dims, features, widths[i], n))
            features = n
        self.last = _Up(spatial_dims, features, widths[1], widths[0], linear=True)
        self.head = convolution(spatial_dims, widths[0], spatial_dims)
        self._initialize(head_std)

    def _initialize(self, head_std: float) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
                # Each voxel meets one weight of a transposed kernel, and residuals as large as what they are added to
                # would double the signal with each.
                fan_in = module.in_channels * (1 if module.transposed else 3**self.spatial_dims)
                nn.init.normal_(module.weight, std=(0.25 if ".refine." in name else 1.0) * (2 / fan_in) ** 0.5)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.head.weight, std=head_std)

    def forward(self, image: Tensor) -> Tensor:
        check_pair(image, self.spatial_dims)
        x = self.first(2 * pad_to_multiple(image, self.multiple) - 1)
        features: list[Tensor] = []
        for down in self.encoder:
            x = down(x)
            features.append(x)
        skip = len(features) - 2
        for up in self.decoder:
            x = up(x, features[skip])
            skip -= 1
        momentum = self.scale * self.head(self.last(x, features[0]))
        if self.limit > 0:
            momentum = self.limit * torch.tanh(momentum / self.limit)
        return crop(momentum, half(list(image.shape[2:])))


class _Down(nn.Module):
    """Half the resolution, then refinements."""

    def __init__(self, dims: int, n_in: int, n_out: int, refinements: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(convolution(dims, n_in, n_out, stride=2), nn.ReLU())
        self.refine = nn.ModuleList(
            nn.Sequential(convolution(dims, n_out, n_out), nn.ReLU()) for _ in range(refinements)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        for block in self.refine:
            x = x + block(x)
        return x


class _Up(nn.Module):
    """Twice the resolution, with the encoder's features there, then a refinement; `linear`: neither that nor ReLU."""

    def __init__(self, dims: int, n_in: int, n_skip: int, n_out: int, linear: bool = False) -> None:
        super().__init__()
        self.enlarge = nn.Sequential(transposed_convolution(dims, n_in, n_skip), nn.LeakyReLU())
        self.merge: nn.Module = convolution(dims, 2 * n_skip, n_out)
        self.refine = nn.ModuleList()
        if not linear:
            self.merge = nn.Sequential(self.merge, nn.LeakyReLU())
            self.refine.append(nn.Sequential(convolution(dims, n_out, n_out), nn.LeakyReLU()))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.merge(torch.cat([self.enlarge(x), skip], 1))
        for block in self.refine:
            x = x + block(x)
        return x
