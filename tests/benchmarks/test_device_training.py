"""Training on a device: what is drawn there, and a training of a few seconds."""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from benchmarks import device_step, device_training
from benchmarks.device_calibration import Calibration, JointCalibration
from benchmarks.device_maps import collect
from benchmarks.device_methods import METHODS, Registration
from benchmarks.device_slices import take_slices
from benchmarks.device_step import Recipe
from benchmarks.device_synthesis import Augmentation, DevicePairs
from custom_components.files import save_tensors

SIZE = (32, 32, 32)
IDS = [0, 2, 3, 24, 507]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = ["id,t1_prior_mean,t1_prior_mean_spread"]
    rows += [f"{number},{40 * (i + 1)},5" for i, number in enumerate(IDS)]
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def maps() -> np.ndarray:
    """Six heads: a shell of 507 around fluid, cortex and white matter, each a ball of its own radius."""
    axes = np.stack(np.meshgrid(*[np.arange(2 * n) - n + 0.5 for n in SIZE], indexing="ij"))
    radius = np.sqrt((axes**2).sum(0))
    people = []
    for i in range(6):
        person = np.zeros(radius.shape, np.uint8)
        for position, limit in ((4, 29), (3, 25), (2, 22), (1, 14)):
            person[radius < limit - 0.7 * i] = position
        people.append(person)
    return np.stack(people)


@pytest.fixture
def pairs(maps: np.ndarray, table: Path) -> DevicePairs:
    known = device_step.label_table(table, np.array(IDS), torch.device("cpu"))
    return DevicePairs(torch.as_tensor(maps), known, Augmentation(strip=1.0))


class TestDevicePairs:
    def test_shares_are_those_of_the_eight_voxels(self, pairs):
        labels = pairs.given(torch.tensor([0]), torch.tensor([1]))
        shares = pairs.shares(labels)
        white = torch.nn.functional.avg_pool3d((labels == 1).float().unsqueeze(1), 2)
        torch.testing.assert_close(shares[:, :1], white)
        assert shares.sum(1).max() <= 1

    def test_clean_images_mix_the_means(self, pairs):
        labels = pairs.given(torch.tensor([0]), torch.tensor([1]))
        expected = torch.nn.functional.avg_pool3d((labels.float() + 1).unsqueeze(1) * 40 / 255, 2)
        torch.testing.assert_close(pairs.clean(labels), expected)

    def test_stripped_heads_keep_the_brain_alone(self, pairs):
        torch.manual_seed(0)
        assert not (pairs.anatomies(3) == 4).any()

    def test_images_lie_between_0_and_1_and_depend_on_the_contrast(self, pairs):
        torch.manual_seed(0)
        labels = pairs.given(torch.tensor([0, 0]), torch.tensor([0, 0]))
        kind = torch.tensor([0, 1, 2, 3])
        images = pairs.render(labels, pairs.means(4, kind), torch.full((4,), 1.0))
        assert images.shape == (4, 1, *SIZE)
        assert images.min() == 0
        assert images.max() == 1
        centre, cortex = images[:, 0, 16, 16, 16], images[:, 0, 16, 16, 25]
        assert centre[0] < cortex[0]  # the table's order
        assert centre[2] > cortex[2]  # inverted


TRAININGS = [(bundle, ()) for bundle in METHODS if bundle != "synthmorph"]
TRAININGS += [("synthmorph", ("--spatial_dims", "2")), ("voxelmorph_probabilistic", ("--calibrate",))]
TRAININGS += [("voxelmorph_probabilistic", ("--joint",))]


@pytest.mark.parametrize(("bundle", "words"), TRAININGS)
def test_a_short_training_writes_weights_and_a_curve(bundle, words, maps, table, tmp_path, monkeypatch):
    """What it writes is what the bundle loads."""
    np.savez(
        tmp_path / "maps.npz",
        maps=maps[:, 16:-16, 16:-16, 16:-16],
        ids=IDS,
        split=["training"] * 4 + ["validation"] * 2,
    )
    arguments = [str(tmp_path / "maps.npz"), "--table", str(table), "--bundle", bundle, "--device", "cpu", *words]
    arguments += ["--precision", "float32", "--pairs", "1", "--output", str(tmp_path / "out"), "--minutes", "0.01"]
    monkeypatch.setattr(sys, "argv", ["device_training", *arguments, "--contrasts", "0", "0.5"])
    device_training.main()
    Registration(bundle, spatial_dims=2 if "2" in words else 3).begin(tmp_path / "out" / f"{bundle}.pt")
    with open(tmp_path / "out" / f"{bundle}.csv", newline="") as file:
        row = next(csv.DictReader(file))
    assert int(float(row["steps"])) >= 1
    assert all(np.isfinite(float(value)) for value in row.values())


