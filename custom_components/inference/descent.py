"""Descent by smooth steps: the rule by which `PairwiseOptimizer` searches velocities and displacements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from ..deformations.base import Deformation, Fields
from ..fields import per_channel
from ..losses.guidance import Guided
from .level import Evaluation, Loss

_UNIT_SHARE = 0.5  # of each axis, about the middle, where a level finds the strength of its forces
_LEAST = 24  # voxels of an axis that it does not cut


class Diffused(nn.Module):
    """A loss whose regularisation is no term of it: after each full step the field diffuses.

    A Gaussian of the given variance smooths the searched field. Smoothing a field is a step down its squared gradient,
    without the small steps that this penalty as a term of the loss forces upon an optimiser.

    Args:
        loss: compares the images, called as `loss(pred, batch)`.
        variance: of the Gaussian, squared voxels of the image; 0 lets the field be.
    Raises:
        ValueError: for a variance that is negative or no number.
    """

    def __init__(self, loss: nn.Module, variance: float) -> None:
        super().__init__()
        if not 0 <= variance < math.inf:
            raise ValueError(f"expected a variance of at least 0, got {variance}")
        self.loss, self.variance = loss, float(variance)

    @property
    def images_alone(self) -> Loss:
        """The loss without the terms of landmarks and guides."""
        return self.loss.loss if isinstance(self.loss, Guided) else self.loss

    @property
    def similarity(self) -> object:
        """What compares the images."""
        return getattr(self.images_alone, "similarity", self.images_alone)

    def forward(self, pred: Fields, batch: dict[str, Tensor]) -> Tensor:
        return self.loss(pred, batch)


@dataclass(frozen=True)
class StepRule:
    """How far `SmoothDescent` goes.

    Args:
        step: voxels that a vector moves in the first iteration where the force is as strong as that of a misalignment
            by one voxel.
        most: voxels that no vector exceeds.
        smoothing: standard deviation of the Gaussian that smooths a step, voxels of the image.
    """

    step: float = 1.5
    most: float = 1.0
    smoothing: float = 1.2


class SmoothDescent:
    """Search a vector field by steps that are smooth themselves.

    A step follows the loss's gradient, smoothed by a Gaussian; then the field diffuses (`Diffused`). Both shrink from
    step to step, in proportion, down to nothing at the last one. The unit of the gradient is the one that it has where
    the fixed image, moved by a voxel, is registered to itself. Therefore a step is large where the images disagree,
    small where they agree, and nothing where there is nothing to gain, whatever the similarity measures. Adam, which
    goes as far where noise pulls as where an edge does, makes rough fields.

    Args:
        evaluation: the level's objective and its unknown, a field (B, D, *S') for images of size S.
        unit: strength of the gradient that stands for one voxel, see `force_of_a_voxel`, (B, 1, ...).
        iterations: how many steps are to come.
        variance: of the diffusion in a full step, squared voxels of the image.
        rule: how far to go.
    References: the demons (Vercauteren et al., MICCAI 2007) and ANTs' SyN (Avants et al., Medical Image Analysis 12(1),
        2008) smooth the update and the field, too. The gradient here is that of the objective through the deformation,
        and the unit of the force is ours.
    """

    def __init__(
        self, evaluation: Evaluation, unit: Tensor, iterations: int, variance: float, rule: StepRule | None = None
    ) -> None:
        self.unknown, self.unit, self.rule = evaluation.unknown, unit, StepRule() if rule is None else rule
        self.iterations, self.done, self.variance = iterations, 0, variance
        self.voxels = voxels_per_node(evaluation.size, self.unknown.shape[2:])

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One iteration; returns the loss before it."""
        with torch.enable_grad():
            loss = closure()
        share = 1 - self.done / self.iterations
        assert self.unknown.grad is not None
        scale = per_channel(self.voxels, self.unknown)
        # To voxels of the image and back: a force is a gradient over a length, a step is a length.
        force = smooth_force(self.unknown.grad, self.voxels, self.rule.smoothing)
        if not self.done:
            # Flat images have no unit; what pulls at them, landmarks, is then measured by its own strength.
            self.unit = torch.where(self.unit > 0, self.unit, strength(force))
        move = force * torch.where(self.unit > 0, -share * self.rule.step / self.unit, 0.0)
        length = move.square().sum(1, keepdim=True)
        move = move / (1 + length / self.rule.most**2).sqrt() / scale
        self.unknown.copy_(diffused(self.unknown + move, self._deviations(math.sqrt(share * self.variance))))
        self.done += 1
        return loss

    def _deviations(self, deviation: float) -> list[float]:
        return [deviation / n for n in self.voxels]


def smooth_force(gradient: Tensor, voxels: Sequence[float], deviation: float) -> Tensor:
    """The gradient of the loss by a field (B, D, *S') in its own voxels, as one in voxels of the image, smoothed."""
    return diffused(gradient / per_channel(voxels, gradient), [deviation / n for n in voxels])


def strength(force: Tensor) -> Tensor:
    """A typical length of the vectors (B, D, *S) where there are any, (B, 1, ...): the mean square of their lengths,
    weighted by that square, so that an empty background does not count."""
    square = force.square().sum(1, keepdim=True)
    axes = tuple(range(1, force.ndim))
    total = square.sum(axes, keepdim=True)
    return (square.square().sum(axes, keepdim=True) / total.clamp(min=torch.finfo(force.dtype).tiny)).sqrt()


