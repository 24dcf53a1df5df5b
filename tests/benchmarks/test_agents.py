"""Known rigid starts: that they are as large as they say, and how methods are counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.agents import (
    Case,
    Method,
    centres,
    error_mm,
    itk_alone,
    measured,
    rendered,
    selected,
    summary,
    volume,
    world_of,
)
from custom_components.affine import ball_displacement, rotation_matrix
from custom_components.methods.agents.rigid import RigidMoves
from custom_components.methods.agents.simulation import SimulatedStates
from custom_components.space.resampling import resample
from custom_components.synthesis.background import ZeroBackground
from custom_components.synthesis.contrast import RandomContrast
from custom_components.synthesis.intensities import LabelIntensities
from custom_components.synthesis.warp import RandomWarp

DIMS = pytest.mark.parametrize("d", [2, 3])


class Alike(RandomContrast):
    """The same look at each draw."""

    def draw(self, batch, size, generator):
        return super().draw(batch, size, torch.Generator().manual_seed(3))


def pair(d: int, size: float) -> Case:
    """Of a head of three blocks, in one look."""
    labels = torch.zeros(1, 1, *[80] * d, dtype=torch.int32)
    for number, corner in enumerate([(24, 26, 28), (42, 28, 34), (32, 44, 38)], 1):
        labels[(0, 0, *[slice(c, c + 16) for c in corner[:d]])] = number
    still, look = RandomWarp(0.0, scales=(8,)), Alike(LabelIntensities(num_labels=4), effects=[ZeroBackground(1.0)])
    make = SimulatedStates(look, still, still, RigidMoves(d, radius=10.0), states=1)
    make.STRIPPED = 0.0
    return Case({}, *rendered(make, labels, [look, look], size, torch.Generator().manual_seed(0)))


@DIMS
@pytest.mark.parametrize("size", [10.0, 90.0])
def test_a_start_is_as_large_as_it_says_and_its_truth_aligns_the_pair(d, size):
    moving, fixed, truth = pair(d, size)[1:]
    turn = torch.zeros(1, 3 if d == 3 else 1)
    turn[0, 0] = size * torch.pi / 180
    expected = ball_displacement(torch.cat([rotation_matrix(turn), torch.zeros(1, d, 1)], 2), 80.0).square() + size**2
    assert error_mm(np.eye(d + 1), truth) == pytest.approx(float(expected.sqrt()), rel=1e-3)
    assert error_mm(truth, truth) == 0

    def apart(matrix):
        shown = resample(moving.data, np.linalg.inv(matrix) @ moving.affine, fixed.grid)
        return float((shown - fixed.data).square().mean())

    assert apart(truth) < 0.5 * apart(centres(fixed, moving)[0])


@DIMS
def test_the_head_of_the_moving_image_is_whole(d):
    """However far it is shifted."""
    near, far = pair(d, 1.0), pair(d, 90.0)
    assert float(far.moving.data.mean()) == pytest.approx(float(near.moving.data.mean()), rel=0.05)


def test_centres_of_mass_undo_a_shift():
    image = torch.zeros(1, 20, 20, 20)
    image[0, 4:9, 6:11, 7:12] = 1
    there = np.eye(4)
    there[:3, 3] = [7.0, -40.0, 60.0]
    affine = world_of((20, 20, 20))
    fixed, moving = volume(image, affine, "fixed"), volume(image, there @ affine, "moving")
    np.testing.assert_allclose(centres(fixed, moving)[0], there, atol=1e-6)


def test_itk_alone_takes_the_middle_to_its_place():
    pytest.importorskip("itk", reason="needs ITK")
    moving, fixed, truth = pair(3, 8.0)[1:]
    middle = np.append(centres(fixed, moving)[1], 1)
    found = itk_alone(fixed, moving, np.eye(4))
    assert np.linalg.norm((found - truth) @ middle) < 0.5 < np.linalg.norm((np.eye(4) - truth) @ middle)


def test_who_goes_on_begins_where_the_other_ended_and_costs_the_time_of_both():
    seen = []

    def first(fixed, moving, start):
        return 2 * start

    def second(fixed, moving, start):
        seen.append(start)
        return start

    known = {"a": Method(first), "b": Method(second, "a"), "c": Method(second)}
    rows = measured(pair(2, 10.0), known)
    assert np.array_equal(seen[0], 2 * np.eye(3))
    assert rows[1]["error"] == rows[0]["error"]
    assert rows[1]["cpu_s"] >= rows[0]["cpu_s"]
    assert rows[2]["error"] == pytest.approx(rows[2]["before"])
    assert list(selected(known, ["b"])) == ["a", "b"]
    assert list(selected(known, None)) == ["a", "b", "c"]


def test_the_summary_counts_what_ends_below_4_mm():
    rows = [
        {"method": "one", "contrast": c, "start": s, "before": s, "error": e, "cpu_s": 1.0}
        for c, s, e in [("t1-t1", 10.0, 1.0), ("t1-t1", 10.0, 5.0), ("t1-t2", 10.0, 3.0), ("t1-t1", 90.0, 70.0)]
    ]
    assert "| one | 0.67 / 3 (5) | 0.00 / 70 (70) | 1.00 |" in summary(rows)
    assert "| one | 1.00 / 3 (3) | 1.00 |" in summary(rows, "t1-t2")


def test_curves_are_drawn(tmp_path):
    from benchmarks.agents_pictures import draw

    rows = [
        {"method": name, "start": size, "error": size / 10}
        for name in ("agent", "ITK with its search", "another")
        for size in (10.0, 90.0)
    ]
    draw(rows, tmp_path / "curves.png")
    assert 5_000 < (tmp_path / "curves.png").stat().st_size < 60_000
