"""Errors by the length of the known field, and trainings of equal time."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from benchmarks import simulated_fields as measured
from custom_components.methods.simulated_fields.growth import Growth
from custom_components.methods.simulated_fields.network import GrowingUNet


def test_errors_are_those_of_the_voxels_that_count_in_each_class():
    known = torch.zeros(1, 2, 1, 4)
    known[0, 0, 0] = torch.tensor([1.0, 3.0, 12.0, 99.0])
    found = measured.Errors((0.0, 5.0, 10.0))
    found.add(known + 0.5, known, torch.tensor([[[[True, True, True, False]]]]))
    rows = found.rows(2.0)
    assert [row[0] for row in rows] == ["0-5", "5-10", "10-inf", "all"]
    error = 2 * 0.5**0.5 * 2**0.5 / 2**0.5
    assert rows[0][1:] == [pytest.approx(4.0), pytest.approx(error), pytest.approx(2 / 3)]
    assert rows[2][1:] == [pytest.approx(24.0), pytest.approx(error), pytest.approx(1 / 3)]
    assert rows[3][2] == pytest.approx(error)


def test_a_training_ends_in_time_with_all_levels_and_is_kept(tmp_path):
    torch.manual_seed(0)
    known = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 16, 16)
    targets = {"known_ddf": known, "known_mask": torch.ones(1, 1, 16, 16, dtype=torch.bool)}

    def make(seed):
        return torch.rand(1, 2, 16, 16, generator=torch.Generator().manual_seed(seed)), targets, (), {}

    settings = {"channels": (4, 4, 4), "shares": (0.4, 0.3, 0.3)}
    network, steps = measured.kept(tmp_path / "a.pt", 2, settings, make, 1.0, 0)
    again, same = measured.kept(tmp_path / "a.pt", 2, settings, make, 1.0, 0)
    assert steps == same > 3
    assert network.stage == 0
    assert torch.equal(network.weight_of_level, torch.ones(3))
    image = make(0)[0]
    assert torch.equal(measured.answer(network, image), measured.answer(again, image))
    assert isinstance(network, GrowingUNet)
    assert Growth(network, (0.5, 0.5)).at(1.0) == (0, 1.0)


def test_lungs_that_lie_elsewhere_are_found_by_the_known_shift(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "LUNG_SIZE", (20, 20, 20))
    masks = {"fixed": np.zeros((20, 20, 20), np.uint8), "moving": np.zeros((20, 20, 20), np.uint8)}
    masks["fixed"][5:10, 5:10, 5:10] = masks["moving"][8:13, 5:10, 5:10] = 1
    for side, mask in masks.items():
        nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / f"{side}.nii.gz")
    (tmp_path / "points.csv").write_text("point,a,b,c,d,e,f\n1,6,6,6,9,6,6\n2,8,7,6,11,7,6\n")
    item = {"subject": "a", "fixed_mask": "fixed.nii.gz", "moving_mask": "moving.nii.gz", "landmarks": "points.csv"}
    case = measured.load_lungs(tmp_path, json.loads(json.dumps(item)), [2.0, 1.0, 1.0])
    ddf = torch.zeros(1, 3, 20, 20, 20)
    before = list(measured._lung_errors(case, None))
    ddf[:, 0] = 3
    after = list(measured._lung_errors(case, ddf))
    assert before[0] == pytest.approx(6.0, rel=1e-4)
    assert after[0] == pytest.approx(0.0, abs=1e-3)
    assert after[2] > 0.9 > before[2]
