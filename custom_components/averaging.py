"""Build a template without a network: register all scans to their mean, average, centre, repeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .fields import warp


@torch.no_grad()
def average_scans(
    scans: Tensor,
    optimizer: Callable[..., Tensor],
    deformation: Any,
    *,
    rounds: int = 4,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """The iterative average of scans of one space: mean of the scans warped to it, warped to the middle of them.

    In each round every scan is registered to the current template, phi_i = exp(v_i) from the template's grid to the
    scan's; the mean of the warped scans is moved to the mean place of its points, by the inverse of the mean
    deformation, exp(-mean v_i). Each round starts from the last one's velocities.

    Args:
        scans: shape (N, C, *S), intensities in [0, 1].
        optimizer: `PairwiseOptimizer`, called as `optimizer(moving, fixed, parameters)`.
        deformation: its deformation, by a velocity.
        rounds: at least 1.
        progress: show a progress bar.
    Returns:
        The template (1, C, *S) and the velocities (N, D, *S') of its registrations to the scans, in its own last round
        (before the last move to the middle, which is taken off them).
    Raises:
        ValueError: for less than 2 scans or 1 round.
    """
    if len(scans) < 2 or rounds < 1:
        raise ValueError(f"expected at least 2 scans and 1 round, got {len(scans)} and {rounds}")
    template = scans.mean(0, keepdim=True)
    velocities: list[Tensor | None] = [None] * len(scans)
    with tqdm(total=rounds * len(scans), desc="averaging", disable=not progress) as bar:
        for _ in range(rounds):
            total = torch.zeros_like(template)
            for i in range(len(scans)):
                scan = scans[i : i + 1]
                velocities[i] = optimizer(scan, template, velocities[i])
                total += warp(scan, deformation(velocities[i], scan.shape[2:])["ddf"])
                bar.update()
            together = torch.cat([v for v in velocities if v is not None])
            middle = together.mean(0, keepdim=True)
            template = warp(total / len(scans), deformation(-middle, scans.shape[2:])["ddf"])
            velocities = list((together - middle).split(1))
    return template, together - middle
