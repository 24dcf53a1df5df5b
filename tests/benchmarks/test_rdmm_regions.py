"""The experiments of the bundle `rdmm`: scenes whose metric is known, and lungs."""

import importlib.util
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from custom_components.affine import affine_to_ddf
from custom_components.fields import jacobian_determinant

SCRIPT = Path(__file__).resolve().parents[2] / "bundles" / "rdmm" / "docs" / "reproduce_regions.py"
SPACING = [6.0, 5.0, 5.5]


def script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


speed = script(SCRIPT.with_name("speed.py"))


@pytest.fixture(scope="module")
def regions():
    return script(SCRIPT)


@pytest.fixture(scope="module")
def scene(regions):
    return regions.make_scene(0, 32, motion=1.5)


def test_a_scene_moves_without_folds_by_regions_of_their_own_metric(regions, scene):
    assert scene["regions"].unique().tolist() == [0, 1, 2, 3, 4]
    assert jacobian_determinant(scene["ddf"]).min() > 0.2
    assert 0.8 < scene["ddf"].norm(dim=1).max() < 2
    middle = [float(scene["sigma"][scene["regions"] == label].quantile(q)) for label, q in ((2, 0), (3, 0.5), (1, 1))]
    assert middle == pytest.approx([2, 5, 12], rel=0.25)


def test_the_truth_has_no_error(regions, scene):
    found = regions.measure_scene(scene, scene)
    assert [found[key] for key in ("error", "error95", "sigma_error", "weight_error")] == [0, 0, 0, 0]
    assert found["dice"] == 1
    away = {**scene, "ddf": scene["ddf"] + torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)}
    found = regions.measure_scene(scene, away)
    assert found["error"] == pytest.approx(5, abs=1e-4)
    assert found["dice"] < 0.7


def test_scenes_are_measured_once_and_drawn(regions, tmp_path, monkeypatch):
    make = regions.make_scene
    monkeypatch.setattr(regions, "make_scene", lambda seed: make(seed, 24))
    monkeypatch.setattr(regions, "TUNING", (100,))
    command = ["scene", str(tmp_path), "--scenes", "1", "--iterations", "2"]
    regions.run(command)
    text = (tmp_path / "table.md").read_text()
    for name in (*regions.GLOBAL, regions.TRUE, regions.OPTIMISED):
        assert text.count(f"| {name} |") >= 2, name
    assert "nan" not in text
    assert (tmp_path / "regions.png").stat().st_size > 10_000
    monkeypatch.setattr(regions, "register_scene", None)
    regions.run(command)
    assert (tmp_path / "table.md").read_text() == text


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
def case(regions, lungs, monkeypatch):
    monkeypatch.setattr(regions, "DRIVING", 20)
    return regions.load_lungs(lungs, json.loads((lungs / "datalist.json").read_text())["pairs"][0], SPACING)


def expansion(case, factor):
    """The map that expands about the grid's centre."""
    last = torch.tensor(case["size"]) - 1
    matrix = torch.cat([factor * torch.eye(3), (1 - factor) * last.view(3, 1) / 2], 1)
    return affine_to_ddf(matrix[None], case["size"])


def test_the_map_that_moved_the_landmarks_has_no_error(regions, case, monkeypatch):
    monkeypatch.setattr(regions, "register_lungs", lambda case, *_, **__: expansion(case, 1.25))
    found, before = (regions.measure_lungs(case, name, 1) for name in ("RDMM, energy 1e-4", "none"))
    assert found["held_out, mm"] < 0.02
    assert found["driving, mm"] < 0.02
    assert 0.25 * 5 < before["held_out, mm"] < 0.25 * 15
    assert found["Dice"] > 0.9 > 0.8 > before["Dice"]
    for place in ("10-30 mm", "from 10 mm"):
        assert found[f"strain, {place}"] == pytest.approx(math.sqrt(3) * (1.25**2 - 1) / 2, rel=1e-3)
        assert found[f"log det J, {place}"] == pytest.approx(3 * math.log(1.25), rel=1e-3)
        assert before[f"strain, {place}"] == 0


def test_points_cost_their_square_and_far_ones_less(regions, case):
    loss = regions.PointLoss(lambda pred, batch: torch.tensor(1.0), 2.0, limit_mm=100.0)
    batch = {f"points_{key}": case[f"driving_{key}"] for key in regions.SIDES} | {"extent": case["extent"]}
    pred = {"ddf": torch.zeros(1, 3, *case["size"])}
    distance = (batch["points_fixed"] - batch["points_moving"]) * case["extent"]
    square = float(distance.square().sum(2).mean())
    assert float(loss(pred, batch)) == pytest.approx(1 + 2 * square, rel=1e-3)
    loss.limit_mm = 0.1
    assert float(loss(pred, batch)) < 1 + 0.2 * square


def test_lungs_are_registered_once(regions, lungs, tmp_path, monkeypatch):
    monkeypatch.setattr(regions, "DRIVING", 20)
    command = ["lung", str(tmp_path), "--data", str(lungs), "--iterations", "3"]
    regions.run(command)
    text = (tmp_path / "table.md").read_text()
    for name in ("none", *regions.LUNG_METHODS):
        assert text.count(f"| {name} |") == 1, name
    for name in regions.LUNG_METHODS:
        found, before = (json.loads((tmp_path / "lungs" / f"a {key}.json").read_text()) for key in (name, "none"))
        assert found["driving, mm"] < before["driving, mm"], name
    monkeypatch.setattr(regions, "register_lungs", None)
    regions.run(command)
    assert (tmp_path / "table.md").read_text() == text


def test_missing_data_is_named(regions, tmp_path, capsys):
    with pytest.raises(SystemExit):
        regions.run(["lung", str(tmp_path), "--data", str(tmp_path / "nowhere")])
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("name", speed.MODELS)
def test_seconds_and_memory_of_each_model_are_measured(name, monkeypatch):
    monkeypatch.setattr(speed, "SIZES", {2: [36, 44]})
    threads = torch.get_num_threads()
    found = speed.measure(name, 2)
    torch.set_num_threads(threads)
    assert found.keys() == {"map", "step", "map_mb", "step_mb"}
    assert 0 < found["map"] < found["step"]
