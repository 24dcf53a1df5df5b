"""A learned similarity of the prostate: where a pair belongs, what the network is shown, and what is searched."""

from __future__ import annotations

import csv
import json
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

from benchmarks import prostate_similarity
from benchmarks.learned_similarity import Measure, Trial, starts_of
from benchmarks.prostate_similarity import (
    LARGEST_MM,
    RADIUS_MM,
    SIZE,
    TURN_DEGREES,
    Pairs,
    Prostates,
    Shifts,
    laid_on,
    offsets,
)
from custom_components.affine import ball_displacement
from custom_components.losses.gradients import NGF

SHIFT_MM = (6.0, -4.0, 8.0)  # of the gland in the moving images


@pytest.fixture
def folder(tmp_path):
    """Four people: a bright ball with a bright corner, moved in the moving image, whose grid is another one."""
    lists = {"training": [], "validation": [], "test": []}
    for number, section in enumerate(["training", "training", "validation", "test"]):
        item = {"id": f"p{number}"}
        for side, size, at in (("moving", (64, 64, 60), SHIFT_MM), ("fixed", (44, 60, 42), (0.0, 0.0, 0.0))):
            affine = np.diag([1.6, 1.6, 1.6, 1.0])
            affine[:3, 3] = [-1.6 * (n - 1) / 2 for n in size]
            world = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1) * 1.6 + affine[:3, 3] - at
            gland = np.linalg.norm(world, axis=-1) < 18
            landmark = np.linalg.norm(world - [6, 0, 0], axis=-1) < 4
            image = 100.0 * gland + 100.0 * landmark
            labels = gland + 2 * landmark
            item[side] = f"images/p{number}_{side}.nii.gz"
            for kind, values in (("images", image), ("labels", labels)):
                (tmp_path / kind).mkdir(exist_ok=True)
                path = tmp_path / kind / f"p{number}_{side}.nii.gz"
                nib.save(nib.Nifti1Image(values.astype(np.uint8), affine), path)
        lists[section].append(item)
    (tmp_path / "datalist.json").write_text(json.dumps(lists))
    return tmp_path


def test_a_pair_belongs_where_gland_lies_on_gland(folder):
    people = Prostates.read(folder, ["training", "test"])
    assert people.truths.shape == (3, 4, 4)
    np.testing.assert_allclose(people.truths[0, :3, 3], SHIFT_MM, atol=0.3)
    apart = people.landmarks_mm.mean(0)
    assert float(apart[0]) == pytest.approx(np.linalg.norm(SHIFT_MM), abs=1)
    assert float(apart[1]) < 1


def test_without_a_gland_there_is_no_place():
    empty = (torch.zeros(1, 4, 4, 4), np.eye(4))
    with pytest.raises(ValueError, match="a gland"):
        laid_on(empty, empty)


def test_where_nothing_is_off_both_images_show_the_same(folder, monkeypatch):
    pairs = Pairs(Prostates.read(folder, ["training"]))
    moved, distance = pairs(3, varied=False)
    assert moved.shape == (3, 2, *SIZE)
    assert distance.shape == (3, 1, *SIZE)
    monkeypatch.setattr(prostate_similarity, "offsets", lambda count: torch.eye(3, 4).expand(count, -1, -1))
    still, none = pairs(3, varied=False)
    assert float(none.abs().max()) < 1e-4

    def apart(images):
        return float((images[:, 0] - images[:, 1]).abs().mean())

    assert apart(still) < 0.2 * apart(moved)
    posed, _ = pairs(3)
    assert float(posed.min()) >= 0
    assert float(posed.max()) <= 1


def test_offsets_are_uniform_in_the_error_and_turn_a_little():
    torch.manual_seed(0)
    found = offsets(4000)
    tre = ball_displacement(found, RADIUS_MM)
    shares = torch.histc(tre, 5, 0, LARGEST_MM) / len(tre)
    assert torch.allclose(shares, torch.full((5,), 0.2), atol=0.03)
    cosine = (found[:, :, :3].diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    assert float(cosine.clamp(-1, 1).arccos().max()) <= np.radians(TURN_DEGREES) + 1e-2


def test_shifts_do_not_turn(folder):
    moving, fixed, truth = Prostates.read(folder, ["test"]).scans()[0]
    poses = Shifts(torch.nn.MSELoss(), fixed, moving, truth, passes=1)
    trial = Trial(2, 1, (5.0, 20.0), RADIUS_MM, poses=Shifts)
    numbers, wanted = starts_of(poses, trial)
    matrices = poses.matrices(numbers)
    torch.testing.assert_close(matrices[:, :3, :3], torch.eye(3).double().expand(4, -1, -1))
    torch.testing.assert_close(matrices[:, :3, 3].norm(dim=1), wanted, atol=1e-3, rtol=0)


def test_a_short_training_writes_weights_that_are_measured(folder, tmp_path, monkeypatch):
    output = tmp_path / "out"
    monkeypatch.setattr(prostate_similarity, "TRIAL", Trial(1, 2, (5.0,), RADIUS_MM, 5.0))
    monkeypatch.setattr(prostate_similarity, "BATCH", 2)
    monkeypatch.setattr(prostate_similarity, "classical", lambda: {"ngf": Measure.of(NGF())})
    words = [str(folder), "--seconds", "2", "--output", str(output), "--each", "1"]
    monkeypatch.setattr(sys, "argv", ["prostate_similarity", *words])
    prostate_similarity.main()
    assert (output / "prostate.pt").stat().st_size < 300_000
    for name in ("measured_shifts", "measured_rigid"):
        with open(output / f"{name}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["similarity"] for row in rows} == {"volumes of prostates", "ngf"}
