"""Pairwise optimisation of a deformation's parameters: instance-specific refinement and training-free registration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..deformations.base import Deformation
from ..deformations.shooting import ShootingError
from ..fields import warp

logger = logging.getLogger(__name__)


Loss = Callable[[dict[str, Any], dict[str, Tensor]], Tensor]


_AT_THE_END = 10**9  # iterations after which no schedule changes any more


class PairwiseOptimizer:
    """Minimise a registration loss over the parameters of a deformation, for one pair (or a batch of pairs).

    Starts from zero, coarse to fine, or from given parameters (a network's output). Each sample of a batch is optimised
    on its own; the batch only shares the step size and the stopping rule, and with "lbfgs" the curvature. Called as
    `optimizer(moving, fixed, parameters=None)` it returns the optimised parameters, without gradient.

    Args:
        deformation: parameters to fields.
        loss: called as `loss(pred, batch)`, as in training. If it has a `schedule` (as the loss of RDMM has), its
            `epoch` is half of the iterations so far, over all levels; with given parameters the schedule is at its end.
        loss_across: the loss for pairs of different contrast (see `same_contrast`); None uses `loss` for all. Which one
            was taken is logged.
        levels: shrink factors of the images, coarse to fine.
        iterations: at each level; one number serves all levels. All zero: the start is returned as it came.
        learning_rate: Adam's step, about the voxels of the parameters' grid that a vector moves in an iteration.
        method: "adam" or "lbfgs".
        tolerance: a level ends when the loss falls by less than this share of itself over ten iterations.
        progress: show a progress bar.
    References: the starting point and the objective are the network's, as in Balakrishnan et al., IEEE TMI 38(8), 2019
        (instance-specific optimisation); the parameters are a velocity, not the displacement.
    """

    def __init__(
        self,
        deformation: Deformation,
        loss: Loss,
        *,
        loss_across: Loss | None = None,
        levels: Sequence[int] = (4, 2, 1),
        iterations: int | Sequence[int] = (30, 30, 20),
        learning_rate: float = 0.2,
        method: str = "adam",
        tolerance: float = 1e-4,
        progress: bool = False,
    ) -> None:
        iterations = [iterations] * len(levels) if isinstance(iterations, int) else list(iterations)
        if len(iterations) != len(levels):
            raise ValueError(f"expected iterations for {len(levels)} levels, got {len(iterations)}")
        if method not in ("adam", "lbfgs"):
            raise ValueError(f"expected method adam or lbfgs, got {method!r}")
        self.deformation, self.loss, self.loss_across = deformation, loss, loss_across
        self.levels, self.iterations = list(levels), iterations
        self.learning_rate, self.method, self.tolerance, self.progress = learning_rate, method, tolerance, progress

    @torch.enable_grad()
    def __call__(
        self,
        moving: Tensor,
        fixed: Tensor,
        parameters: Tensor | None = None,
        masks: dict[str, Tensor] | None = None,
        constants: Mapping[str, Tensor] | None = None,
        deformation: Deformation | None = None,
    ) -> Tensor:
        """Optimise.

        Args:
            moving, fixed: shape (B, C, *S), intensities in [0, 1].
            parameters: start, shape (B, D, *S'), any resolution; None for zero. Channels beyond the deformation's D, or
                those it says it has, (a log variance) are returned as they came; their grid must be the deformation's.
                Channels that are missing start at zero.
            masks: "mask_moving", "mask_fixed", shape (B, 1, *S).
            constants: what else the loss needs of the batch and has no resolution ("hyper").
            deformation: in place of the optimiser's own, for one that depends on the pair.
        Returns:
            Parameters at the deformation's resolution for images of size S.
        Raises:
            RuntimeError: if the loss stops being finite.
            ValueError: if there are further channels on another grid.
        """
        if parameters is not None and not any(self.iterations):
            return parameters
        batch = {"moving": moving.detach(), "fixed": fixed.detach(), **(masks or {})}
        whole = self.deformation if deformation is None else deformation
        channels = whole.parameter_channels(fixed.ndim - 2)
        field = None if parameters is None else parameters[:, :channels]
        if parameters is not None and parameters.shape[1] > channels:
            wanted = whole.parameter_size(fixed.shape[2:])
            if list(parameters.shape[2:]) != list(wanted):
                raise ValueError(
                    f"expected parameters of size {tuple(wanted)} with further channels, "
                    f"got shape {tuple(parameters.shape)}"
                )
        loss = self._choose(batch, field, whole)
        with tqdm(total=sum(self.iterations), desc="optimizing", disable=not self.progress, leave=False) as bar:
            for i, factor in enumerate(self.levels):
                level = {key: shrink(image, factor) for key, image in batch.items()} | dict(constants or {})
                field = _start(field, level["fixed"], whole)
                coarse = whole.on_grid(fixed.shape[2:], level["fixed"].shape[2:])
                done = sum(self.iterations[:i]) if parameters is None else _AT_THE_END
                field = self._optimize_level(field, coarse, level, loss, self.iterations[i], done, bar)
                bar.set_postfix_str(f"level 1/{factor} done")
        assert field is not None
        field = _start(field, fixed, whole)
        if parameters is None or parameters.shape[1] == channels:
            return field
        return torch.cat([field, parameters[:, channels:].detach()], 1)

    @torch.no_grad()
    def _choose(self, batch: dict[str, Tensor], parameters: Tensor | None, deformation: Deformation) -> Loss:
        if self.loss_across is None:
            return self.loss
        warped = batch["moving"]
        if parameters is not None:
            warped = warp(warped, deformation(parameters, warped.shape[2:])["ddf"])
        same = same_contrast(warped, batch["fixed"], batch.get("mask_fixed"))
        loss = self.loss if same else self.loss_across
        name = type(getattr(loss, "similarity", loss)).__name__
        logger.info("refining with %s: the images are of %s contrast", name, "the same" if same else "different")
        return loss

    def _optimize_level(
        self,
        field: Tensor,
        deformation: Deformation,
        batch: dict[str, Tensor],
        objective: Any,
        iterations: int,
        done: int,
        bar: tqdm,
    ) -> Tensor:
        size = batch["fixed"].shape[2:]
        field = deformation.to_unknown(field, size).detach().clone().requires_grad_()
        # The loss is a mean; times the number of voxels, its gradient at a voxel does not depend on the image's size.
        voxels = batch["fixed"][:, 0].numel()

        known: list[Tensor] = []  # where the last evaluation was, its loss and gradient

        def closure() -> Tensor:
            # A step of L-BFGS begins where the line search of the one before has just been.
            if known and torch.equal(known[0], field.detach()):
                field.grad = known[2].clone()
                return known[1]
            optimizer.zero_grad()
            try:
                pred = deformation(deformation.from_unknown(field, size), size)
            except ShootingError:
                if not known or self.method == "adam":
                    raise
                # A trial of the line search went too far: a slope that leads back makes it try nearer.
                field.grad = -known[2]
                return known[1] + 10 * known[1].abs()
            pred["warped"] = warp(batch["moving"], pred["ddf"])
            loss = objective(pred, batch) * voxels
            loss.backward()
            assert field.grad is not None
            known[:] = field.detach().clone(), loss.detach(), field.grad.clone()
            return loss.detach()

        optimizer: torch.optim.Optimizer
        if self.method == "adam":
            optimizer = torch.optim.Adam([field], lr=self.learning_rate, eps=1e-3)
        else:
            optimizer = torch.optim.LBFGS([field], lr=1.0, max_iter=1, max_eval=5, line_search_fn="strong_wolfe")
        history: list[float] = []
        for iteration in range(iterations):
            if getattr(objective, "schedule", None) is not None:
                before, objective.epoch = objective.schedule, (done + iteration) // 2
                if objective.schedule != before:  # values of another objective tell nothing about this one
                    known.clear()
                    history.clear()
            history.append(float(optimizer.step(closure)) / voxels)
            bar.update()
            if history[-1] != history[-1] or abs(history[-1]) == float("inf"):
                raise RuntimeError(f"the registration loss became {history[-1]} in iteration {iteration + 1}")
            if len(history) > 10 and history[-11] - history[-1] < self.tolerance * abs(history[-11]):
                bar.update(iterations - iteration - 1)
                break
        return deformation.from_unknown(field, size).detach()


def _start(field: Tensor | None, image: Tensor, deformation: Deformation) -> Tensor:
    size, channels = deformation.parameter_size(image.shape[2:]), deformation.parameter_channels(image.ndim - 2)
    if field is None:
        return image.new_zeros(image.shape[0], channels, *size, dtype=torch.float32)
    field = deformation.resize(field.detach(), size)
    missing = channels - field.shape[1]
    return torch.cat([field, field.new_zeros(len(field), missing, *size)], 1) if missing > 0 else field


def same_contrast(warped: Tensor, fixed: Tensor, mask: Tensor | None = None, *, threshold: float = 0.3) -> bool:
    """Whether two roughly aligned images show the same contrast: their correlation inside the object.

    The object is where both images (smoothed) exceed a tenth of their range, so that a dark background, which all
    contrasts share, does not count.

    Args:
        warped, fixed: shape (B, C, *S), in [0, 1]; all samples of a batch must pass.
        mask: where to look, (B, 1, *S).
        threshold: of the correlation.
    """
    smooth = [shrink(image, 2) for image in (warped, fixed)]
    inside = (smooth[0].amin(1, keepdim=True) > 0.1) & (smooth[1].amin(1, keepdim=True) > 0.1)
    if mask is not None:
        inside = inside & (shrink(mask.float(), 2) > 0.5)
    for i in range(fixed.shape[0]):
        a, b = (image[i].mean(0)[inside[i, 0]] for image in smooth)
        if len(a) < 2 or not float(torch.corrcoef(torch.stack([a, b]))[0, 1]) > threshold:
            return False
    return True


def shrink(image: Tensor, factor: int) -> Tensor:
    """Smooth and subsample an image by a whole factor, corners staying aligned.

    Args:
        image: shape (B, C, *S).
        factor: 1 returns the image itself.
    Returns:
        Shape (B, C, *ceil(S / factor)).
    """
    if factor == 1:
        return image
    dims = image.ndim - 2
    pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
    width = factor + 1 - factor % 2
    smooth = image.float()
    for axis in range(dims):
        kernel, padding = [1] * dims, [0] * dims
        kernel[axis], padding[axis] = width, width // 2
        smooth = pool(smooth, kernel, 1, padding, count_include_pad=False)
    size = [-(-n // factor) for n in image.shape[2:]]
    return F.interpolate(smooth, size=size, mode="bilinear" if dims == 2 else "trilinear", align_corners=True)
