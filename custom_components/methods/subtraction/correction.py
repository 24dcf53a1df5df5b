"""Find the motion of each frame and subtract the mask that is moved with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...checks import check_number
from ...deformations.bspline import BSplineDeformation
from ...fields import warp
from ...inference.refinement import PairwiseOptimizer
from ...repeatable import median
from .network import estimated_motion
from .objective import SubtractionLoss

ITERATIONS = (40, 40, 30, 20, 20)  # of the stages of a search from no motion
WORKING = 256  # pixels of the longer side on which motion is sought, about


@dataclass(frozen=True)
class Correction:
    """A series before and after.

    Attributes:
        ddf: (T, 2, H, W), pixels, from frames to the mask.
        before, after: mask - frame, (T, 1, H, W), without and with the motion: attenuation of the contrast agent.
        mask: the mask frame, (1, 1, H, W).
        mask_frames: positions of the frames of which it is the mean.
    """

    ddf: Tensor
    before: Tensor
    after: Tensor
    mask: Tensor
    mask_frames: tuple[int, ...] = ()

    @property
    def others(self) -> list[int]:
        """The frames that are no part of the mask, or all if there are no others."""
        found = [k for k in range(len(self.ddf)) if k not in self.mask_frames]
        return found or list(range(len(self.ddf)))


def correct(
    series: Tensor,
    mask_frames: Sequence[int] = (0, 1, 2),
    *,
    spacing: float = 16.0,
    loss: SubtractionLoss | None = None,
    iterations: Sequence[int] = ITERATIONS,
    network: nn.Module | None = None,
    progress: bool = False,
) -> Correction:
    """Move the mask to each frame by cubic B-splines, coarse to fine, all frames together, and subtract.

    With a network the search starts from its motion, so that its last stage is enough, or none at all.

    The mask is the mean of several frames, which are first moved to the first of them. Motion is sought at about 256
    pixels and the mask is interpolated once, at the series' own resolution.

    Args:
        series: logarithms of intensities, (T, 1, H, W).
        mask_frames: positions of frames without contrast agent.
        spacing: distance between control points on the finest level, in pixels of an image of 256.
        loss: the objective.
        iterations: of the stages: squares at 1/8 and 1/4 of the working resolution, since they pull from afar; Huber's
            function at 1/2 and 1; and the loss. Fewer numbers are those of the last stages.
        network: see `network.estimated_motion`; None starts from no motion.
        progress: show a progress bar.
    Raises:
        ValueError: if the series is none, a mask frame is not in it, or there is neither a network nor a stage.
    """
    check_series(series, mask_frames)
    check_number("spacing", spacing, least=4)
    coarser = max(1, round(max(series.shape[2:]) / WORKING))
    deformation = BSplineDeformation(spacing * coarser)
    loss = SubtractionLoss() if loss is None else loss
    rough, middle = (SubtractionLoss(loss.smoothness, loss.temporal, kind) for kind in ("squares", "edges"))
    stages = [(rough, 8), (rough, 4), (middle, 2), (middle, 1), (loss, 1)]
    if len(iterations) > len(stages) or not (iterations or network):
        raise ValueError(f"expected iterations of 1 to {len(stages)} stages, or a network, got {list(iterations)}")
    stages = stages[len(stages) - len(iterations) :]

    def motion(moving: Tensor, fixed: Tensor) -> Tensor:
        found: Tensor | None = None
        if network is not None:
            estimate = estimated_motion(network, moving, fixed, coarser)
            if not iterations:
                return estimate
            found = deformation.fit(estimate)
        for (objective, factor), count in zip(stages, iterations, strict=True):
            search = PairwiseOptimizer(
                deformation, objective, levels=factor * coarser, iterations=count, method="lbfgs", progress=progress
            )
            found = search(moving, fixed, found)
        with torch.no_grad():
            return deformation(torch.as_tensor(found), fixed.shape[2:])["ddf"]

    first, *others = [series[k : k + 1] for k in mask_frames]
    if others:
        moving = torch.cat(others)
        moved = warp(moving, motion(moving, first.expand_as(moving)), padding="border")
        first = torch.cat([first, moved]).mean(0, keepdim=True)
    mask = first.expand_as(series)
    return subtracted(series, first, motion(mask, series), mask_frames)


def subtracted(series: Tensor, mask: Tensor, ddf: Tensor, mask_frames: Sequence[int] = ()) -> Correction:
    """The series before and after, of a mask (1, 1, H, W), the mean of some frames, and fields (T, 2, H, W)."""
    moved = warp(mask.expand_as(series), ddf, padding="border")
    before, after = (without_offset(one - series) for one in (mask, moved))
    return Correction(ddf, before, after, mask, tuple(mask_frames))


def without_offset(difference: Tensor) -> Tensor:
    """Differences (T, 1, H, W) less the median of each frame: exposures differ a little."""
    return difference - median(difference.flatten(1), 1).view(-1, 1, 1, 1)


def check_series(series: Tensor, mask_frames: Sequence[int]) -> None:
    """Raises ValueError: unless there are two or more frames, 2-D and of one channel, and the mask's among them."""
    if series.ndim != 4 or series.shape[1] != 1 or len(series) < 2 or min(series.shape[2:]) < 16:
        raise ValueError(f"expected a series (T, 1, H, W) of at least 2 frames of 16 pixels, got {tuple(series.shape)}")
    if not mask_frames or not all(0 <= k < len(series) for k in mask_frames):
        raise ValueError(f"expected mask frames from 0 to {len(series) - 1}, got {list(mask_frames)}")
