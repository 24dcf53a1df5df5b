"""Lungs: points, masks and strain."""

import json
import math

import nibabel as nib
import numpy as np
import pytest
import torch

from benchmarks import rdmm_lungs as breathing
from custom_components.affine import affine_to_ddf

pytestmark = pytest.mark.slow

SPACING = [6.0, 5.0, 5.5]


@pytest.fixture(scope="module")
def lungs(tmp_path_factory):
    """A ball that shrinks to 0.8 of its size about its centre, which lies at (57, 47.5, 52.25) mm."""
    folder = tmp_path_factory.mktemp("lungs")
    size = (20, 20, 20)
    centre = np.array([(n - 1) * h / 2 for n, h in zip(size, SPACING, strict=True)])
    where = np.stack(np.meshgrid(*[h * np.arange(n) for n, h in zip(size, SPACING, strict=True)], indexing="ij"), -1)
    for name, radius in (("fixed", 20), ("moving", 25)):
        mask = (np.linalg.norm(where - centre, axis=-1) < radius).astype(np.uint8)
        nib.save(nib.Nifti1Image(mask, np.eye(4)), folder / f"{name}.nii.gz")
    offsets = np.random.default_rng(0).uniform(-10, 10, (30, 3))
    rows = np.concatenate([(centre + offsets) / SPACING, (centre + 1.25 * offsets) / SPACING], 1)
    lines = ["point,exp_i,exp_j,exp_k,insp_i,insp_j,insp_k"]
    lines += [f"{i}," + ",".join(f"{value:.3f}" for value in row) for i, row in enumerate(rows)]
    (folder / "points.csv").write_text("\n".join(lines) + "\n")
    pair = {"subject": "a", "fixed_mask": "fixed.nii.gz", "moving_mask": "moving.nii.gz", "landmarks": "points.csv"}
    (folder / "datalist.json").write_text(json.dumps({"evaluation_spacing": SPACING, "pairs": [pair]}))
    return folder


@pytest.fixture
def case(lungs, monkeypatch):
    monkeypatch.setattr(breathing, "DRIVING", 20)
    return breathing.load_lungs(lungs, json.loads((lungs / "datalist.json").read_text())["pairs"][0], SPACING)


def expansion(case, factor):
    """The map that expands about the grid's centre."""
    last = torch.tensor(case["size"]) - 1
    matrix = torch.cat([factor * torch.eye(3), (1 - factor) * last.view(3, 1) / 2], 1)
    return affine_to_ddf(matrix[None], case["size"])


def test_the_map_that_moved_the_landmarks_has_no_error(case, monkeypatch):
    monkeypatch.setattr(breathing, "register_lungs", lambda case, *_, **__: expansion(case, 1.25))
    found, before = (breathing.measure_lungs(case, name, 1) for name in ("RDMM, energy 1e-4", "none"))
    assert found["held_out, mm"] < 0.02
    assert found["driving, mm"] < 0.02
    assert 0.25 * 5 < before["held_out, mm"] < 0.25 * 15
    assert found["Dice"] > 0.9 > 0.8 > before["Dice"]
    for place in ("10-30 mm", "from 10 mm"):
        assert found[f"strain, {place}"] == pytest.approx(math.sqrt(3) * (1.25**2 - 1) / 2, rel=1e-3)
        assert found[f"log det J, {place}"] == pytest.approx(3 * math.log(1.25), rel=1e-3)
        assert before[f"strain, {place}"] == 0


def test_points_cost_their_square_and_far_ones_less(case):
    loss = breathing.PointLoss(lambda pred, batch: torch.tensor(1.0), 2.0, limit_mm=100.0)
    batch = {f"points_{key}": case[f"driving_{key}"] for key in breathing.SIDES} | {"extent": case["extent"]}
    pred = {"ddf": torch.zeros(1, 3, *case["size"])}
    distance = (batch["points_fixed"] - batch["points_moving"]) * case["extent"]
    square = float(distance.square().sum(2).mean())
    assert float(loss(pred, batch)) == pytest.approx(1 + 2 * square, rel=1e-3)
    loss.limit_mm = 0.1
    assert float(loss(pred, batch)) < 1 + 0.2 * square


def test_lungs_are_registered_once(lungs, tmp_path, monkeypatch):
    monkeypatch.setattr(breathing, "DRIVING", 20)
    command = [str(tmp_path), "--data", str(lungs), "--iterations", "3"]
    breathing.main(command)
    text = (tmp_path / "table.md").read_text()
    for name in ("none", *breathing.METHODS):
        assert text.count(f"| {name} |") == 1, name
    for name in breathing.METHODS:
        found, before = (json.loads((tmp_path / "lungs" / f"a {key}.json").read_text()) for key in (name, "none"))
        assert found["driving, mm"] < before["driving, mm"], name
    monkeypatch.setattr(breathing, "register_lungs", None)
    breathing.main(command)
    assert (tmp_path / "table.md").read_text() == text


def test_missing_data_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        breathing.main([str(tmp_path), "--data", str(tmp_path / "nowhere")])
    assert "nowhere" in capsys.readouterr().err
