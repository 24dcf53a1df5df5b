"""The networks of DLIR: an affine one and one for each grid of control points."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...fields import at_least_float32
from ...networks.blocks import AveragePool, check_pair, check_spatial_dims, convolution, initialize_layers

_DEPTH = 5  # convolutions of each network
_GAIN = 4.0  # of the last layer, that the first steps of a training move control points by a tenth of their distance


class AffineConvNet(nn.Module):
    """The numbers of an affine map, from the mean features of each image.

    Five convolutions (ELU) see each image for itself, with the same weights; the first four are followed by the mean of
    blocks of 2 voxels. The means over each image are joined; two dense layers, then one for each part of the map:
    translation, rotation, scaling and shear, in this order of the answer's numbers. Since the features are means over
    the whole image, the two may have different sizes.

    The map is R S H x + t (rotation, scaling, shear, translation) in centred coordinates. Angles are pi / 2 tanh,
    factors 2^tanh, shears tanh, shifts tanh, so that no answer is without an inverse. The last layers start at zero:
    at the identity. (TorchIR has a shear for each ordered pair of axes, which in 3-D is 15 numbers for 12.)

    Convention: background 0. Matrices act on centred coordinates (`affine.centred_to_voxel`).

    Parameters: 119,980 with the defaults, 43,590 in 2-D.

    Args:
        spatial_dims: 2 or 3.
        features: of each layer.
    Shapes: input (B, 2, *S), moving, then fixed; output (B, D, D + 1), float32 also under autocast.
    References: de Vos et al., Medical Image Analysis 52, 2019; layers as in TorchIR, by its first author.
    """

    def __init__(self, spatial_dims: int = 3, features: int = 32) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        self.spatial_dims = d = spatial_dims
        layers: list[nn.Module] = []
        for i in range(_DEPTH):
            layers += [convolution(d, features if i else 1, features), nn.ELU()]
            if i < _DEPTH - 1:
                layers.append(AveragePool())
        self.tower = nn.Sequential(*layers)
        self.dense = nn.Sequential(nn.Linear(2 * features, 64), nn.ELU(), nn.Linear(64, 64), nn.ELU())
        self.parts = nn.Linear(64, d * (d + 1))
        initialize_layers(self, 1.0)
        nn.init.zeros_(self.parts.weight)

    def forward(self, image: Tensor) -> Tensor:
        check_pair(image, self.spatial_dims)
        return self.apart(image[:, :1], image[:, 1:])

    def apart(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """The matrix for two images (B, 1, *S) of any sizes, each of at least 16 voxels along each axis."""
        features = [self.tower(image).flatten(2).mean(2) for image in (moving, fixed)]
        numbers = at_least_float32(self.parts(self.dense(torch.cat(features, 1)))).tanh()
        return affine_matrix(numbers, self.spatial_dims)


def affine_matrix(numbers: Tensor, spatial_dims: int) -> Tensor:
    """The map R S H x + t of numbers between -1 and 1, see `AffineConvNet`.

    Args:
        numbers: shape (B, D (D + 1)): D shifts, 1 or 3 angles, D scalings, 1 or 3 shears.
        spatial_dims: D.
    Returns:
        Shape (B, D, D + 1).
    """
    d = spatial_dims
    planes = [(0, 1)] if d == 2 else [(1, 2), (2, 0), (0, 1)]
    turns = len(planes)
    one, zero = torch.ones_like(numbers[:, 0]), torch.zeros_like(numbers[:, 0])
    angles = numbers[:, d : d + turns] * (math.pi / 2)
    scales = torch.exp(numbers[:, d + turns : 2 * d + turns] * math.log(2.0))
    shears = numbers[:, 2 * d + turns :]
    rows: list[Tensor] = []
    for i in range(d):
        row: list[Tensor] = []
        for j in range(d):
            entry = one if i == j else zero
            for k, (a, b) in enumerate([(0, 1)] if d == 2 else [(1, 2), (0, 2), (0, 1)]):
                if a == i and b == j:
                    entry = shears[:, k]
            row.append(entry * scales[:, i])
        rows.append(torch.stack(row, 1))
    linear = torch.stack(rows, 1)
    for k, (a, b) in enumerate(planes):
        cosine, sine = torch.cos(angles[:, k]), torch.sin(angles[:, k])
        turned: list[Tensor] = []
        for i in range(d):
            # Sums and not a matrix product, which autocast would round.
            if i == a:
                turned.append(cosine[:, None] * linear[:, a] - sine[:, None] * linear[:, b])
            elif i == b:
                turned.append(sine[:, None] * linear[:, a] + cosine[:, None] * linear[:, b])
            else:
                turned.append(linear[:, i])
        linear = torch.stack(turned, 1)
    return torch.cat([linear, numbers[:, :d, None]], 2)


class ControlPointNet(nn.Module):
    """Displacements of the control points of a cubic B-spline, from two images.

    Five convolutions (ELU) see both images; the first log2(spacing) of them are followed by the mean of blocks of 2
    voxels, so that there is one feature vector a control point, of the cell about it. Two layers of width 1, then the
    displacements, at most `limit` spacings along each axis, which start at zero.

    The cells lie half a voxel before their control points. Images are padded by zeros as far as a cell holds a voxel of
    theirs, features where none does.

    Convention: as `deformations.bspline.BSplineDeformation`: in units of the spacing. With a limit of 1 / (1.5 D) the
    B-spline cannot fold; 0.4 is what TorchIR takes, and hardly ever folds.

    Parameters: 116,163 with the defaults, 39,810 in 2-D.

    Args:
        spatial_dims: 2 or 3.
        spacing: distance between control points in voxels, a power of 2 from 2 to 32.
        features: of each layer.
        limit: see above.
    Shapes: input (B, 2, *S), output (B, D, *control_size(S, spacing)).
    Raises:
        ValueError: for another spacing.
    References: as `AffineConvNet`.
    """

    def __init__(self, spatial_dims: int = 3, spacing: int = 8, features: int = 32, limit: float = 0.4) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        halvings = int(math.log2(spacing)) if spacing > 0 else 0
        if not 1 <= halvings <= _DEPTH or spacing != 2**halvings:
            raise ValueError(f"expected a distance of control points of 2, 4, 8, 16 or 32 voxels, got {spacing}")
        self.spatial_dims, self.spacing, self.limit = spatial_dims, int(spacing), float(limit)
        self.gain = _GAIN
        layers: list[nn.Module] = []
        for i in range(_DEPTH):
            layers += [convolution(spatial_dims, features if i else 2, features), nn.ELU()]
            if i < halvings:
                layers.append(AveragePool())
        for _ in range(2):
            layers += [convolution(spatial_dims, features, features, 1), nn.ELU()]
        self.cells, self.layers = nn.Sequential(*layers[: 3 * halvings]), nn.Sequential(*layers[3 * halvings :])
        self.points = convolution(spatial_dims, features, spatial_dims, 1)
        initialize_layers(self, 1.0)
        nn.init.zeros_(self.points.weight)

    def forward(self, image: Tensor) -> Tensor:
        check_pair(image, self.spatial_dims)
        half = self.spacing // 2
        voxels: list[int] = []
        cells: list[int] = []
        for n in image.shape[2:][::-1]:
            seen = (n - 1 + half) // self.spacing + 1
            voxels.extend([half, seen * self.spacing - n - half])
            cells.extend([1, (n + self.spacing - 2) // self.spacing + 2 - seen])
        x = self.points(self.layers(F.pad(self.cells(F.pad(image, voxels)), cells)))
        return self.limit * (self.gain * at_least_float32(x)).tanh()


class StageNetworks(nn.Module):
    """All networks of DLIR in one; `stage` says which one is asked.

    Args:
        spatial_dims: 2 or 3.
        spacings: of the B-splines, coarse to fine, voxels.
        features: of each layer.
        limit: as for `ControlPointNet`.
        learns: the stage that is trained: the weights of all others stay. None: all can learn.
    Shapes: input (B, 2, *S), moving (as the stages before have warped it), then fixed. Stage 0 gives the affine map (B,
        D, D + 1), stages 1, 2, ... control points; without a stage the last one answers.
    Raises:
        ValueError: if there is no such stage.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        spacings: Sequence[int] = (8, 4),
        features: int = 32,
        limit: float = 0.4,
        learns: int | None = None,
    ) -> None:
        super().__init__()
        self.affine = AffineConvNet(spatial_dims, features)
        self.splines = nn.ModuleList([ControlPointNet(spatial_dims, h, features, limit) for h in spacings])
        for number, network in enumerate([self.affine, *self.splines]):
            network.requires_grad_(learns is None or number == learns)

    def forward(self, image: Tensor, stage: int = -1) -> Tensor:
        if stage == 0:
            return self.affine(image)
        wanted = stage if stage > 0 else len(self.splines)
        answer: list[Tensor] = []
        for number, network in enumerate(self.splines):
            if number + 1 == wanted:
                answer.append(network(image))
        if not answer:
            raise ValueError(f"expected a stage from 0 to {len(self.splines)}, got {stage}")
        return answer[0]