def force_of_a_voxel(
    deformation: Deformation, objective: Loss, batch: Mapping[str, Tensor], smoothing: float
) -> Tensor:
    """How strongly the objective pulls at the fixed images when they lie one voxel off themselves, (B, 1, ...).

    Args:
        deformation: whose parameters are one vector field.
        batch: of the level: "fixed" (B, C, *S) and what else the objective needs. The middle of the images stands for
            all of them, unless it is empty.
        smoothing: of the step rule.
    """
    force = _force_of_a_voxel(deformation, objective, _with_itself(batch, middle=True), smoothing)
    if bool((force > 0).all()):
        return force
    return _force_of_a_voxel(deformation, objective, _with_itself(batch), smoothing)


def _force_of_a_voxel(deformation: Deformation, objective: Loss, batch: dict[str, Tensor], smoothing: float) -> Tensor:
    evaluation = Evaluation(deformation, objective, batch, _shift(deformation, batch["fixed"]))
    with torch.enable_grad():
        evaluation()
    assert evaluation.unknown.grad is not None
    voxels = voxels_per_node(evaluation.size, evaluation.unknown.shape[2:])
    return strength(smooth_force(evaluation.unknown.grad, voxels, smoothing))


def loss_of_a_voxel(deformation: Deformation, objective: Loss, batch: Mapping[str, Tensor]) -> float:
    """How much the objective rises where the fixed images lie one voxel off themselves; arguments as above."""
    inner = _with_itself(batch, middle=True)
    shift = _shift(deformation, inner["fixed"])
    values = [Evaluation(deformation, objective, inner, start).value() for start in (shift, torch.zeros_like(shift))]
    return values[0] - values[1]


def _with_itself(batch: Mapping[str, Tensor], *, middle: bool = False) -> dict[str, Tensor]:
    """The batch with the fixed image as the moving one, and without landmarks, which would not go along."""
    size = batch["fixed"].shape[2:]
    kept = {key: value for key, value in batch.items() if "landmark" not in key}
    fixed = {key.replace("fixed", "moving"): value for key, value in kept.items() if key.endswith("fixed")}
    kept = {**kept, **fixed}
    return {key: _middle(value, size) for key, value in kept.items()} if middle else kept


def _shift(deformation: Deformation, image: Tensor) -> Tensor:
    """The parameters that move everything by one voxel of an image, along the diagonal."""
    size, d = image.shape[2:], image.ndim - 2
    nodes = deformation.parameter_size(size)
    lengths = [n * math.sqrt(d) for n in voxels_per_node(size, nodes)]
    return image.new_ones(len(image), d, *nodes) / per_channel(lengths, image)


def _middle(values: Tensor, size: Sequence[int]) -> Tensor:
    """The middle of an image's axes; what has another shape stays as it is."""
    if values.shape[2:] != torch.Size(size):
        return values
    for axis, n in enumerate(size, start=2):
        width = max(min(n, _LEAST), round(n * _UNIT_SHARE))
        values = values.narrow(axis, (n - width) // 2, width)
    return values


def voxels_per_node(size: Sequence[int], nodes: Sequence[int]) -> list[float]:
    """Voxels of an image between two nodes of a field over the same extent, for each axis."""
    return [(n - 1) / (m - 1) if n > 1 and m > 1 else 1.0 for n, m in zip(size, nodes, strict=True)]


def diffused(field: Tensor, deviations: Sequence[float]) -> Tensor:
    """A field (B, C, *S) after diffusion through closed borders: its mean and a constant stay as they are.

    Args:
        deviations: of the Gaussian, for each axis, in voxels of the field; any, also far below a voxel.
    """
    for axis, deviation in enumerate(deviations, start=2):
        if deviation > 0 and field.shape[axis] > 1:
            matrix = _diffusion(field.shape[axis], deviation, field.dtype, field.device)
            if axis == field.ndim - 1:
                field = field @ matrix
            else:
                flat = field.flatten(axis + 1).movedim(axis, -2)
                field = (matrix @ flat).movedim(-2, axis).reshape(field.shape)
    return field


@lru_cache(maxsize=64)  # the smoothing of a step is the same in each
def _diffusion(n: int, deviation: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """exp(deviation^2 / 2 Laplacian) along an axis of n voxels whose ends are closed, a symmetric matrix (n, n)."""
    with torch.inference_mode(False):
        waves, speeds = _waves(n, device)
        decay = torch.exp(-(deviation**2) * speeds)
        return (waves.T @ (decay[:, None] * waves)).to(dtype).to(device)


@lru_cache(maxsize=64)
def _waves(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The cosines that closed ends allow, a row each, and how fast they decay."""
    # A matrix that is copied to a GPU makes the host wait for it, once an axis and step.
    index = torch.arange(n, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    waves = torch.cos(math.pi / n * index[:, None] * (index[None] + 0.5)) * math.sqrt(2 / n)
    waves[0] /= math.sqrt(2)
    return waves, 1 - torch.cos(math.pi / n * index)
