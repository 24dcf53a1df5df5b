"""The objective of one level of an optimisation, as a closure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..deformations.base import Deformation, Fields
from ..deformations.shooting import ShootingError
from ..fields import warp
from ..vocabulary import Result

Loss = Callable[[Fields, dict[str, Tensor]], Tensor]


class Evaluated(NamedTuple):
    unknown: Tensor
    loss: Tensor
    gradient: Tensor
    similarity: Tensor


class Evaluation:
    """The objective of a level as an optimiser's closure: it returns the loss and leaves the gradient in the unknown.

    The loss is a mean; it is multiplied by the number of voxels, so that its gradient at a voxel does not depend on the
    image's size.

    Args:
        keeps_best: keep the unknown of the lowest loss, for `found`.
    """

    def __init__(
        self,
        deformation: Deformation,
        objective: Loss,
        batch: dict[str, Tensor],
        parameters: Tensor,
        *,
        keeps_best: bool = False,
    ) -> None:
        self.deformation, self.objective, self.batch, self.keeps_best = deformation, objective, batch, keeps_best
        self.size, self.voxels = batch["fixed"].shape[2:], batch["fixed"][:, 0].numel()
        self.unknown = deformation.to_unknown(parameters, self.size).detach().clone().requires_grad_()
        self.last: Evaluated | None = None
        self.best: Evaluated | None = None

    def parameters(self) -> Tensor:
        return self.deformation.from_unknown(self.unknown, self.size)

    @torch.no_grad()
    def found(self) -> Tensor:
        """The parameters after the last step, or the best ones that were kept."""
        if self.best is not None:
            self.unknown.copy_(self.best.unknown)
        return self.parameters()

    def similarity(self) -> float:
        """The term of the last evaluation that compares the images; the whole loss if it does not tell its terms."""
        assert self.last is not None
        return float(self.last.similarity)

    def value(self) -> float:
        """The mean loss, without a gradient."""
        with torch.no_grad():
            return float(self._mean()[0])

    def _mean(self) -> tuple[Tensor, Result]:
        pred: Result = self.deformation(self.parameters(), self.size)
        pred["warped"] = warp(self.batch["moving"], pred["ddf"])
        return self.objective(pred, self.batch), pred

    def __call__(self) -> Tensor:
        self.unknown.grad = None
        mean, pred = self._mean()
        loss = mean * self.voxels
        loss.backward()
        assert self.unknown.grad is not None
        similarity = pred.get("terms", {}).get("similarity", mean).detach()
        self.last = Evaluated(self.unknown.detach().clone(), loss.detach(), self.unknown.grad.clone(), similarity)
        if self.keeps_best and (self.best is None or bool(self.last.loss < self.best.loss)):
            self.best = self.last
        return loss.detach()

    def tried(self) -> Tensor:
        """As a call, for a line search."""
        last = self.last
        if last is not None and torch.equal(last.unknown, self.unknown.detach()):
            # A step of L-BFGS begins where the line search of the one before has just been.
            self.unknown.grad = last.gradient.clone()
            return last.loss
        try:
            return self()
        except ShootingError:
            if last is None:
                raise
            # A trial went too far: a slope that leads back makes the search try nearer.
            self.unknown.grad = -last.gradient
            return last.loss + 10 * last.loss.abs()
