"""Where an alignment leads is judged by local correlation."""

import numpy as np
import torch

from custom_components.space.affine_judge import Judge, belief, distances, is_turned
from custom_components.space.affine_levels import Level, Scan
from custom_components.space.affine_search import distinct, quarter_turns
from custom_components.space.grids import Grid
from custom_components.space.information import Maps


def level(image: np.ndarray, other: np.ndarray) -> Level:
    scans = [
        Scan(torch.from_numpy(i)[None].float(), torch.ones(1, *i.shape), Grid(np.eye(i.ndim + 1), i.shape))
        for i in (image, other)
    ]
    return Level(scans[0], scans[1], 1.0)


def test_another_contrast_in_place_is_better_than_the_same_one_moved():
    for size in ((40, 36), (20, 24, 22)):
        image = np.random.default_rng(0).normal(size=size).cumsum(0).cumsum(1).astype("f4")
        judge = Judge(level(image, 3 - 2 * image))
        moved = np.eye(len(size) + 1)
        moved[0, -1] = 5
        assert judge.of_matrix(np.eye(len(size) + 1)) > 0.8
        assert judge.of_matrix(moved) < 0.7


def test_what_leaves_the_moving_image_correlates_with_nothing():
    image = np.random.default_rng(0).normal(size=(24, 20, 22)).astype("f4")
    away = np.eye(4)
    away[0, 3] = 100
    assert Judge(level(image, image)).of_matrix(away) == 0
    flat = Judge(level(np.zeros((24, 20, 22), "f4"), image)).of_matrix(np.eye(4))
    assert not np.isnan(flat)


def test_a_turn_is_believed_less_the_further_it_goes():
    turns = torch.from_numpy(quarter_turns(3))
    maps = Maps(turns, torch.zeros(24, 3, dtype=torch.float64))
    believed = belief(maps)
    assert believed[0] == 1
    assert (believed[1:] < 0.7).all()
    assert not is_turned(maps)
    assert is_turned(maps[1:])


def test_candidates_differ_and_the_best_comes_first():
    linear = torch.eye(3, dtype=torch.float64).repeat(3, 1, 1)
    maps = Maps(linear, torch.tensor([[0.0, 0, 0], [2, 0, 0], [40, 0, 0]], dtype=torch.float64))
    kept = distinct(maps, torch.tensor([0.2, 0.3, 0.1]), radius_mm=50.0, count=4)
    assert kept.target[:, 0].tolist() == [2, 40]
    assert distances(maps, kept, 50.0).tolist() == [2, 0, 38]
