"""Register two images without a network, with any loss, on the fixed image's own grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ..checks import check_number
from ..deformations.affine import AffineParameters
from ..deformations.base import Deformation
from ..deformations.velocity import Displacement, StationaryVelocity
from ..losses.registration import RegistrationLoss
from ..losses.regularization import GradientPenalty
from ..space.resampling import DisplacementField, Step
from ..space.transform import Transform
from ..space.volumes import Volume
from ..space.warping import warp_to_grid
from .refinement import PairwiseOptimizer

# What is optimised, by name: the deformation, and its field that is regularised.
MODELS: dict[str, tuple[type[Deformation], str]] = {
    "affine": (AffineParameters, "ddf"),
    "velocity": (StationaryVelocity, "svf"),
    "displacement": (Displacement, "ddf"),
}


class Compared(nn.Module):
    """A loss of two images alone, `loss(warped, fixed)`, as a similarity."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, warped: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        """Raises ValueError: if the loss does not return one number."""
        value = self.loss(warped, fixed)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(f"expected a loss(warped, fixed) that returns one number, got {got}")
        return value.reshape(())


@dataclass(frozen=True)
class Pairwise:
    """How a pair is optimised.

    Args:
        loss: called as `loss(warped, fixed)` with images (1, C, *S); smaller is better.
        models: one after the other: "affine", "velocity" (no folds) or "displacement". Each begins where the one before
            ended, and the moving image is always interpolated once.
        levels: shrink factors of the images, coarse to fine.
        iterations: at each level, or one number for all.
        regularization: called with the field of a velocity or displacement, in voxels.
        weight: of the regularisation.
        learning_rate: of Adam: voxels that a vector moves in an iteration, about.
        method: "adam", or "lbfgs", whose steps never make the loss larger.
    Raises:
        ValueError: for another model, levels and iterations of unequal number, or a weight below 0.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    models: Sequence[str] = ("affine", "velocity")
    levels: Sequence[int] = (4, 2, 1)
    iterations: int | Sequence[int] = (60, 40, 20)
    regularization: nn.Module = field(default_factory=GradientPenalty)
    weight: float = 0.1
    learning_rate: float = 0.2
    method: str = "lbfgs"

    def __post_init__(self) -> None:
        unknown = [name for name in self.models if name not in MODELS]
        if unknown or not self.models:
            raise ValueError(f"expected models among {', '.join(MODELS)}, got {unknown or 'none'}")
        check_number("weight", self.weight, least=0)
        for name in self.models:
            self._optimizer(name)

    def __call__(self, moving: Volume, fixed: Volume, device: torch.device | str = "cpu") -> Transform:
        """The map from fixed to moving points, which begins with what the headers say; its inverse is known.

        Raises:
            ValueError: if one image is 2-D and the other 3-D, or their numbers of channels differ.
            RuntimeError: if the loss stops being finite.
        """
        if len(moving.data) != len(fixed.data):
            channels = f"{len(moving.data)} and {len(fixed.data)}"
            raise ValueError(f"{moving.path}: expected as many channels as {fixed.path} has, got {channels}")
        if moving.data.ndim != fixed.data.ndim:
            raise ValueError(
                f"expected two images of one dimension, got {moving.path} of shape {moving.file_shape} and "
                f"{fixed.path} of shape {fixed.file_shape}"
            )
        result = Transform(())
        target = fixed.data.float()[None].to(device)
        for name in self.models:
            start = warp_to_grid(moving.data.float(), moving.affine, fixed.grid, result.steps, fill=moving.background)
            optimizer = self._optimizer(name)
            parameters = optimizer(start[None].to(device), target)
            fields = optimizer.deformation(parameters, fixed.grid.size, inverse=True)
            steps = [_step(fields, key, fixed, inverse=key != "ddf") for key in ("ddf", "inverse_ddf")]
            back = result.back or ()
            result = Transform((steps[0], *result.steps), (*back, steps[1]))
        return result

    def _optimizer(self, name: str) -> PairwiseOptimizer:
        make, regularized = MODELS[name]
        weight = 0.0 if name == "affine" else self.weight
        loss = RegistrationLoss(Compared(self.loss), self.regularization, weight, regularized=regularized)
        return PairwiseOptimizer(
            make(),
            loss,
            levels=self.levels,
            iterations=self.iterations,
            learning_rate=self.learning_rate,
            method=self.method,
        )


def _step(fields: dict[str, Tensor], key: str, fixed: Volume, *, inverse: bool) -> Step:
    """The map in the world, on the fixed image's grid: a matrix if it is one."""
    if "matrix" not in fields:
        return DisplacementField(fields[key][0].detach().cpu(), fixed.grid).fading()
    matrix = np.eye(len(fixed.affine))
    matrix[:-1] = fields["matrix"][0].detach().double().cpu().numpy()
    world = fixed.affine @ matrix @ np.linalg.inv(fixed.affine)
    return np.linalg.inv(world) if inverse else world
