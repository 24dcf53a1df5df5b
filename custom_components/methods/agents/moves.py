"""What an agent can do, and what each action gains: the interface that its walk and its training use.

A state says where the moving image lies: a rigid map (`rigid.RigidMoves`), or coefficients of modes of deformation
(`modes.ModeMoves`). What is missing of the true state is of the same kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ...deformations.base import Deformation
from ...fields import warp


class Moves(ABC):
    """Actions by number, in pairs: 2 k to the one side, 2 k + 1 to the other. Each has the same steps.

    An action of a step of s voxels moves points by s, root mean square, and distances are in the same unit.

    Args:
        spatial_dims: 2 or 3.
        steps: in voxels, large to small.
    Raises:
        ValueError: for another dimension, or steps that do not fall.
    """

    def __init__(self, spatial_dims: int, steps: Sequence[float]) -> None:
        if spatial_dims not in (2, 3):
            raise ValueError(f"expected spatial_dims 2 or 3, got {spatial_dims}")
        if not steps or list(steps) != sorted(set(steps), reverse=True) or min(steps) <= 0:
            raise ValueError(f"expected steps above 0, large to small, got {list(steps)}")
        self.spatial_dims, self.steps = spatial_dims, tuple(steps)

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of actions."""

    @abstractmethod
    def start(self, batch: int, device: torch.device | str | None = None) -> Tensor:
        """The states (B, ...) of images that nothing has moved."""

    @abstractmethod
    def after(self, state: Tensor, action: Tensor, step: float) -> Tensor:
        """The states to which actions, by number (B,), lead from states (B, ...)."""

    @abstractmethod
    def missing(self, state: Tensor, truth: Tensor) -> Tensor:
        """What is missing from states to the true ones (B, ...)."""

    @abstractmethod
    def distance(self, missing: Tensor) -> Tensor:
        """How far points lie from where they should, (B,), voxels, where so much is missing."""

    @abstractmethod
    def gains(self, missing: Tensor) -> Tensor:
        """What each action gains, (B, steps, count): by how much it reduces the distance, in units of its step."""

    @property
    @abstractmethod
    def deformation(self) -> Deformation:
        """What states are parameters of, as `parameters` gives them."""

    @abstractmethod
    def parameters(self, state: Tensor, size: Sequence[int]) -> Tensor:
        """The parameters of the deformation of images of a size."""

    def field(self, state: Tensor, size: Sequence[int]) -> Tensor:
        """The displacements (B, D, *size) of states, voxels."""
        ddf: Tensor = self.deformation(self.parameters(state, size), size)["ddf"]
        return ddf

    def seen(self, image: Tensor, state: Tensor) -> Tensor:
        """Pairs (B, 2, *S), moving then fixed, whose moving images lie where the states put them."""
        return torch.cat([warp(image[:, :1], self.field(state, image.shape[2:])), image[:, 1:]], 1)

    @abstractmethod
    def may(self, state: Tensor, size: Sequence[int]) -> bool:
        """Whether an agent may go to a state (1, ...): it is not further than anything that was learned."""

    @property
    def mirrored(self) -> list[int] | None:
        """The number of the action that a mirror along the first axis makes of each action; None if it makes none."""
        return None
