"""Pairs of people whose images are rendered from affinely aligned label maps, in known contrasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from custom_components.data.lists import load_list
from custom_components.synthesis.brains import BrainContrast
from custom_components.synthesis.pairs import SynthesizePair
from custom_components.synthesis.warp import RandomWarp
from custom_components.transforms.scan import LoadScand
from custom_components.vocabulary import Entry

STRUCTURES = [2, 3, 4, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 26, 28]
STRUCTURES += [41, 42, 43, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60]
CONTRASTS = ("t1", "t2", "inverted")  # of the fixed image; the moving one is T1-like


def load_people(
    data_list: Path,
    section: str = "validation",
    *,
    spacing: float = 2.0,
    size: Sequence[int] = (80, 112, 96),
    center: str = "world",
) -> list[Entry]:
    """The scans of a list that `data_lists/align.py` wrote, each with its "label" (1, *S) on the common grid.

    Scans that nobody aligned need the center "mass".
    """
    load = LoadScand(spacing=spacing, size=size, center=center)
    return [load(scan) for scan in load_list(data_list, section)]


def rendered_pairs(
    people: Sequence[Entry], statistics: Path, contrast: str, *, strip: float = 1.0
) -> Iterator[tuple[Entry, Entry, dict[str, Tensor]]]:
    """All ordered pairs of people: moving, fixed, and what `SynthesizePair` gives, a T1-like moving image.

    Args:
        people: as `load_people` gives them.
        statistics: table of the structures' means.
        contrast: of the fixed image, one of `CONTRASTS`.
        strip: probability that both people lose what lies outside the brain.
    """
    table = {"statistics": statistics, "std": (2, 8), "background_std": (0, 3), "bias": 0.15, "gamma": 0.1}
    sides = [BrainContrast(contrast=name, zero_background=1.0, **table) for name in ("t1", contrast)]
    synthesis = SynthesizePair(RandomWarp(0.0), *sides, flip=0.0, strip=strip)
    pairs = [(moving, fixed) for moving in people for fixed in people if moving is not fixed]
    for k, (moving, fixed) in enumerate(pairs):
        maps = [person["label"][None].to(torch.int16) for person in (moving, fixed)]
        draw = synthesis.draw(1, maps[0].shape[2:], torch.Generator().manual_seed(k))
        yield moving, fixed, synthesis(*maps, draw)
