"""Networks that predict the weights of a spatially varying metric, see `metric`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...networks.blocks import (
    AveragePool,
    check_pair,
    convolution,
    crop,
    initialize_layers,
    pad_to_multiple,
    transposed_convolution,
)


class RegularizerNetwork(nn.Module):
    """U-Net from a pair of images to raw weights x, at half their resolution (RDMM).

    Convolutions of width 3 with bias and LeakyReLU, no normalisation but on the last one, over all of a sample's
    channels and voxels, with a small slope: at the start x is nearly 0, the base weights everywhere. The images are
    smoothed and brought to half resolution first, three further levels halve it.

    Convention: input channels are moving, then fixed, intensities in [0, 1] (mapped to [-1, 1] inside). Images of any
    size: background is added at their ends, and the weights are cropped.

    With five Gaussians it has the 450,815 parameters in 3-D of the authors' code.

    Args:
        spatial_dims: 2 or 3.
        num_weights: Gaussians N.
        widths: features at each level.
        slope: standard deviation of x at the start.
        scale: the slope is `scale` times a learned parameter, which makes it learn `scale` times faster.
    Shapes: input (B, 2, *S), output (B, N, *ceil(S / 2)).
    Raises:
        ValueError: for other numbers of axes, or an input that is no pair of such images.
    References: Shen et al., Region-specific diffeomorphic metric mapping, NeurIPS 2019 (the layers are those of the
        authors' code; the scale is ours).
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        num_weights: int = 4,
        widths: Sequence[int] = (16, 32, 32, 64),
        slope: float = 0.025,
        scale: float = 10.0,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3) or len(widths) != 4 or num_weights < 2:
            raise ValueError(
                f"expected spatial_dims 2 or 3, four widths and at least 2 weights, got {spatial_dims}, "
                f"{tuple(widths)} and {num_weights}"
            )
        self.spatial_dims, self.scale = spatial_dims, float(scale)
        self.halve = AveragePool(3, stride=2, padding=True)
        a, b, c, d = widths
        self.first = _block(spatial_dims, 2, a)
        self.encoder = nn.ModuleList(
            nn.Sequential(_block(spatial_dims, n, m, stride=2), _block(spatial_dims, m, m))
            for n, m in ((a, b), (b, c), (c, d))
        )
        last = max(a - 2, 1)
        self.enlarge = nn.ModuleList(
            [
                nn.Sequential(transposed_convolution(spatial_dims, d, d), nn.LeakyReLU()),
                nn.Sequential(transposed_convolution(spatial_dims, c, c), nn.LeakyReLU()),
                transposed_convolution(spatial_dims, b, last),
            ]
        )
        self.merge = nn.ModuleList([_block(spatial_dims, d + c, c), _block(spatial_dims, c + b, b)])
        self.head = convolution(spatial_dims, last + a, num_weights)
        self.norm = nn.GroupNorm(1, num_weights)
        initialize_layers(self, 0.01)
        nn.init.constant_(self.norm.weight, slope / scale)

    def forward(self, image: Tensor) -> Tensor:
        check_pair(image, self.spatial_dims)
        x = self.halve(image)
        size = list(x.shape[2:])
        x = self.first(2 * pad_to_multiple(x, 8) - 1)
        features: list[Tensor] = [x]
        for down in self.encoder:
            x = down(x)
            features.append(x)
        skip = len(features) - 2
        for enlarge, merge in zip(self.enlarge, self.merge):  # noqa: B905 (TorchScript has no strict)
            x = merge(torch.cat([enlarge(x), features[skip]], 1))
            skip -= 1
        x = self.head(torch.cat([self.enlarge[2](x), features[0]], 1))
        return self.scale * self.norm(crop(x, size))


