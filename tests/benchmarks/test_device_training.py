"""Training on a device: what is drawn there, and a training of a few seconds."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from benchmarks import device_training
from benchmarks.device_maps import collect
from benchmarks.device_synthesis import Augmentation, DevicePairs
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet

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
    known = device_training.label_table(table, np.array(IDS), torch.device("cpu"))
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


def test_a_short_training_writes_weights_and_a_curve(maps, table, tmp_path, monkeypatch):
    np.savez(tmp_path / "maps.npz", maps=maps, ids=IDS, split=["training"] * 4 + ["validation"] * 2)
    arguments = [str(tmp_path / "maps.npz"), "--table", str(table), "--bundle", "voxelmorph", "--device", "cpu"]
    arguments += ["--precision", "float32", "--pairs", "1", "--output", str(tmp_path / "out"), "--minutes", "0.02"]
    monkeypatch.setattr(sys, "argv", ["device_training", *arguments, "--contrasts", "0", "0.5"])
    device_training.main()
    weights = torch.load(tmp_path / "out" / "voxelmorph.pt", weights_only=True)
    VoxelMorphUNet(3, half_resolution=True).load_state_dict(weights)
    with open(tmp_path / "out" / "voxelmorph.csv", newline="") as file:
        row = next(csv.DictReader(file))
    assert int(float(row["steps"])) >= 1
    assert all(np.isfinite(float(row[key])) for key in ("similarity", "overlap", "dice_t1", "dice_t2"))


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
