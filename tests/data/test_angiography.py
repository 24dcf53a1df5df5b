"""Angiograms whose truth is known: motion, vessels, and noise."""

from __future__ import annotations

import pytest
import torch

from custom_components.data.angiography import angiogram, bolus, vessel_maps, vessel_tree
from custom_components.fields import warp

SIZE = (96, 80)


@pytest.fixture(scope="module")
def series():
    return angiogram(SIZE, 8, 3)


def test_a_seed_gives_equal_series(series):
    assert torch.equal(series.counts, angiogram(SIZE, 8, 3).counts)
    assert not torch.equal(series.counts, angiogram(SIZE, 8, 4).counts)


def test_the_first_frame_moved_along_the_field_is_each_frame_without_contrast(series):
    moved = warp(series.background[:1].expand_as(series.background), series.ddf, padding="border")
    apart = (moved - series.background)[:, :, 8:-8, 8:-8]
    still = (series.background[:1] - series.background)[:, :, 8:-8, 8:-8]
    assert series.ddf[0].abs().max() == 0
    assert series.ddf.square().sum(1).sqrt().max() > 1
    assert float(apart.square().mean()) < 0.05 * float(still.square().mean())


def test_vessels_fill_after_the_first_frames(series):
    amounts = series.vessels.flatten(1).sum(1)
    assert amounts[:5].max() == 0
    assert amounts[5:].min() >= 0
    assert amounts.max() > 0


def test_the_noise_is_that_of_photons():
    found = angiogram((64, 64), 40, 0, motion=0.0, still=40)
    logs = found.counts.clamp(min=1).log()
    measured = (logs - logs.mean(0)).square().sum(0).div(39).sqrt()
    assert float((measured / found.noise[0]).mean()) == pytest.approx(1, abs=0.03)


def test_contrast_agent_comes_at_once_and_goes():
    assert bolus(torch.tensor([-1.0, 0.0, 5.0]), 5.0).tolist() == [0, 0, pytest.approx(1)]
    assert bolus(torch.tensor([20.0]), 5.0) < 0.1


def test_the_tree_is_thickest_where_it_enters_and_filled_first_there():
    tree = vessel_tree(torch.Generator().manual_seed(0))
    assert tree[0, 2] == tree[:, 2].max()
    assert tree[0, 3] == tree[:, 3].min()
    thickness, arrival = vessel_maps(tree, (128, 128))
    row, column = (int((tree[5, k] + 1) / 2 * 127 + 0.5) for k in (0, 1))
    assert float(thickness[0, row, column]) == pytest.approx(14 * float(tree[0, 2]), rel=0.1)
    assert float(arrival[0, row, column]) < 0.1
    assert (arrival[thickness == 0] == 1).all()


def test_layers_can_move_apart():
    found = angiogram(SIZE, 4, 0, motion=0.0, apart=6.0)
    assert found.ddf.abs().max() == 0
    assert (found.background[3] - found.background[0]).abs().max() > 0.05
