"""Build a template without a network: register all scans to their mean, average, centre, repeat."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...deformations.base import Deformation
from ...fields import warp


@torch.no_grad()
def average_scans(
    scans: Tensor,
    optimizer: Callable[..., Tensor],
    deformation: Deformation,
    *,
    later: Callable[..., Tensor] | None = None,
    rounds: int = 4,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """The iterative average of scans of one space, in the middle of them.

    In each round every scan is registered to the current template, phi_i = exp(v_i) from the template's grid to the
    scan's. The template moves to the mean place of its points by the inverse of the mean deformation: to first order
    exp(v_i) o exp(-mean v) = exp(v_i - mean v), through which the scans are averaged. Each round starts from these
    velocities.

    Args:
        scans: shape (N, C, *S), intensities in [0, 1].
        optimizer: `PairwiseOptimizer`, called as `optimizer(moving, fixed, parameters)`.
        deformation: its deformation, by a velocity.
        later: the optimiser of all rounds but the first, None for the same one. One that starts at full resolution
            keeps the fine part of what the last round found.
        rounds: at least 1.
        progress: show a progress bar.
    Returns:
        The template (1, C, *S), the mean of the scans each interpolated once, and the velocities (N, D, *S') from it to
        them, whose mean is 0.
    Raises:
        ValueError: for less than 2 scans or 1 round.
    """
    if len(scans) < 2 or rounds < 1:
        raise ValueError(f"expected at least 2 scans and 1 round, got {len(scans)} and {rounds}")
    template = scans.mean(0, keepdim=True)
    velocities: list[Tensor | None] = [None] * len(scans)
    with tqdm(total=rounds * len(scans), desc="averaging", disable=not progress) as bar:
        for step in range(rounds):
            register = later if later is not None and step else optimizer
            for i in range(len(scans)):
                velocities[i] = register(scans[i : i + 1], template, velocities[i])
                bar.update()
            together = torch.cat([v for v in velocities if v is not None])
            together = together - together.mean(0, keepdim=True)
            centred = together.split(1)
            velocities = list(centred)
            warped = [warp(s[None], deformation(v, s.shape[1:])["ddf"]) for s, v in zip(scans, centred, strict=True)]
            template = torch.cat(warped).mean(0, keepdim=True)
    return template, together
