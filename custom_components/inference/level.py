"""The objective of one level of an optimisation, as a closure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..deformations.base import Deformation, Fields
from ..deformations.shooting import ShootingError
from ..fields import resize_field, spatial_gradient, warp
from ..vocabulary import Result

Loss = Callable[[Fields, dict[str, Tensor]], Tensor]


class Evaluated(NamedTuple):
    """An unknown, and its mean loss, the loss's gradient by it, and the similarity term alone."""

    unknown: Tensor
    loss: Tensor
    gradient: Tensor
    similarity: Tensor


class Evaluation:
    """The objective of a level as an optimiser's closure: it returns the loss and leaves the gradient in the unknown.

    The loss is a mean; it is multiplied by the number of voxels, so that its gradient at a voxel does not depend on the
    image's size.

    Args:
        deformation: parameters to fields.
        objective: called as `objective(pred, batch)`.
        batch: of the level: "moving", "fixed" (B, C, *S), and what else the objective needs.
        parameters: where the search starts, (B, P, *S').
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
        """Those of the unknown as it is."""
        return self.deformation.from_unknown(self.unknown, self.size)

    @torch.no_grad()
    def found(self) -> Tensor:
        """The parameters after the last step, or the best ones that were kept."""
        if self.best is not None:
            self.unknown.copy_(self.best.unknown)
        return self.parameters()

    def value(self) -> float:
        """The mean loss, without a gradient."""
        with torch.no_grad():
            return float(self._mean()[0])

    @torch.no_grad()
    def value_at_rest(self) -> float:
        """The mean loss of the images as they are, of a deformation whose zero is the identity."""
        zero = self.batch["fixed"].new_zeros(len(self.unknown), len(self.size), *self.size, dtype=torch.float32)
        pred: Result = {"ddf": zero, "svf": torch.zeros_like(self.unknown), "warped": self.batch["moving"]}
        return float(self.objective(pred, self.batch))

    def _mean(self) -> tuple[Tensor, Result]:
        pred: Result = self.deformation(self.parameters(), self.size)
        pred["warped"] = warp(self.batch["moving"], pred["ddf"])
        return self.objective(pred, self.batch), pred

    def _differentiated(self) -> tuple[Tensor, Result]:
        """The mean loss and what was predicted; leaves the gradient of the loss, times the voxels, in the unknown."""
        mean, pred = self._mean()
        (mean * self.voxels).backward()
        return mean, pred

    def __call__(self) -> Tensor:
        self.unknown.grad = None
        mean, pred = self._differentiated()
        loss = mean * self.voxels
        assert self.unknown.grad is not None
        similarity = pred.get("terms", {}).get("similarity", mean).detach()
        return self.record(loss, self.unknown.grad, similarity)

    def record(self, loss: Tensor, gradient: Tensor, similarity: Tensor) -> Tensor:
        """Take note of what belongs to the unknown as it is; returns the loss.

        Args:
            loss: over all voxels, a scalar.
            gradient: of the unknown's shape, or what stands for it.
            similarity: the loss's term, a mean.
        """
        self.last = Evaluated(self.unknown.detach().clone(), loss.detach(), gradient.clone(), similarity)
        if self.keeps_best:
            self.best = self.last if self.best is None else _better(self.last, self.best)
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


def _better(new: Evaluated, old: Evaluated) -> Evaluated:
    """The one of the lower loss; a GPU chooses without the host waiting for it."""
    is_better = new.loss < old.loss
    if new.loss.device == torch.device("cpu"):
        return new if bool(is_better) else old
    return Evaluated(*[torch.where(is_better, one, other) for one, other in zip(new, old, strict=True)])


# A rule of its own for the steps of a level: from its objective and their number to a function that makes one step and
# returns the loss before it.
Steps = Callable[[Evaluation, int], Callable[[], Tensor]]


class DirectEvaluation(Evaluation):
    """As an `Evaluation` of a velocity or displacement, whose gradient leaves out the way from the field to the map.

    The gradient is that of a small motion before the map that is there: what the loss says of the warped image, times
    the slopes of the warped image. A velocity's own gradient, through integration and interpolation, differs from it by
    terms of the order of the velocity's slopes, and takes twice the time. Terms of the loss beside the images and their
    displacement do not count.

    References: the idea of a small motion that is composed with the map is that of Vercauteren et al., Diffeomorphic
        demons: efficient non-parametric image registration. That the velocity takes it up by addition is ours here.
    """

    def _differentiated(self) -> tuple[Tensor, Result]:
        with torch.no_grad():
            parameters = self.parameters()
            pred: Result = self.deformation(parameters, self.size)
            pred["warped"] = warp(self.batch["moving"], pred["ddf"])
        ddf, warped = pred["ddf"].requires_grad_(), pred["warped"].requires_grad_()
        mean = self.objective(pred, self.batch)
        grads = torch.autograd.grad(mean * self.voxels, (warped, ddf), allow_unused=True)
        with torch.no_grad():
            force = torch.zeros_like(ddf) if grads[1] is None else grads[1]
            if grads[0] is not None:
                force = force + (grads[0].unsqueeze(2) * spatial_gradient(warped)).sum(1)
        nodes = torch.zeros_like(parameters).requires_grad_()
        self.unknown.grad = torch.autograd.grad(resize_field(nodes, self.size), nodes, force)[0]
        return mean.detach(), pred