def test_weights_to_begin_from_may_lack_what_the_method_adds(tmp_path):
    plain = Registration("voxelmorph").network.state_dict()
    save_tensors(tmp_path / "plain.pt", plain)
    hyper = Registration("hypermorph", initial=tmp_path / "plain.pt").network.state_dict()
    torch.testing.assert_close(hyper["encoder.0.0.weight"], plain["encoder.0.0.weight"])
    del plain["flow.weight"]
    save_tensors(tmp_path / "cut.pt", plain)
    with pytest.raises(ValueError, match="not weights to begin this network from"):
        Registration("hypermorph", initial=tmp_path / "cut.pt")


def test_calibration_changes_the_variance_alone_and_makes_the_truth_likelier(pairs):
    torch.manual_seed(0)
    registration = Registration("voxelmorph_probabilistic")
    training = Calibration(registration, pairs, Recipe(pairs=1, learning_rate=0.02))
    training.forget()
    before, values = {k: v.clone() for k, v in registration.network.state_dict().items()}, []
    for _ in range(10):
        torch.manual_seed(0)  # the same pair each time
        training.sums.zero_()
        training.step()
        values.append(float(training.sums[0]))
    assert values[-1] < values[0] - 0.01
    for name, value in registration.network.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith("log_variance."))


def test_a_joint_calibration_learns_the_variance_from_known_deformations_alone(pairs):
    torch.manual_seed(0)
    registration = Registration("voxelmorph_probabilistic")
    training = JointCalibration(registration, pairs, Recipe(pairs=1))
    labels, kind = pairs.anatomies(1), torch.zeros(2, dtype=torch.long)
    head = [p for n, p in registration.network.named_parameters() if n.startswith("log_variance.")]
    trunk = [p for n, p in registration.network.named_parameters() if not n.startswith("log_variance.")]
    *objective, likelihood, error, variance = training.terms(labels, kind)
    assert not error.requires_grad
    assert not variance.requires_grad
    of_objective = torch.autograd.grad(sum(objective), head, retain_graph=True, allow_unused=True)
    assert all(value is None or not value.any() for value in of_objective)
    assert all(value.any() for value in torch.autograd.grad(likelihood, head, retain_graph=True))
    for term in (sum(objective), likelihood):
        assert any(
            value.any()
            for value in torch.autograd.grad(term, trunk, retain_graph=True, allow_unused=True)
            if value is not None
        )
    training.step()
    assert training.sums.isfinite().all()


def test_slices_of_a_person_stand_in_runs_of_neighbours():
    maps = torch.zeros(2, 8, 16, 12, dtype=torch.uint8)
    maps[:] = torch.arange(16).view(1, 1, 16, 1)  # a coronal slice holds one number
    maps[1] += 100
    slices, (runs, length) = take_slices(maps)
    assert slices.shape == (2 * runs * length, 32, 32)
    coronal = slices.view(2, runs, length, 32, 32)[:, 2:, :, 16, 16]
    assert (coronal[0].diff(dim=1) == 2).all()
    assert (coronal[1] - coronal[0] == 100).all()


def test_pairs_of_slices_are_of_different_people_and_of_neighbours(table):
    known = device_step.label_table(table, np.array(IDS), torch.device("cpu"))
    slices = torch.zeros(3, 2, 4, 8, 8, dtype=torch.uint8)
    slices[:] = torch.arange(1, 4).view(3, 1, 1, 1, 1)
    pairs = DevicePairs(slices.flatten(0, 2), known, Augmentation(strip=0, elastic=(), shift=0), runs=(2, 4))
    torch.manual_seed(0)
    moving, fixed = pairs.anatomies(20)[:, 4, 4].chunk(2)
    assert (moving != fixed).all()


def test_maps_are_read_at_twice_the_resolution(tmp_path):
    folder = tmp_path
    for i, name in enumerate(("a", "b")):
        labels = np.zeros((16, 16, 16), np.int16)
        labels[4:12, 4:12, 4:12] = 507
        labels[6 + i : 10, 6:10, 6:10] = 2
        affine = np.diag([1.0, 1, 1, 1])
        affine[:3, 3] = -7.5
        nib.save(nib.Nifti1Image(labels, affine), folder / f"{name}.nii.gz")
    sections = {"training": [{"label": "a.nii.gz"}], "validation": [{"label": "b.nii.gz"}]}
    (folder / "list.json").write_text(json.dumps(sections))
    found = collect(folder / "list.json", (8, 8, 8), 2.0)
    assert found["maps"].shape == (2, 16, 16, 16)
    assert found["ids"].tolist() == [0, 2, 507]
    assert (found["maps"][0] == 1).sum() == 64
    assert found["split"].tolist() == ["training", "validation"]


def test_a_training_on_a_cpu_counts_its_own_work_and_not_the_time_it_waits():
    before = device_training.working_seconds(torch.device("cpu"))
    time.sleep(0.5)
    assert device_training.working_seconds(torch.device("cpu")) - before < 0.25
