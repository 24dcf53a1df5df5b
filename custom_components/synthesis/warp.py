"""Random diffeomorphic and affine warps of label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from ..affine import affine_to_ddf
from ..constants import filled
from ..fields import integrate_velocity, resize_field, warp
from .noise import Draw, smooth_noise, uniform


class RandomWarp:
    """Random diffeomorphic warp with random affine offsets: label maps -> moved label maps, by nearest neighbour.

    The velocity lives at half the resolution: for each of `scales` Gaussian noise with one value in `scale` voxels,
    linearly interpolated, of a standard deviation drawn from U(0, `std`) for each sample and scale; 5 squarings. What
    comes from outside the map is 0.

    Args:
        std: largest standard deviation of the velocity, in voxels of its half-resolution grid.
        scales: in voxels of the full grid.
        rotation_degrees, scaling, shear, shift: largest absolute offsets, each drawn uniformly; shift in voxels.
    References: the defaults are SynthMorph's for brains; for shapes std 3, scales (8, 16, 32).
    """

    def __init__(
        self,
        std: float = 0.5,
        scales: Sequence[float] = (16,),
        *,
        rotation_degrees: float = 0.0,
        scaling: float = 0.0,
        shear: float = 0.0,
        shift: float = 0.0,
    ) -> None:
        self.std, self.scales = std, tuple(scales)
        self.affine = {"rotation_degrees": rotation_degrees, "scaling": scaling, "shear": shear, "shift": shift}

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> Draw:
        """Draw "velocity" (B, D, *ceil(S / 2)), in voxels of its grid, and "matrix" (B, D + 1, D + 1)."""
        half = [-(-n // 2) for n in size]
        velocity = sum(
            smooth_noise(half, scale / 2, uniform((0, self.std), (batch,), generator), generator, channels=len(size))
            for scale in self.scales
        )
        return {"velocity": torch.as_tensor(velocity), "matrix": random_affine(batch, size, generator, **self.affine)}

    def field(self, draw: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        """The displacement x -> A(x + u(x)) - x of a draw, (B, D, *S), in voxels."""
        u = resize_field(integrate_velocity(draw["velocity"], 5), size)
        d = len(size)
        return affine_to_ddf(draw["matrix"], size) + torch.einsum("bij,bj...->bi...", draw["matrix"][:, :d, :d], u)

    def __call__(self, labels: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """The moved maps, (B, 1, *S), in the type of `labels`."""
        return warp(labels, self.field(draw, labels.shape[2:]), mode="nearest")


def random_affine(
    batch: int,
    size: Sequence[int],
    generator: Generator,
    *,
    rotation_degrees: float = 0.0,
    scaling: float = 0.0,
    shear: float = 0.0,
    shift: float = 0.0,
) -> Tensor:
    """Random rotations, scalings, shears and shifts about the centre of a grid: voxel matrices (B, D + 1, D + 1).

    In 3-D the rotation's three components are drawn one by one, each within `rotation_degrees`.
    """
    d, device = len(size), generator.device
    upper = torch.triu_indices(d, d, 1, device=device)
    skew = torch.zeros(batch, d, d, device=device)
    angles = torch.pi / 180 * uniform((-rotation_degrees, rotation_degrees), (batch, upper.shape[1]), generator)
    skew[:, upper[0], upper[1]] = angles
    sheared = torch.eye(d, device=device).repeat(batch, 1, 1)
    sheared[:, upper[0], upper[1]] = uniform((-shear, shear), (batch, upper.shape[1]), generator)
    scale = torch.diag_embed(1 + uniform((-scaling, scaling), (batch, d), generator))
    linear = torch.linalg.matrix_exp(skew - skew.mT) @ scale @ sheared
    center = filled([(n - 1) / 2 for n in size], linear)
    matrix = torch.eye(d + 1, device=device).repeat(batch, 1, 1)
    matrix[:, :d, :d] = linear
    matrix[:, :d, d] = center - linear @ center + uniform((-shift, shift), (batch, d), generator)
    return matrix
