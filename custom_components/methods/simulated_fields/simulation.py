"""Pairs of images whose map is known, made of one scan or label map each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypedDict

import torch
from torch import Generator, Tensor

from ...checks import check_number, check_switch
from ...fields import compose, identity_grid, warp
from ...synthesis.noise import Draw, uniform
from .fields import RandomFields


class Look(Protocol):
    """Images of maps: `draw` takes all random numbers, the call is a pure function (`synthesis.RandomContrast`)."""

    def draw(self, batch: int, size: Sequence[int], generator: Generator, /) -> object:
        """The random numbers of `batch` images."""

    def __call__(self, source: Tensor, draw: object, /) -> Tensor:
        """Images (B, 1, *S) of label maps or scans."""


class SimulationDraw(TypedDict):
    """The random numbers of a batch: "flip" and "strip" (B,) of its items, the rest of each pair and image."""

    flip: Tensor
    strip: Tensor
    known: Draw
    place: Draw
    looks: list[object]


def make_pair(source: Tensor, place: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two maps of one source, between which the displacement is known, and where it can be seen.

    Convention: moving = source o A and fixed = source o A o (id + u), A = id + place, u = known. So moving, pulled back
    along u, is fixed: `moving(x + u(x)) = fixed(x)`. Both are read from the source once: coordinates are composed, no
    image is interpolated twice.

    Args:
        source: shape (B, C, *S); integers are label maps and are read at the nearest voxel.
        place, known: shape (B, D, *S), voxels.
    Returns:
        Moving and fixed, (B, C, *S), and (B, 1, *S), boolean, where x + u(x) lies within the moving image.
    """
    mode = "linear" if source.is_floating_point() else "nearest"
    location = identity_grid(known.shape[2:], device=known.device) + known
    inside = torch.ones_like(known[:, :1], dtype=torch.bool)
    for axis, n in enumerate(known.shape[2:]):
        inside &= ((location[:, axis] >= 0) & (location[:, axis] <= n - 1)).unsqueeze(1)
    return warp(source, place, mode=mode), warp(source, compose(place, known), mode=mode), inside


class SimulatedPairs:
    """Training pairs with known fields, as a `synthesis` of `data.batches.SynthesizedBatch`.

    Of each item's first source a pair is made by `make_pair`: its known field is what the network should answer. Each
    image gets a look of its own.

    With `inter_subject` a second pair (f, f'), made of the other person's source, is never shown as such. The network
    sees the pairs (m, f') and (f, m), m the first person's image: images of two people. Between two people no field is
    known, but the two answers, one after the other, lead from f' to f, and that field is known.

    Args:
        fields: draws the known fields.
        look: draws the images.
        place: draws the maps A that both images of a pair share; None leaves the source where it is.
        inter_subject: show two people, too; each item then makes three pairs of images.
        flip: probability that an item's sources are flipped along the first axis.
        strip: probability that they lose the labels from `first_extracerebral` on.
    Raises:
        ValueError: if `inter_subject` is neither True nor False, or a probability is none.
    References: Eppenhof and Pluim, IEEE TMI 38(5), 2019, for pairs of one scan. That two answers in a row must be a
        known warp is the idea of warp consistency (Truong et al., ICCV 2021).
    """

    def __init__(
        self,
        fields: RandomFields,
        look: Look,
        *,
        place: RandomFields | None = None,
        inter_subject: bool = True,
        flip: float = 0.5,
        strip: float = 0.0,
        first_extracerebral: int = 500,
    ) -> None:
        check_switch("inter_subject", inter_subject)
        for name, value in (("flip", flip), ("strip", strip)):
            check_number(name, value, least=0, most=1)
        self.fields, self.look, self.place, self.inter_subject = fields, look, place, inter_subject
        self.flip, self.strip, self.first_extracerebral = flip, strip, first_extracerebral

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> SimulationDraw:
        """All random numbers of `batch` items; those of one and of two people differ."""
        pairs = batch * (1 + self.inter_subject)
        return {
            "flip": uniform((0, 1), (batch,), generator) < self.flip,
            "strip": uniform((0, 1), (batch,), generator) < self.strip,
            "known": self.fields.draw(pairs, size, generator),
            "place": self.place.draw(pairs, size, generator) if self.place else {},
            "looks": [self.look.draw(pairs, size, generator) for _ in range(2)],
        }

    def __call__(self, first: Tensor, second: Tensor, draw: SimulationDraw) -> dict[str, Tensor]:
        """The batch of sources (B, C, *S), label maps or scans; a scan's further channel is its mask.

        Returns:
            "moving", "fixed" (N, 1, *S), of label maps also "label_moving", "label_fixed"; "known_ddf" (M, D, *S), and
            "known_mask" (M, 1, *S), what counts. N = M = B for one person. For two people M = 2 B, and N = 3 B: first
            the pairs of one scan, then the pairs (m, f'), then the pairs (f, m).
        """
        size, count = first.shape[2:], first.shape[0]
        sources = torch.cat([first, second]) if self.inter_subject else first
        sources = self._flipped(sources, draw)
        known = self.fields(draw["known"], size)
        place = self.place(draw["place"], size) if self.place else torch.zeros_like(known)
        moving, fixed, inside = make_pair(sources, place, known)
        images = {"moving": self._look(moving, draw, 0), "fixed": self._look(fixed, draw, 1)}
        if not moving.is_floating_point():
            images |= {"label_moving": moving, "label_fixed": fixed}
        mask = fixed[:, 1:] if fixed.is_floating_point() and fixed.shape[1] > 1 else fixed[:, :1]
        shown = self._arranged(images, count) if self.inter_subject else images
        return {**shown, "known_ddf": known, "known_mask": (mask > 0) & inside}

    def _look(self, source: Tensor, draw: SimulationDraw, side: int) -> Tensor:
        return self.look(source[:, :1], draw["looks"][side])

    def _flipped(self, sources: Tensor, draw: SimulationDraw) -> Tensor:
        repeats, shape = sources.shape[0] // draw["flip"].shape[0], (-1, *[1] * (sources.ndim - 1))
        flip, strip = (one.repeat(repeats).view(shape) for one in (draw["flip"], draw["strip"]))
        sources = torch.where(flip, sources.flip(2), sources)
        if sources.is_floating_point():
            return sources
        return sources.masked_fill((sources >= self.first_extracerebral) & strip, 0)

    @staticmethod
    def _arranged(images: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
        """Pairs of one person, then (m, f'), then (f, m), of pairs of the first and of the second people."""
        shown = {}
        for kind in {name.removesuffix("moving") for name in images if name.endswith("moving")}:
            (m, f), (fixed, f_known) = (images[f"{kind}{side}"].split(count) for side in ("moving", "fixed"))
            shown[f"{kind}moving"] = torch.cat([m, m, f])
            shown[f"{kind}fixed"] = torch.cat([fixed, f_known, m])
        return shown


def known_answers(ddf: Tensor, count: int) -> Tensor:
    """Of the answers (N, D, *S) to pairs as `SimulatedPairs` arranges them, what should be the `count` known fields.

    The last N - count answers follow those before them: (f, m) after (m, f').

    Raises:
        ValueError: for a number of answers that does not go with `count`.
    """
    between = ddf.shape[0] - count
    if not between:
        return ddf
    if not 0 < between <= count - between:
        raise ValueError(f"expected answers for {count} known fields, got {ddf.shape[0]}")
    one, there, back = ddf.split([count - between, between, between])
    return torch.cat([one, compose(back, there)])