class RegionMomentumNetwork(nn.Module):
    """Momentum and raw weights of a region-specific metric: the answers of two networks, one after the other.

    Args:
        momentum: (B, 2, *S) to (B, D, *S') (`MomentumNetwork`).
        regularizer: (B, 2, *S) to (B, N, *S') (`RegularizerNetwork`).
    Shapes: input (B, 2, *S), output (B, D + N, *S'), the parameters of `metric.RegionSpecificMomentum`.
    References: Shen et al., Region-specific diffeomorphic metric mapping, NeurIPS 2019.
    """

    def __init__(self, momentum: nn.Module, regularizer: nn.Module) -> None:
        super().__init__()
        self.momentum, self.regularizer = momentum, regularizer

    def forward(self, image: Tensor) -> Tensor:
        momentum = self.momentum(image)
        return torch.cat([momentum, self.regularizer(image).to(momentum.dtype)], 1)


class MetricNetwork(nn.Module):
    """Two convolutions from the moving image and the momentum to raw weights x (metric learning).

    Convolutions of width 5 without bias, each normalised over the batch, LeakyReLU between them. x is
    slope * normalised answer + offset, with a slope and an offset for each Gaussian. The `stage` says what of it
    counts: 0 nothing (x = 0, the base weights everywhere), 1 the offset (one metric for all places), 2 both.

    Of the image alone, and with four Gaussians, it has the 2,548 parameters in 2-D of the authors' code.

    Args:
        spatial_dims: 2 or 3.
        num_weights: Gaussians N.
        sees_momentum: without it x depends on the moving image alone, and the further channels are not looked at.
        features: between the convolutions.
        slope: at the start.
        scale: factor of the learned slope and offset, as in `RegularizerNetwork`.
        momentum_scale: the momentum is divided by it, voxels of its own grid.
    Shapes: input (B, 1 + D, *S'), the image (in [0, 1]) on the momentum's grid, then the momentum; output (B, N, *S').
    Raises:
        ValueError: for other numbers of axes or channels.
    References: Niethammer, Kwitt, Vialard, Metric learning for image registration, CVPR 2019 (the layers and initial
        values are those of the authors' code).
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        num_weights: int = 4,
        *,
        sees_momentum: bool = True,
        features: int = 20,
        slope: float = 0.025,
        scale: float = 10.0,
        momentum_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3) or num_weights < 2 or momentum_scale <= 0:
            raise ValueError(
                f"expected spatial_dims 2 or 3, at least 2 weights and a momentum scale above 0, got {spatial_dims}, "
                f"{num_weights} and {momentum_scale}"
            )
        norm = nn.BatchNorm3d if spatial_dims == 3 else nn.BatchNorm2d
        self.spatial_dims, self.sees_momentum = spatial_dims, sees_momentum
        self.scale, self.momentum_scale, self.stage = float(scale), float(momentum_scale), 2
        self.layers = nn.Sequential(
            convolution(spatial_dims, 1 + spatial_dims if sees_momentum else 1, features, 5, bias=False),
            norm(features, eps=1e-4),
            nn.LeakyReLU(),
            convolution(spatial_dims, features, num_weights, 5, bias=False),
            norm(num_weights, eps=1e-4, affine=False),
        )
        shape = [num_weights, *[1] * spatial_dims]
        self.slope = nn.Parameter(torch.full(shape, slope / scale))
        self.offset = nn.Parameter(torch.zeros(shape))
        initialize_layers(self, 0.01)

    def forward(self, image: Tensor) -> Tensor:
        if image.dim() != self.spatial_dims + 2 or image.shape[1] != 1 + self.spatial_dims:
            raise ValueError(
                f"expected an image and a momentum, {1 + self.spatial_dims} channels of {self.spatial_dims} axes, "
                f"got shape {list(image.shape)}"
            )
        seen = image[:, :1] - 0.5
        if self.sees_momentum:
            seen = torch.cat([seen, image[:, 1:] / self.momentum_scale], 1)
        # All parts have a gradient at every stage, if only 0: a distributed training waits for each.
        local = self.slope * self.layers(seen)
        return self.scale * (float(self.stage == 2) * local + float(self.stage > 0) * self.offset)


def _block(dims: int, n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(convolution(dims, n_in, n_out, stride=stride), nn.LeakyReLU())
