"""Pairs of known offsets, made on a device, and a training of a few seconds whose weights are measured."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import device_similarity, learned_similarity
from benchmarks.device_offsets import OffsetPairs, Offsets, draw_kinds, narrow, wide
from benchmarks.device_step import label_table
from benchmarks.device_synthesis import Augmentation, DevicePairs

IDS = [0, 2, 3, 24, 507]
CPU = torch.device("cpu")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = ["id,t1_prior_mean,t1_prior_mean_spread"]
    rows += [f"{number},{40 * (i + 1)},5" for i, number in enumerate(IDS)]
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def maps() -> np.ndarray:
    """Six heads of 64 voxels of 1 mm: boxes of random labels."""
    random = np.random.default_rng(0)
    return random.integers(0, 5, (6, 16, 16, 16)).astype(np.uint8).repeat(4, 1).repeat(4, 2).repeat(4, 3)


@pytest.fixture
def offset_pairs(maps: np.ndarray, table: Path) -> OffsetPairs:
    known = label_table(table, np.array(IDS), CPU)
    pairs = DevicePairs(torch.as_tensor(maps), known, Augmentation())
    return OffsetPairs(pairs, 16, 1.0, varied=False)


def test_the_moving_image_shows_the_anatomy_at_the_offset(offset_pairs):
    torch.manual_seed(0)
    shift = torch.eye(3, 4)[None].clone()
    shift[:, :, 3] = torch.tensor([4.0, 0.0, -2.0])
    labels, distance = offset_pairs.looked_up(offset_pairs.canvas(1), Offsets(shift, torch.zeros(1), 2.0))
    moving, fixed = labels
    agree = moving[:-4, :, 2:] == fixed[4:, :, :-2]  # voxels of 1 mm
    assert float(agree.float().mean()) > 0.99
    assert float((moving == fixed).float().mean()) < 0.9
    assert torch.allclose(distance, torch.tensor(20.0).sqrt())
    assert distance.shape == (1, 1, 16, 16, 16)


def test_a_pair_at_rest_shows_one_anatomy_in_two_renderings(offset_pairs):
    torch.manual_seed(0)
    rest = Offsets(torch.eye(3, 4).repeat(4, 1, 1), torch.zeros(4), 2.0)
    canvas = offset_pairs.canvas(2)
    labels, distance = offset_pairs.looked_up(canvas, rest)
    assert torch.equal(*labels.chunk(2))
    assert float(distance.max()) == 0
    image, _ = offset_pairs(canvas, rest, draw_kinds(4, CPU))
    assert image.shape == (4, 2, 16, 16, 16)
    assert float((image[:, 0] - image[:, 1]).abs().mean()) > 0.05
    assert (float(image.min()), float(image.max())) == (0.0, 1.0)


def test_distances_are_those_that_were_asked_for():
    torch.manual_seed(0)
    near = narrow(4000, 2.0, CPU)
    rigid = near.rigid[near.elastic == 0]
    shift = rigid[:, :, 3].norm(dim=1)
    assert float((shift < 0.5).float().mean()) > 0.6  # the aligned half of the pairs are two thirds of the rigid ones
    assert float(near.elastic.max()) <= 0.6 * 12 * 2
    assert float((near.elastic > 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    coarse = narrow(4000, 8.0, CPU)  # twelve voxels are further than a rotation could move the ball's points
    assert float(coarse.rigid[:, :, 3].norm(dim=1).max()) <= 60
    far = wide(4000, 30.0, 3.0, CPU)
    assert float(far.elastic.max()) == 0
    assert 45 < float(far.rigid[:, :, 3].norm(dim=1).max()) <= 60


@pytest.mark.parametrize("words", [[], ["--rigid_people", "--replays", "3"]])
def test_a_short_training_writes_weights_that_are_measured(words, maps, table, tmp_path, monkeypatch):
    np.savez(tmp_path / "maps.npz", maps=maps, ids=IDS, split=["training"] * 4 + ["validation"] * 2)
    shared = [str(tmp_path / "maps.npz"), "--table", str(table), "--device", "cpu"]
    output = tmp_path / "out"
    sizes = ["--size", "16", "16", "--pairs", "2", "4", "--people", "1", "4", "--seconds", "1", *words]
    monkeypatch.setattr(sys, "argv", ["device_similarity", *shared, *sizes, "--output", str(output)])
    device_similarity.main()
    for name in ("volumes", "patches", "features", "volumes_2d", "patches_2d", "features_2d"):
        assert (output / f"{name}.pt").stat().st_size < 500_000
        with open(output / f"{name}.csv", newline="") as file:
            assert all(np.isfinite(float(value)) for row in csv.DictReader(file) for value in row.values())
    monkeypatch.setattr(learned_similarity, "STARTS_MM", (2.0, 4.0))
    if words:
        return
    words = ["--weights", str(output), "--output", str(tmp_path / "capture.csv"), "--size", "16", "--people", "1"]
    only = ["--each", "1", "--iterations", "3", "--only", "volumes", "patches", "features", "ngf"]
    monkeypatch.setattr(sys, "argv", ["learned_similarity", *shared, *words, *only])
    learned_similarity.main()
    with open(tmp_path / "capture.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["similarity"] for row in rows} == {"volumes", "patches", "features", "ngf"}
    assert {float(row["start_mm"]) for row in rows} == {2.0, 4.0}


def test_starts_have_the_error_that_was_asked_for():
    moving, fixed = learned_similarity.scans(torch.rand(2, 12, 12, 12), 3.0)
    poses = learned_similarity.Poses(torch.nn.MSELoss(), fixed, moving, np.eye(4), passes=1)
    numbers, wanted = learned_similarity.starts_of(poses, learned_similarity.Trial(each=2))
    assert torch.allclose(learned_similarity.tre(poses, numbers), wanted, atol=0.05)
