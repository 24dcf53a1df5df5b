"""The networks of weakly supervised registration: an affine map, then a displacement, which are added.

Everything that `forward` calls works under TorchScript.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...fields import per_channel, sample
from ...networks.blocks import AveragePool, check_pair, check_spatial_dims, convolution, initialize_layers, max_pool
from ...repeatable import resize

_LEVELS = 4  # poolings; the features double at each


class Encoder(nn.Module):
    """Four levels of convolutions and max pooling, then a convolution at a sixteenth of the resolution.

    A level is a convolution, then two more with its output added before the last ReLU. All have batch normalisation
    with a shift and no scale. The first convolution is 7 voxels wide, the others 3. The skip of a level is the output
    of its first convolution.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        start: features of the finest level.
    Shapes: input (B, in_channels, *S), S a multiple of 16; output: the features at the bottom (B, 16 start, *S / 16),
        and the skips, the finest first.
    References: Hu et al., Medical Image Analysis 49, 2018, by the authors' code; which output is the skip is our
        choice.
    """

    def __init__(self, spatial_dims: int, in_channels: int, start: int) -> None:
        super().__init__()
        widths = [start * 2**level for level in range(_LEVELS + 1)]
        sources = [in_channels, *widths]
        self.first = nn.ModuleList(
            _block(spatial_dims, sources[level], widths[level], 3 if level else 7) for level in range(_LEVELS)
        )
        self.residual = nn.ModuleList(_Residual(spatial_dims, width) for width in widths[:-1])
        self.pool = max_pool(spatial_dims)
        self.bottom = _block(spatial_dims, widths[-2], widths[-1])

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips: list[Tensor] = []
        for first, residual in zip(self.first, self.residual):  # noqa: B905 (TorchScript has no strict)
            x = first(x)
            skips.append(x)
            x = self.pool(residual(x, x))
        return self.bottom(x), skips


class LocalNetwork(nn.Module):
    """A displacement field as the sum of the fields of several resolutions.

    `Encoder`, then a decoder: transposed convolution plus the sum of both halves of the channels, enlarged linearly;
    the encoder's features are added to the shortcut of two convolutions. A head at each of `extracted` levels gives a
    displacement, which is enlarged linearly; a tenth of their sum is the answer, so that the first steps of Adam at a
    rate of 0.001 move by less than a voxel. Nothing is decoded beyond the finest of them. The heads start at zero.

    Parameters: 1,201,479 with five levels and 8 features, 4,753,023 with 16, 18,906,351 with 32.

    Args:
        spatial_dims: 2 or 3.
        start: features of the finest level.
        extracted: levels that have a head; 0 is the image's resolution, 4 a sixteenth of it.
    Shapes: input (B, 2, *S), moving, then fixed, any size (padded with zeros on both sides); output (B, D, *S), voxels.
    Raises:
        ValueError: for levels that are not there.
    References: Hu et al., Medical Image Analysis 49, 2018.
    """

    def __init__(self, spatial_dims: int = 3, start: int = 8, extracted: Sequence[int] = (0, 1, 2, 3, 4)) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        if not extracted or not set(extracted) <= set(range(_LEVELS + 1)):
            raise ValueError(f"expected levels from 0 to {_LEVELS}, got {tuple(extracted)}")
        self.encoder = Encoder(spatial_dims, 2, start)
        widths = [start * 2**level for level in range(_LEVELS + 1)]
        # The coarsest first; a level without a head has one of no channels, for TorchScript.
        levels = range(_LEVELS, min(extracted) - 1, -1)
        self.decoder = nn.ModuleList(_Up(spatial_dims, widths[level]) for level in levels[1:])
        self.heads = nn.ModuleList(
            convolution(spatial_dims, widths[level], spatial_dims) if level in extracted else _NoHead()
            for level in levels
        )
        self.multiple, self.gain = 2**_LEVELS, 0.1
        initialize_layers(self)
        for head in self.heads:
            for parameter in head.parameters():
                nn.init.zeros_(parameter)

    def forward(self, image: Tensor) -> Tensor:
        padded = padded_on_both_sides(image, self.multiple)
        x, skips = self.encoder(padded)
        features = [x]
        for level, up in enumerate(self.decoder):
            x = up(x, skips[len(skips) - 1 - level])
            features.append(x)
        size = list(padded.shape[2:])
        field = torch.zeros([1], device=image.device)
        for level, head in enumerate(self.heads):
            part = self.gain * head(features[level]).float()
            if part.shape[1] > 0:
                field = field + enlarged(part, size)
        return middle(field, list(image.shape[2:]))


class GlobalNetwork(nn.Module):
    """An affine map from a pair of images: `Encoder`, then one dense layer, which starts as the identity.

    A dense layer fits one size. So the network looks at a box of that size about the centre of the images: what lies
    outside of it is not seen, and images that do not fill it are padded with zeros.

    Convention: coordinates have their origin at the image's centre, and half of the box's longest side as their unit,
    so that neither depends on the size of the image. The dense layer's answer is divided by the number of its inputs:
    then a step of Adam at a rate of 0.001 moves the edge of the box by less than a voxel, whatever its size. Without,
    the first steps throw the image out of sight.

    Parameters: 593,496 with 8 features, and D (D + 1) (128 cells + 1) of the dense layer, where cells is the number of
    voxels of the box at a sixteenth of the resolution that is looked at.

    Args:
        spatial_dims: 2 or 3.
        size: of the box in voxels, multiples of 16 shrink; the first not twice that in 3-D.
        start: features of the finest level.
        shrink: it sees means of blocks of this many voxels along each axis.
    Shapes: input (B, 2, *S), output (B, D, D + 1), fixed to moving coordinates.
    Raises:
        ValueError: for a size that does not fit, or an input that is no pair.
    References: Hu et al., Medical Image Analysis 49, 2018; ISBI 2018. (There the images have one size.)
    """

    def __init__(
        self, spatial_dims: int = 3, size: Sequence[int] = (48, 48, 48), start: int = 8, shrink: int = 1
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        block = 2**_LEVELS * shrink
        if shrink < 1 or len(size) != spatial_dims or min(size) < block or any(n % block for n in size):
            raise ValueError(f"expected {spatial_dims} multiples of {block} for the box, got {tuple(size)}")
        # See `inference.prediction.Precision`: the box is no smaller where the image is.
        if spatial_dims == 3 and size[0] == 2 * block:
            raise ValueError(
                f"expected another first axis of the box than {size[0]}: CPUs' bfloat16 fails with two cells"
            )
        self.spatial_dims, self.size = spatial_dims, list(size)
        self.unit = (max(size) - 1) / 2
        self.shrink: nn.Module = AveragePool(shrink) if shrink > 1 else nn.Identity()
        self.encoder = Encoder(spatial_dims, 2, start)
        cells = 1
        for n in size:
            cells *= n // block
        inputs = start * 2**_LEVELS * cells
        self.matrix, self.gain = nn.Linear(inputs, spatial_dims * (spatial_dims + 1)), 1000 / (inputs * self.unit)
        initialize_layers(self)
        nn.init.zeros_(self.matrix.weight)

    def forward(self, image: Tensor) -> Tensor:
        check_pair(image, self.spatial_dims)
        if list(image.shape[2:]) != self.size:
            image = sample_about_centre(image, centred_grid(self.size, image))
        x, _ = self.encoder(channels_last(self.shrink(image)))
        d = self.spatial_dims
        difference = self.gain * self.matrix(x.flatten(1)).float().view(-1, d, d + 1)
        return difference + torch.eye(d, d + 1, dtype=difference.dtype, device=difference.device)


class CompositeNetwork(nn.Module):
    """The displacement of an affine map plus that of a local network, which sees the moving image so aligned.

    phi(x) = A x + u(x): a sum and no composition. Where the affine part has been added, the bending energy of the whole
    is that of u.

    Args:
        affine: a `GlobalNetwork`.
        local: from (B, 2, *S) to a displacement (B, D, *S), voxels.
    Shapes: input (B, 2, *S), output (B, D, *S), voxels; `part` "affine" gives the affine map's alone.
    Raises:
        ValueError: for another part.
    References: Hu et al., Medical Image Analysis 49, 2018.
    """

    def __init__(self, affine: GlobalNetwork, local: nn.Module) -> None:
        super().__init__()
        self.affine, self.local = affine, local

    def forward(self, image: Tensor, part: str = "all") -> Tensor:
        if part != "all" and part != "affine":
            raise ValueError(f"expected the part 'all' or 'affine', got {part}")
        matrix = self.affine(image)
        grid = centred_grid(list(image.shape[2:]), image)
        displacement = displaced(matrix, grid, self.affine.unit)
        if part == "affine":
            return displacement
        moving, fixed = image.chunk(2, 1)
        warped = sample_about_centre(moving, grid + displacement)
        return displacement + self.local(channels_last(torch.cat([warped, fixed], 1))).float()


def centred_grid(size: list[int], like: Tensor) -> Tensor:
    """Coordinates of a grid's voxels, in voxels from its centre, (1, D, *size), float32."""
    axes: list[Tensor] = []
    for axis, n in enumerate(size):
        shape = [1] * len(size)
        shape[axis] = n
        along = torch.arange(n, device=like.device, dtype=torch.float32) - (n - 1) / 2
        axes.append(along.view(shape).expand(size))
    return torch.stack(axes).unsqueeze(0)


