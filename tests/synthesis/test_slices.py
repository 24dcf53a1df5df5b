"""Slices cut from volumes."""

import math

import pytest
import torch
from synthesis.cases import seeded

from custom_components.synthesis.slices import TakeSlices


def coordinates(size) -> torch.Tensor:
    """Two maps in which a voxel's value tells where it is."""
    return torch.arange(2 * math.prod(size)).view(2, 1, *size)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_those_of_the_levels_drawn(axis):
    size = (7, 9, 8)
    moving, fixed = coordinates(size), -coordinates(size)
    cut = TakeSlices(3, {axis: (1, 5)}, jitter=2)
    draw = cut.draw(seeded(axis))
    slices = cut(moving, fixed, draw)
    for maps, levels, result in zip((moving, fixed), draw["levels"], slices, strict=True):
        assert result.shape == (6, 1, *[n for i, n in enumerate(size) if i != axis])
        expected = [maps[b].select(axis + 1, level) for b in range(2) for level in levels.tolist()]
        assert torch.equal(result, torch.stack(expected))


def test_levels_stay_in_their_range_and_near_each_other():
    cut = TakeSlices(400, {1: (3, 12)}, jitter=2)
    moving, fixed = cut.draw(seeded())["levels"]
    for levels in (moving, fixed):
        assert levels.unique().tolist() == list(range(3, 13))
    assert (fixed - moving).unique().tolist() == [-2, -1, 0, 1, 2]


def test_transposed_slices_have_their_axes_swapped():
    maps = torch.arange(2 * 5 * 6 * 7).view(2, 1, 5, 6, 7)
    upright, swapped = TakeSlices(3, {2: (1, 5)}), TakeSlices(3, {2: (1, 5)}, transpose=1.0)
    draw = upright.draw(seeded())
    turned_draw = {**draw, "swap": torch.tensor(True)}
    for plain, turned in zip(upright(maps, maps, draw), swapped(maps, maps, turned_draw), strict=True):
        assert turned.shape == (6, 1, 6, 5)
        assert torch.equal(turned, plain.mT)
    assert bool(swapped.draw(seeded())["swap"])
    assert not bool(draw["swap"])


def test_without_jitter_both_slices_are_of_one_level():
    moving, fixed = TakeSlices(20, {0: (0, 9)}).draw(seeded())["levels"]
    assert torch.equal(moving, fixed)


def test_axis_of_a_batch_is_drawn_of_those_named():
    cut, generator = TakeSlices(4, {"0": (0, 1), "2": (5, 7)}), seeded()  # keys as JSON writes them
    draws = [cut.draw(generator) for _ in range(20)]
    assert {int(draw["axis"]) for draw in draws} == {0, 2}
    for draw in draws:
        low, high = (0, 1) if draw["axis"] == 0 else (5, 7)
        assert low <= draw["levels"].min() <= draw["levels"].max() <= high
