"""What a discriminator is shown: maps of deformations, or pairs of images, real ones and those of the network.

An adversary makes both from a batch: `real(targets)` and `fake(pred, targets)`, tensors (B, C, *S) of equal shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ...affine import affine_to_ddf
from ...fields import spatial_gradient, warp
from ...vocabulary import Batch, Pred
from .augmentation import RandomAffine, unit_affine_displacement


class Adversary(Protocol):
    """Makes what a discriminator is shown."""

    def real(self, targets: Batch) -> Tensor:
        """As it should be."""
        ...

    def fake(self, pred: Pred, targets: Batch) -> Tensor:
        """As the network has it; the gradient reaches its field."""
        ...


class SimulatedDeformations:
    """Derivatives of simulated deformations of an elastic body, against those of the predicted field.

    Derivatives, so that a shift does not give the network away; both are averaged over blocks of `stride` voxels in
    the same way. The simulated ones get a random affine map, as the network may bring one, and an amplitude of their
    own: what remains to tell them apart is the shape of the field.

    Args:
        stride: voxels of a block along each axis.
        largest: of the eigenvalues' bound of a simulated derivative, 0 to this value; below 1 nothing folds.
        poisson: range of the body's Poisson ratio; near 0.5 it keeps its volume.
        scales: range of the forces' smoothness, SD in voxels.
        affine: strength of the affine maps, see `RandomAffine`.
    References: Hu et al., MICCAI 2018 (there finite elements of other people's prostates).
    """

    def __init__(
        self,
        stride: int = 2,
        largest: float = 0.6,
        *,
        poisson: tuple[float, float] = (0.45, 0.49),
        scales: tuple[float, float] = (3.0, 6.0),
        affine: float = 0.2,
    ) -> None:
        self.stride, self.largest, self.poisson, self.scales = stride, largest, tuple(poisson), tuple(scales)
        self.affine = RandomAffine(affine)

    def real(self, targets: Batch) -> Tensor:
        image = targets["fixed"]
        size, batch = image.shape[2:], len(image)
        elastic = torch.cat([self.draw(size) for _ in range(batch)]).to(image.device)
        return self._shown(elastic + unit_affine_displacement(self.affine.draw(batch, len(size), image.device), size))

    def fake(self, pred: Pred, targets: Batch) -> Tensor:
        return self._shown(pred["ddf"])

    def draw(self, size: Sequence[int]) -> Tensor:
        """One simulated displacement (1, D, *size), voxels."""
        poisson, scale = (low + (high - low) * float(torch.rand(())) for low, high in (self.poisson, self.scales))
        field = elastic_displacement(torch.randn(1, len(size), *size), poisson, scale)
        slope = spatial_gradient(field).square().sum((1, 2)).sqrt().max()
        return field * (self.largest * torch.rand(()) / slope)

    def _shown(self, ddf: Tensor) -> Tensor:
        slopes = spatial_gradient(ddf).flatten(1, 2)
        pool = F.avg_pool3d if ddf.ndim == 5 else F.avg_pool2d
        return pool(slopes, self.stride)


def elastic_displacement(forces: Tensor, poisson: float, scale: float) -> Tensor:
    """How forces displace a linear elastic body that repeats beyond the grid's borders, in no particular unit.

    It solves mu Lap u + (mu + lambda) grad div u = -f for each wave, with f the forces smoothed by a Gaussian; the mean
    displacement is 0.

    Args:
        forces: shape (B, D, *S).
        poisson: lambda / (2 (lambda + mu)), below 0.5.
        scale: SD of the Gaussian, voxels.
    """
    size, axes = forces.shape[2:], tuple(range(2, forces.ndim))
    waves = [2 * torch.pi * torch.fft.fftfreq(n, dtype=forces.dtype, device=forces.device) for n in size]
    k = torch.stack(torch.meshgrid(*waves, indexing="ij"))
    square = k.square().sum(0)
    inverse = torch.where(square > 0, 1 / square.clamp(min=1e-12), 0)
    spectrum = torch.fft.fftn(forces, dim=axes) * torch.exp(-square * scale**2 / 2)
    along = (k * spectrum).sum(1, keepdim=True) * inverse
    # (lambda + mu) / (lambda + 2 mu) of the part along the wave is taken back.
    share = 1 / (2 * (1 - poisson))
    displaced = (spectrum - share * k * along) * inverse
    return torch.fft.ifftn(displaced, dim=axes).real.to(forces.dtype)


class AlignedImages:
    """Pairs of images that labels align, against the pairs that the network aligns.

    In a real pair the moving image is brought onto the fixed one by the affine map that takes the drawn structure's
    centre and second moments there. So the discriminator is a similarity learned from labels. Both kinds of pair are
    interpolated once, and what lies outside the moving image is 0 in both.

    References: Yan et al., 2018 (arXiv 1804.11024), where known transforms align the pairs.
    """

    def real(self, targets: Batch) -> Tensor:
        matrix = moments_map(targets["label_moving"], targets["label_fixed"])
        moving, fixed = targets["moving"], targets["fixed"]
        return torch.cat([warp(moving, affine_to_ddf(matrix, moving.shape[2:])), fixed], 1)

    def fake(self, pred: Pred, targets: Batch) -> Tensor:
        return torch.cat([pred["warped"], targets["fixed"]], 1)


def moments_map(moving: Tensor, fixed: Tensor) -> Tensor:
    """The affine map from fixed to moving voxels that takes one structure's centre and second moments to the other's.

    Without rotation: M_m^(1/2) M_f^(-1/2), with the symmetric roots of the moments.

    Args:
        moving, fixed: indicators (B, 1, *S).
    Returns:
        Shape (B, D, D + 1).
    """
    centres, roots = [], []
    for map_ in (moving, fixed):
        size = map_.shape[2:]
        axes = [torch.arange(n, dtype=torch.float64, device=map_.device) for n in size]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
        weights = map_.flatten(1).double()
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-9)
        centre = weights @ grid.T
        apart = grid[None] - centre[:, :, None]
        moments = torch.einsum("bn,bin,bjn->bij", weights, apart, apart)
        values, vectors = torch.linalg.eigh(moments + 0.25 * torch.eye(len(size), device=map_.device))
        centres.append(centre)
        roots.append((vectors, values.sqrt()))
    (vm, sm), (vf, sf) = roots
    linear = (vm * sm[:, None]) @ vm.transpose(1, 2) @ (vf / sf[:, None]) @ vf.transpose(1, 2)
    shift = centres[0] - (linear @ centres[1][:, :, None])[:, :, 0]
    return torch.cat([linear, shift[:, :, None]], 2).float()