def sample_about_centre(image: Tensor, locations: Tensor) -> Tensor:
    """An image (B, C, *S) at locations (B or 1, D, *S'), voxels from its centre, linear, zeros outside."""
    locations = locations.expand([image.shape[0]] + list(locations.shape[1:]))
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        middle = [(n - 1) / 2 for n in image.shape[2:]]
        return sample(image.float(), locations + per_channel(middle, locations))
    parts: list[Tensor] = []  # TorchScript cannot read `sample`
    for axis in range(locations.shape[1] - 1, -1, -1):
        parts.append(locations[:, axis] * (2 / max(image.shape[axis + 2] - 1, 1)))
    grid = torch.stack(parts, -1)
    return F.grid_sample(image.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def displaced(matrix: Tensor, grid: Tensor, unit: float) -> Tensor:
    """How far an affine map (B, D, D + 1) moves the points of a centred grid (1, D, *S), voxels, (B, D, *S)."""
    d = matrix.shape[1]
    parts: list[Tensor] = []
    shape = [-1] + [1] * d
    for i in range(d):
        moved = (unit * matrix[:, i, d]).view(shape) - grid[:, i]
        for j in range(d):
            moved = moved + matrix[:, i, j].view(shape) * grid[:, j]
        parts.append(moved)
    return torch.stack(parts, 1)


def padded_on_both_sides(image: Tensor, multiple: int) -> Tensor:
    """Zeros around (B, C, *S), up to the next multiple along each axis."""
    padding: list[int] = []
    for n in image.shape[2:][::-1]:
        lacking = (multiple - n % multiple) % multiple
        padding.extend([lacking // 2, lacking - lacking // 2])
    return F.pad(image, padding)


def middle(field: Tensor, size: list[int]) -> Tensor:
    """(B, C, *size): what padding on both sides added is gone."""
    for axis, n in enumerate(size):
        field = field.narrow(axis + 2, (field.shape[axis + 2] - n) // 2, n)
    return field


def enlarged(values: Tensor, size: list[int]) -> Tensor:
    """Values (B, C, *S) on a finer grid of the same extent, linear."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        mode = "trilinear" if values.dim() == 5 else "bilinear"
        return F.interpolate(values, size=size, mode=mode, align_corners=False)
    return resize(values, size, align_corners=False)


def channels_last(image: Tensor) -> Tensor:
    """The image in the memory layout in which convolutions of few channels are three times as fast on CPUs."""
    if image.dim() == 5:
        return image.contiguous(memory_format=torch.channels_last_3d)
    return image.contiguous(memory_format=torch.channels_last)


class _Residual(nn.Module):
    """Two convolutions, a shortcut added before the last ReLU."""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        self.first = _block(dims, width, width)
        self.second = nn.Sequential(convolution(dims, width, width, bias=False), _norm(dims, width))

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + shortcut)


class _Up(nn.Module):
    """Twice the resolution, half the features, with the encoder's features there."""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        layer = nn.ConvTranspose3d if dims == 3 else nn.ConvTranspose2d
        self.enlarge = nn.Sequential(
            layer(2 * width, width, 3, stride=2, padding=1, output_padding=1, bias=False), _norm(dims, width), nn.ReLU()
        )
        self.residual = _Residual(dims, width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        x = self.enlarge(x) + enlarged(first + second, list(skip.shape[2:]))
        return self.residual(x, x + skip)


class _NoHead(nn.Module):
    """In place of a head: a field without channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :0]


def _block(dims: int, n_in: int, n_out: int, width: int = 3) -> nn.Sequential:
    return nn.Sequential(convolution(dims, n_in, n_out, width, bias=False), _norm(dims, n_out), nn.ReLU())


def _norm(dims: int, width: int) -> nn.Module:
    """Batch normalisation with a shift alone: the scale stays 1, the next convolution has one."""
    norm = nn.BatchNorm3d(width) if dims == 3 else nn.BatchNorm2d(width)
    norm.weight.requires_grad_(False)
    return norm
