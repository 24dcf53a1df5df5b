"""Time-dependent LDDMM by relaxation: velocities at all times descend along the gradient that the adjoint gives.

The image moves, J_t = moving o phi_{t,0}. What the loss says of it at time 1, q = dloss / dJ_1, is carried back by the
adjoint equation d lambda / dt + div(lambda v) = 0, whose solution is lambda_t = |D phi_{t,1}| q o phi_{t,1}. The
gradient by v_t in the metric's space is 2 c v_t - K (lambda_t grad J_t), with c the weight of the energy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..deformations.time_velocity import Look, TimeVelocity, at_border, maps_to_end, maps_to_start
from ..fields import jacobian_determinant, per_channel, resize_field, spatial_gradient, warp
from ..vocabulary import Result
from .level import Evaluation

_TRIALS = 8  # halvings in one step


@dataclass(frozen=True)
class Relaxation:
    """The steps of relaxation, for a `PairwiseOptimizer` of a `TimeVelocity`: gradient descent with backtracking.

    The gradient is divided by 2 c, so that a step of 1 would replace the velocity by the one that balances the present
    forces. A step that raises the loss is halved until it does not; the next one is a little longer.

    Args:
        step: the first one; None: so long that no point moves further than half a voxel.
        growth: of the step, after each that lowers the loss.
        look: how images are interpolated.
    References: Beg et al., IJCV 61(2), 2005; any loss of the warped image and the displacement in place of the squared
        difference, and backtracking in place of a fixed step.
    """

    step: float | None = None
    growth: float = 1.1
    look: Look = warp

    def __call__(self, evaluation: Evaluation, iterations: int) -> Callable[[], Tensor]:
        return _Descent(evaluation, self)


class _Descent:
    """One level's descent, called for each step; it returns the loss before the step."""

    def __init__(self, evaluation: Evaluation, rule: Relaxation) -> None:
        if not isinstance(evaluation.deformation, TimeVelocity):
            raise ValueError(f"relaxation searches a TimeVelocity, got {type(evaluation.deformation).__name__}")
        self.evaluation, self.rule, self.step = evaluation, rule, rule.step
        self.deformation: TimeVelocity = evaluation.deformation
        self.known: tuple[Tensor, Tensor, list[Tensor]] | None = None

    @torch.no_grad()
    def __call__(self) -> Tensor:
        unknown, evaluation = self.evaluation.unknown, self.evaluation
        mean, similarity, maps = self._value(unknown.detach()) if self.known is None else self.known
        direction = self._direction(unknown.detach(), maps)
        loss = evaluation.record(mean * evaluation.voxels, direction, similarity)
        fastest = float(direction.abs().max())
        if self.step is None:
            self.step = 0.5 / max(fastest, 1e-12)
        start = unknown.detach().clone()
        for _ in range(_TRIALS):
            trial = start - self.step * direction
            self.known = self._value(trial)
            if self.known[0] <= mean:
                unknown.copy_(trial)
                self.step *= self.rule.growth
                return loss
            self.step /= 2
        self.known = (mean, similarity, maps)
        return loss

    def _fields(self, velocities: Sequence[Tensor]) -> tuple[Result, list[Tensor]]:
        """What the objective takes, and the maps phi_{t,0} on the velocities' grid."""
        maps = maps_to_start(velocities, self.deformation.look)
        ddf = resize_field(maps[-1], self.evaluation.size)
        warped = self.rule.look(self.evaluation.batch["moving"], ddf)
        return {"ddf": ddf, "warped": warped, "energy": self.deformation.energy(velocities, self.evaluation.size)}, maps

    def _value(self, parameters: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The mean loss, its similarity term, and the maps phi_{t,0}."""
        pred, maps = self._fields(self.deformation.velocities(parameters))
        mean = self.evaluation.objective(pred, self.evaluation.batch)
        return mean, pred.get("terms", {}).get("similarity", mean), maps

    def _direction(self, parameters: Tensor, maps: list[Tensor]) -> Tensor:
        """The gradient in the metric's space over 2 c, as the parameters."""
        velocities, size = self.deformation.velocities(parameters), self.evaluation.size
        image, field, weight = self._pull(velocities)
        back = maps_to_end(velocities, self.deformation.look)
        nodes = velocities[0].shape[2:]
        spacing = self.deformation.parameter_spacing(velocities[0], size)
        unit = per_channel(spacing, velocities[0])
        moments = [
            body_force(self.evaluation.batch["moving"], image, field, *both, look=self.rule.look)
            for both in zip(maps, back, strict=True)
        ]
        steps = []
        for velocity, before, after in zip(velocities, moments[:-1], moments[1:], strict=True):
            force = _on_nodes((before + after) / 2, nodes)
            balance = self.deformation.kernel(force / unit, spacing) / unit * (nodes.numel() / 2)
            steps.append(velocity - balance / weight.view(-1, *[1] * (velocity.ndim - 1)))
        return torch.cat(steps, 1)

    def _pull(self, velocities: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives of the mean loss by the warped image, by the displacement beside that, and by the energy."""
        pred, _ = self._fields(velocities)
        leaves = [pred[key].detach().requires_grad_() for key in ("warped", "ddf", "energy")]
        with torch.enable_grad():
            mean = self.evaluation.objective(
                dict(zip(("warped", "ddf", "energy"), leaves, strict=True)), self.evaluation.batch
            )
            found = torch.autograd.grad(mean, leaves, allow_unused=True)
        image, field, weight = (torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True))
        if not bool((weight > 0).all()):
            raise ValueError("relaxation needs a loss with the energy, of a weight above 0")
        return image, field, weight


def body_force(
    moving: Tensor, image: Tensor, field: Tensor, to_start: Tensor, to_end: Tensor, *, look: Look = warp
) -> Tensor:
    """lambda_t grad J_t, (B, D, *S): minus the derivative of a loss by the velocity at a time, voxel by voxel.

    Args:
        moving: image (B, C, *S).
        image: derivative of the loss by the warped image, (B, C, *S).
        field: its derivative by the displacement phi_{1,0} - id beside that, (B, D, *S).
        to_start, to_end: displacements of phi_{t,0} and phi_{t,1}, (B, D, *S'), voxels of their grid.
        look: how images are interpolated.
    """
    size = moving.shape[2:]
    start, end = resize_field(to_start, size), resize_field(to_end, size)
    slopes = [spatial_gradient(look(moving, start)), spatial_gradient(start)]
    slopes[1] = slopes[1] + torch.eye(len(size), dtype=start.dtype, device=start.device).view(
        1, len(size), len(size), *[1] * len(size)
    )
    carried = (look(image, end), at_border(field, end))
    force = sum((q.unsqueeze(2) * slope).sum(1) for q, slope in zip(carried, slopes, strict=True))
    return jacobian_determinant(end) * force


@torch.enable_grad()
def _on_nodes(force: Tensor, nodes: Sequence[int]) -> Tensor:
    """A derivative by a displacement of the image grid as one by a displacement of a coarser grid."""
    coarse = force.new_zeros(*force.shape[:2], *nodes).requires_grad_()
    found: Tensor = torch.autograd.grad(resize_field(coarse, force.shape[2:]), coarse, force)[0]
    return found
