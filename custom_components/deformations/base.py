"""The contract of a deformation: parameters on a grid of their own -> dense fields on the image grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..fields import resize_field

if TYPE_CHECKING:
    from typing_extensions import Self

Fields = dict[str, Tensor]


class Deformation(ABC):
    """A parametrised deformation, without learned weights: it serves networks, optimisers and baselines.

    Convention: parameters have shape (B, P, *S'), one tensor, on a grid that spans the image grid *S. Displacements are
    in voxels of the image grid, phi(x) = x + ddf(x) maps fixed to moving (see `fields`).

    A subclass must say what fields its parameters make. The other methods have defaults, which suit parameters that are
    one vector field, in voxels of its own grid: a displacement, a velocity, a momentum.
    """

    # Image voxels per voxel of the parameters along each axis. 1: a grid as fine as the image's needs no choice.
    stride: int = 1

    # Whether the parameters describe a distribution: whether `draw` and `velocity_sd` work. Most describe one map.
    is_random: bool = False

    @abstractmethod
    def __call__(self, parameters: Tensor, size: Sequence[int], *, inverse: bool = False) -> Fields:
        """The fields that the parameters make on an image grid.

        Args:
            parameters: shape (B, P, *S'); a network may bring any resolution.
            size: of the image grid, *S.
            inverse: also return "inverse_ddf", the displacement of the inverse map.
        Returns:
            "ddf" (B, D, *S), and what else the deformation has to say of itself (a velocity, an energy).
        """

    def description(self) -> dict[str, object]:
        """What the parameters mean, as plain values: what a network learned for one deformation is of no use to another
        one."""
        return {"kind": type(self).__name__}

    def parameter_size(self, size: Sequence[int]) -> list[int]:
        """Spatial size of the parameters for an image of the given size; for those that are made here, from zero."""
        # Rounded up, so that an axis never vanishes.
        return [-(-n // self.stride) for n in size]

    def parameter_channels(self, spatial_dims: int) -> int:
        """Number P of channels in that many dimensions."""
        return spatial_dims

    def resize(self, parameters: Tensor, size: Sequence[int]) -> Tensor:
        """The same parameters on another grid of their own, (B, P, *size), over the same extent."""
        # Vectors count voxels of their grid, so they are rescaled. Channels that are no vectors need an override.
        return resize_field(parameters, size)

    def on_grid(self, full: Sequence[int], size: Sequence[int]) -> Self:
        """The same deformation for images resampled from size `full` to `size` over the same extent."""
        # In voxels nothing depends on the extent. With lengths in another unit the spacing has to change.
        return self

    def to_unknown(self, parameters: Tensor, size: Sequence[int]) -> Tensor:
        """The variable that an optimiser should search in place of the parameters, for an image of the given size."""
        # A velocity or displacement is conditioned well enough as it is; a momentum is not.
        return parameters

    def from_unknown(self, unknown: Tensor, size: Sequence[int]) -> Tensor:
        """The parameters: the inverse of `to_unknown`."""
        return unknown

    def draw(
        self,
        parameters: Tensor,
        size: Sequence[int],
        *,
        inverse: bool = False,
        generator: torch.Generator | None = None,
    ) -> Fields:
        """As a call, for one sample of the distribution that the parameters describe.

        Raises:
            ValueError: if the deformation has no uncertainty (`is_random` is false).
        """
        # Returning the call's fields instead would pass for a sample without variance.
        raise ValueError(self._certain())

    def velocity_sd(self, parameters: Tensor) -> Tensor:
        """Standard deviation of each component of the velocity, (B, D, *S'), voxels of its own grid.

        Raises:
            ValueError: if the deformation has no uncertainty (`is_random` is false).
        """
        raise ValueError(self._certain())

    def _certain(self) -> str:
        return f"{type(self).__name__} has no uncertainty: its parameters describe one deformation, not a distribution"
