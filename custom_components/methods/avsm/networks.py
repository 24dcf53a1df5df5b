"""The published affine network of AVSM, and its affine and momentum networks trained together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...affine import centred_to_voxel, voxel_to_centred
from ...fields import at_least_float32
from ...networks.blocks import check_pair, convolution, initialize_layers, max_pool, pad_to_multiple
from ...repeatable import block_means, cell_means


class AffineNetwork(nn.Module):
    """Convolutions that see both images, then fully connected layers for the numbers of the matrix (AVSM).

    A convolution that both images share, then on the concatenated features two max poolings and three convolutions of
    stride 2 among others, to a 32nd of the resolution; a hidden layer; the matrix. Convolutions of width 3 with bias,
    LeakyReLU(0.01), no normalisation (published: ReLU, with which the few last features can all be dead from the
    start). The answer starts as the identity: the last layer's weights and biases are zero and give the difference from
    it. (The published network starts wherever its random weights are.)

    The published form flattens its last features, so that it fits images of one size only: `size`. Here the features
    are averaged over a fixed number of cells along each axis, and any size works; the answer still depends on the shape
    that the network was trained with. The paper's matrix acts on coordinates from -1 to 1 along each axis, in which a
    rotation of a grid with unequal sides is a shear; see `centred_to_voxel`.

    Convention: input channels are moving, then fixed, intensities in [0, 1] (mapped to [-1, 1] inside).

    Parameters: 147,920 with size (80, 192, 192), of which 432 features are flattened; 142,288 with the defaults, 46,954
    in 2-D.

    Args:
        spatial_dims: 2 or 3.
        features: of each image, a multiple of 4.
        hidden: units of the hidden layer.
        size: the images' size for the published form; None for any.
        cells: along each axis, without `size`.
    Shapes: input (B, 2, *S), output (B, D, D + 1).
    Raises:
        ValueError: for arguments out of range, or an input that is no pair of such images.
    References: Shen et al., Networks for joint affine and non-parametric image registration, CVPR 2019.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        features: int = 16,
        hidden: int = 32,
        size: Sequence[int] | None = None,
        cells: int = 4,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3) or features < 4 or features % 4 or hidden < 1 or cells < 1:
            raise ValueError(
                "expected spatial_dims 2 or 3, features a multiple of 4, hidden and cells of at least 1, "
                f"got {spatial_dims}, {features}, {hidden}, {cells}"
            )
        if size is not None and (len(size) != spatial_dims or min(size) < 1):
            raise ValueError(f"expected a size of {spatial_dims} axes, got {tuple(size)}")
        self.spatial_dims = spatial_dims
        self.size = None if size is None else list(size)
        n = features
        self.shared = _block(spatial_dims, 1, n)
        self.trunk = _trunk(spatial_dims, n)
        self.average: nn.Module = _CellMeans(cells) if size is None else nn.Identity()
        flat = n // 4
        for side in [cells] * spatial_dims if size is None else size:
            flat *= side if size is None else -(-side // 32)
        self.hidden = nn.Sequential(nn.Linear(flat, hidden), nn.LeakyReLU())
        self.matrix = nn.Linear(hidden, spatial_dims * (spatial_dims + 1))
        initialize_layers(self)
        nn.init.zeros_(self.matrix.weight)

    def forward(self, image: Tensor) -> Tensor:
        check_pair(image, self.spatial_dims)
        size = list(image.shape[2:])
        if size != (size if self.size is None else self.size):
            raise ValueError(f"expected images of size {self.size}, for which the network was built, got {size}")
        moving, fixed = (2 * image - 1).chunk(2, 1)
        x = self.average(self.trunk(torch.cat([self.shared(moving), self.shared(fixed)], 1)))
        # The identity is added to the difference in full precision, also under autocast.
        d = self.spatial_dims
        difference = at_least_float32(self.matrix(self.hidden(x.flatten(1)))).view(-1, d, d + 1)
        return difference + torch.eye(d, d + 1, dtype=difference.dtype, device=difference.device)


class _CellMeans(nn.Module):
    """The means of so many cells along each axis."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            if x.ndim == 4:
                return F.adaptive_avg_pool2d(x, self.cells)
            return F.adaptive_avg_pool3d(x, self.cells)
        return cell_means(x, self.cells)


def _trunk(dims: int, n: int) -> nn.Sequential:
    # A last odd voxel makes a pool of its own: no image is too small, and even sizes are pooled as published.
    return nn.Sequential(
        max_pool(dims, ceil_mode=True),
        _block(dims, 2 * n, 2 * n),
        _block(dims, 2 * n, 2 * n, stride=2),
        _block(dims, 2 * n, 2 * n),
        max_pool(dims, ceil_mode=True),
        _block(dims, 2 * n, 2 * n),
        _block(dims, 2 * n, n, stride=2),
        _block(dims, n, n),
        _block(dims, n, n // 4, stride=2),
    )


def _block(dims: int, n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(convolution(dims, n_in, n_out, stride=stride), nn.LeakyReLU())


class AffineMomentumNetwork(nn.Module):
    """Both networks of AVSM in one, to be trained together: `part` says whose answer is wanted.

    Args:
        affine, momentum: `MultiStepAffine` and `momentum_net.MomentumNetwork`.
        shrink: the affine network sees means of blocks of this many voxels along each axis.
    Shapes: input (B, 2, *S); part "affine" gives (B, D, D + 1) in centred coordinates of the full grid, "momentum" what
        the momentum network gives.
    Raises:
        ValueError: for another part, or a shrink below 1.
    References: Shen et al., Networks for joint affine and non-parametric image registration, CVPR 2019.
    """

    def __init__(self, affine: nn.Module, momentum: nn.Module, shrink: int = 1) -> None:
        super().__init__()
        if shrink < 1:
            raise ValueError(f"expected a shrink of at least 1, got {shrink}")
        self.affine, self.momentum, self.shrink = affine, momentum, shrink

    def forward(self, image: Tensor, part: str = "momentum") -> Tensor:
        if part == "momentum":
            return self.momentum(image)
        if part != "affine":
            raise ValueError(f"expected the part 'affine' or 'momentum', got {part!r}")
        size, s = image.shape[2:], self.shrink
        padded = pad_to_multiple(image, s)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            small = F.avg_pool3d(padded, s) if len(size) == 3 else F.avg_pool2d(padded, s)
        else:
            small = block_means(padded, [s] * len(size))
        matrix = centred_to_voxel(self.affine(small), small.shape[2:])
        # A block's mean lies at its middle: voxel i of the small grid is s * i + (s - 1) / 2 of the full one.
        linear, middle = matrix[:, :, :-1], (s - 1) / 2
        shift = s * matrix[:, :, -1:] + middle - middle * linear.sum(2, keepdim=True)
        return voxel_to_centred(torch.cat([linear, shift], 2), size)
