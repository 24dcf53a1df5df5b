"""Registrations whose error is known at each voxel, made of one label map each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Generator, Tensor

from ...checks import check_number
from ...fields import compose, identity_grid, warp
from ...synthesis.contrast import ContrastDraw, RandomContrast
from ...synthesis.noise import Draw, uniform
from ...synthesis.places import render_at
from ...synthesis.warp import RandomWarp
from .residuals import NetworkAnswer, RandomResiduals

UNIT_MM = 10.0  # of the displacement that the network sees
LARGEST_MM = 15.0  # error that is learned; larger ones count as this


class ErrorDraw(TypedDict):
    """What `SimulatedErrors` draws: of each sample who is flipped, stripped and seen with its field (B,), how much of a
    network's and of a random error there is (B,), and which network answers, or -1."""

    flip: Tensor
    strip: Tensor
    shown: Tensor
    mixture: Tensor
    answer: int
    place: Draw
    known: Draw
    residual: Draw
    looks: list[ContrastDraw]


class SimulatedErrors:
    """Answers of registrations with their errors, as a `synthesis` of `data.batches.SynthesizedBatch`.

    Of a label map at twice the resolution two images are rendered: moving = map o A, and fixed = map o A o (id + u),
    with A a random place and u a random known deformation; both have looks of their own. An answer is u + e, with e a
    random field or what a registration network errs on the pair, or both, weaker or stronger; the warped image is
    moving o (id + u + e), and |e| is the error. No image is a scan, and no two people are compared: between them no
    error is known.

    Args:
        contrast: what labels look like.
        place: the places A, on the grid of the images.
        known: the deformations u.
        residuals: the random errors.
        answers: networks that err.
        spacing: of the images' voxels, mm.
        shares: of steps in which a network answers, of images that lose what lies outside the brain (in half of them
            its CSF, too), and of answers whose field is shown.
        first_extracerebral: from this id on labels lie outside the brain.
    Raises:
        ValueError: if a share is none.
    """

    def __init__(
        self,
        contrast: RandomContrast,
        place: RandomWarp,
        known: RandomWarp,
        residuals: RandomResiduals,
        *,
        answers: Sequence[NetworkAnswer] = (),
        spacing: float = 2.0,
        shares: tuple[float, float, float] = (0.5, 0.5, 0.5),
        first_extracerebral: int = 500,
    ) -> None:
        for share in shares:
            check_number("a share", share, least=0, most=1)
        self.contrast, self.place, self.known, self.residuals = contrast, place, known, residuals
        self.answers, self.spacing, self.first_extracerebral = list(answers), spacing, first_extracerebral
        self.answered, self.stripped, self.shown = shares

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> ErrorDraw:
        """All random numbers of `batch` answers for maps of `size`."""
        half = [n // 2 for n in size]
        # The host needs to know who answers: it draws that itself, and waits for no GPU.
        is_there = generator.device != torch.device("cpu")
        host = Generator().manual_seed(generator.initial_seed()) if is_there else generator
        is_asked, which = uniform((0, 1), (2,), host).tolist()
        answer = int(which * len(self.answers)) if self.answers and is_asked < self.answered else -1
        chances = uniform((0, 1), (5, batch), generator)
        own = torch.where(chances[3] < 0.5, 1.0, 1.3 * uniform((0, 1), (batch,), generator))
        random = torch.where(chances[4] < 0.5, 0.0, uniform((0, 1), (batch,), generator))
        alone = torch.stack([torch.zeros_like(own), torch.ones_like(own)])
        return {
            "flip": chances[0] < 0.5,
            "strip": chances[1],
            "shown": chances[2] < self.shown,
            "mixture": alone if answer < 0 else torch.stack([own, random]),
            "answer": answer,
            "place": self.place.draw(batch, half, generator),
            "known": self.known.draw(batch, half, generator),
            "residual": self.residuals.draw(batch, half, generator),
            "looks": [self.contrast.draw(batch, half, generator) for _ in range(2)],
        }

    def __call__(self, labels: Tensor, draw: ErrorDraw) -> dict[str, Tensor]:
        """Of integer maps (B, 1, *2S) `moving`, the answers as the network sees them (B, 2 + D, *S), `error_mm`, and
        `counts`, where the fixed image shows something that lies within the moving one, both (B, 1, *S)."""
        for answer in self.answers:  # all at the first step, and not in the middle of a training
            if isinstance(answer, NetworkAnswer):
                answer.network.on(labels.device)
        half = [n // 2 for n in labels.shape[2:]]
        labels = torch.where(draw["flip"].view(-1, *[1] * (labels.ndim - 1)), labels.flip(2), labels)
        labels = self._stripped(labels, draw["strip"])
        place, known = self.place.field(draw["place"], half), self.known.field(draw["known"], half)
        grid = identity_grid(half, device=labels.device)
        (moving, _), (fixed, shown) = (
            render_at(self.contrast, labels, 2 * (grid + field) + 0.5, look)
            for field, look in zip((place, compose(place, known)), draw["looks"], strict=True)
        )
        error = self._error(moving, fixed, known, draw)
        ddf = known + error
        return {
            "moving": as_input(
                fixed, warp(moving, ddf), ddf * draw["shown"].view(-1, *[1] * (ddf.ndim - 1)), self.spacing
            ),
            "error_mm": self.spacing * error.square().sum(1, keepdim=True).sqrt(),
            "counts": (shown > 0) & _inside(grid + ddf, half) & _inside(grid + known, half),
        }

    def _error(self, moving: Tensor, fixed: Tensor, known: Tensor, draw: ErrorDraw) -> Tensor:
        own, random = (part.view(-1, *[1] * (known.ndim - 1)) for part in draw["mixture"])
        error = random * self.residuals(draw["residual"], known.shape[2:])
        if draw["answer"] >= 0:
            error = error + own * (self.answers[draw["answer"]](moving, fixed) - known)
        return error

    def _stripped(self, labels: Tensor, strip: Tensor) -> Tensor:
        strip = strip.view(-1, *[1] * (labels.ndim - 1))
        outside = (labels >= self.first_extracerebral) & (strip < self.stripped)
        return labels.masked_fill(outside | ((labels == CSF) & (strip < self.stripped / 2)), 0)


CSF = 24


def as_input(fixed: Tensor, warped: Tensor, ddf: Tensor, spacing: float | Sequence[float]) -> Tensor:
    """What the network sees (B, 2 + D, *S): images (B, 1, *S) in [0, 1] and a field (B, D, *S) in voxels of `spacing`
    mm."""
    steps = [spacing] * ddf.shape[1] if isinstance(spacing, int | float) else spacing
    parts = [ddf[:, k : k + 1] * (step / UNIT_MM) for k, step in enumerate(steps)]
    return torch.cat([fixed, warped, *parts], 1)


def _inside(locations: Tensor, size: Sequence[int]) -> Tensor:
    """Where voxel coordinates (B, D, *S) lie in a grid, (B, 1, *S)."""
    inside = torch.ones_like(locations[:, :1], dtype=torch.bool)
    for axis, n in enumerate(size):
        inside &= ((locations[:, axis] >= 0) & (locations[:, axis] <= n - 1)).unsqueeze(1)
    return inside
