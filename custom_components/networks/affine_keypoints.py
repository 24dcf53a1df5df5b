"""A network of keypoints for affine registration, and the application of an affine network several times in a row.

Convention: the answer is a matrix (B, D, D + 1) that maps fixed coordinates to moving coordinates, both centred and in
units of half of the grid's longest side: `affine.centred_to_voxel` makes the one that `affine.affine_to_ddf` takes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..affine import affine_to_ddf, centred_to_voxel, compose_affine
from ..fields import at_least_float32, warp
from .blocks import AveragePool, check_pair, convolution, initialize_layers, pad_to_multiple


class AffineKeypointNetwork(nn.Module):
    """Keypoints that a network finds in each image by itself, and the affine map that best takes one to the other.

    Levels of a convolution, LeakyReLU(0.2) and the mean of blocks of 2 voxels along each axis, more convolutions at the
    coarsest level, and a map for each keypoint, which lies at the centre of mass of the map's squared positive part. A
    keypoint counts as much as the product of its masses in the two images; `fit_affine` makes the map.

    There is no layer for position or matching to train, so that few weights and few images go far, and laws hold
    whatever the weights: equal images give the identity, swapped images the inverse, and a shift of an image by
    multiples of 2**levels voxels shifts the answer, as long as there is a margin of background. For that nothing may
    come out of an empty background, hence no biases, and after each convolution the features are divided by their root
    mean square over the image, without taking off their mean. The answer does not depend on the scale of the
    intensities of either image.

    Convention: input channels are moving, then fixed, background 0. Any size: padded by background at the ends. The
    coarsest level should have about ten voxels along each axis: on phantoms of 32 x 40 x 36 voxels, two levels left
    half of the error of three.

    Parameters: 346,032 with the defaults, 115,344 in 2-D.

    Args:
        spatial_dims: 2 or 3.
        widths: features of each level.
        depth: convolutions at the coarsest level.
        num_points: keypoints, more than `spatial_dims`.
        ridge: as in `fit_affine`.
    Shapes: input (B, 2, *S), output (B, D, D + 1), float32 also under autocast.
    Raises:
        ValueError: for arguments out of range, or an input that is no pair of such images.
    References: Hoffmann et al., Anatomy-aware and acquisition-agnostic joint registration with SynthMorph, 2024, for
        keypoints of each image and weighted least squares; the fit between the two images and the laws are ours.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        depth: int = 2,
        num_points: int = 32,
        ridge: float = 1e-5,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3) or num_points <= spatial_dims:
            raise ValueError(
                f"expected spatial_dims 2 or 3 and more keypoints than that, got {spatial_dims} and {num_points}"
            )
        if min(widths, default=0) < 1 or depth < 0 or ridge <= 0:
            raise ValueError(
                f"expected widths of at least 1, depth >= 0, ridge > 0, got {tuple(widths)}, {depth}, {ridge}"
            )
        self.spatial_dims, self.ridge = spatial_dims, float(ridge)
        self.multiple = 2 ** len(widths)

        layers: list[nn.Module] = []
        n_in = 1
        for level, n_out in enumerate(list(widths) + [widths[-1]] * depth):
            layers += [convolution(spatial_dims, n_in, n_out, bias=False), nn.LeakyReLU(0.2)]
            if level < len(widths):
                layers.append(AveragePool())
            layers.append(_UnitPower())
            n_in = n_out
        self.detector = nn.Sequential(*layers, convolution(spatial_dims, n_in, num_points, bias=False))
        initialize_layers(self, 0.2)

    def forward(self, image: Tensor) -> Tensor:
        return self.located(image)[0]

    def located(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The matrix, and the keypoints of the fixed and of the moving image as in `keypoints`."""
        fixed, moving, weights = self.keypoints(image)
        return fit_affine(fixed, moving, weights, self.ridge), fixed, moving

    def keypoints(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keypoints of the fixed and of the moving image (B, K, D), centred coordinates; their weights (B, K)."""
        check_pair(image, self.spatial_dims)
        size = image.shape[2:]
        maps = self.detector(pad_to_multiple(torch.cat([image[:, :1], image[:, 1:]]), self.multiple))
        maps = at_least_float32(maps).relu().square()
        mass = maps.flatten(2).sum(2)
        unit = max(max(size) - 1, 1) / 2
        centres: list[Tensor] = []
        for axis in range(len(size)):
            profile = maps.movedim(axis + 2, 2).flatten(3).sum(3)
            # The mean of a block lies at its middle.
            index = torch.arange(profile.shape[2], dtype=maps.dtype, device=maps.device)
            location = (self.multiple * index + (self.multiple - size[axis]) / 2) / unit
            centres.append((profile * location).sum(2) / (mass + 1e-12))
        moving, fixed = torch.stack(centres, 2).chunk(2)
        shares = mass / (mass.sum(1, keepdim=True) + 1e-12)
        return fixed, moving, shares.chunk(2)[0] * shares.chunk(2)[1]


class MultiStepAffine(nn.Module):
    """An affine network applied several times in a row, the same weights each time (AVSM).

    Each step sees the moving image as the map so far warps it: always the original image, warped once. The step's map
    goes from the fixed image to that warped one, so the next map is "map so far o step's map". (The paper multiplies
    the matrices the other way round, which is not the map from the fixed to the moving image unless they commute.)
    Training keeps the first step's features only; later steps are computed again during the backward pass.

    Args:
        network: from (B, 2, *S), moving then fixed, to (B, D, D + 1) in centred coordinates.
        num_steps: where a call does not say. The paper trains with 1, later 3, and registers with 5 to 7.
    Shapes: as the network's.
    Raises:
        ValueError: for less than one step.
    References: Shen et al., Networks for joint affine and non-parametric image registration, CVPR 2019.
    """

    def __init__(self, network: nn.Module, num_steps: int = 1) -> None:
        super().__init__()
        self.network, self.num_steps = network, num_steps

    def forward(
        self, image: Tensor, num_steps: int | None = None, located: bool = False
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """The map after the last step; with `located` also the keypoints (B, K, D) that the first step found in the
        fixed and the moving image, see `AffineKeypointNetwork`."""
        if not located:
            return self.steps(image, num_steps)[-1]
        matrix, fixed, moving = self.network.located(image)  # type: ignore[operator]
        return self._go_on(image, [matrix], num_steps)[-1], fixed, moving

    def steps(self, image: Tensor, num_steps: int | None = None) -> list[Tensor]:
        """The map after each step, (B, D, D + 1)."""
        return self._go_on(image, [self.network(image)], num_steps)

    def _go_on(self, image: Tensor, matrices: list[Tensor], num_steps: int | None) -> list[Tensor]:
        num_steps = self.num_steps if num_steps is None else num_steps
        if num_steps < 1:
            raise ValueError(f"expected at least one step, got {num_steps}")
        for _ in range(1, num_steps):
            if self.training and torch.is_grad_enabled():
                matrices.append(checkpoint(self._step, image, matrices[-1], use_reentrant=False))
            else:
                matrices.append(self._step(image, matrices[-1]))
        return matrices

    def _step(self, image: Tensor, matrix: Tensor) -> Tensor:
        moving, fixed = image.chunk(2, 1)
        size = image.shape[2:]
        with torch.autocast(image.device.type, enabled=False):
            warped = warp(moving, affine_to_ddf(centred_to_voxel(matrix, size), size))
        return compose_affine(matrix, self.network(torch.cat([warped, fixed], 1)))


def fit_affine(fixed: Tensor, moving: Tensor, weights: Tensor, ridge: float = 1e-5) -> Tensor:
    """The affine map from points of the fixed image to those of the moving one, by weighted least squares.

    With p the fixed and q the moving points, M and t minimise `sum_i w_i |q_i - p_i - M (q_i + p_i) / 2 - t|^2`, and
    the map solves `q - p = M (q + p) / 2 + t` for q. It is exact where the points have an exact affine map; other
    points are treated symmetrically, so that swapping fixed and moving gives exactly the inverse, which the ordinary
    fit of q from p does not. A small multiple of |M|^2 is added: where the points say nothing, the map is a shift.

    The Frobenius norm of M is kept to 1.8 at most, or the equation for q may have no solution: the map is invertible
    with a positive determinant. That is a rotation by 65 degrees in 3-D, or a scale by 3.2; in 2-D 65 and 4.5.

    Args:
        fixed, moving: shape (B, K, D), coordinates of order 1.
        weights: shape (B, K), not negative; their scale does not matter. All zero: the identity.
        ridge: that multiple, for weights of sum 1; to be well below the variance of the points.
    Returns:
        Shape (B, D, D + 1).
    """
    w = weights.unsqueeze(2)
    # Sums and no matrix products, which autocast would round to bfloat16.
    w = w / (w.sum(1, keepdim=True) + 1e-12)
    difference, middle = moving - fixed, (moving + fixed) / 2
    shift, centre = (w * difference).sum(1, keepdim=True), (w * middle).sum(1, keepdim=True)
    difference, middle = difference - shift, middle - centre
    variance = (w.unsqueeze(3) * middle.unsqueeze(3) * middle.unsqueeze(2)).sum(1)
    covariance = (w.unsqueeze(3) * middle.unsqueeze(3) * difference.unsqueeze(2)).sum(1)
    identity = torch.eye(fixed.shape[2], dtype=fixed.dtype, device=fixed.device)
    m = torch.linalg.solve(variance + ridge * identity, covariance).transpose(1, 2)
    length = (m.square().sum(2, keepdim=True).sum(1, keepdim=True) + 1e-24).sqrt()
    m = m * (1.8 / length.clamp_min(1.8))
    t = shift.transpose(1, 2) - (m * centre).sum(2, keepdim=True)
    return torch.linalg.solve(identity - m / 2, torch.cat([identity + m / 2, t], 2))


class _UnitPower(nn.Module):
    """Divide each channel by its root mean square over the image; zeros stay zeros."""

    def forward(self, x: Tensor) -> Tensor:
        y = at_least_float32(x)
        scale = (y.flatten(2).square().mean(2) + 1e-12).rsqrt()
        return (y * scale.view(list(scale.shape) + [1] * (x.dim() - 2))).to(x.dtype)
