"""Scenes whose metric is known."""

import pytest
import torch

from benchmarks import rdmm_scenes as scenes
from custom_components.fields import jacobian_determinant

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scene():
    return scenes.make_scene(0, 32, motion=1.5)


def test_a_scene_moves_without_folds_by_regions_of_their_own_metric(scene):
    assert scene["regions"].unique().tolist() == [0, 1, 2, 3, 4]
    assert jacobian_determinant(scene["ddf"]).min() > 0.2
    assert 0.8 < scene["ddf"].norm(dim=1).max() < 2
    middle = [float(scene["sigma"][scene["regions"] == label].quantile(q)) for label, q in ((2, 0), (3, 0.5), (1, 1))]
    assert middle == pytest.approx([2, 5, 12], rel=0.25)


def test_the_truth_has_no_error(scene):
    found = scenes.measure_scene(scene, scene)
    assert [found[key] for key in ("error", "error95", "sigma_error", "weight_error")] == [0, 0, 0, 0]
    assert found["dice"] == 1
    away = {**scene, "ddf": scene["ddf"] + torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)}
    found = scenes.measure_scene(scene, away)
    assert found["error"] == pytest.approx(5, abs=1e-4)
    assert found["dice"] < 0.7


def test_scenes_are_measured_once_and_drawn(tmp_path, monkeypatch):
    make = scenes.make_scene
    monkeypatch.setattr(scenes, "make_scene", lambda seed: make(seed, 24))
    monkeypatch.setattr(scenes, "TUNING", (100,))
    command = [str(tmp_path), "--scenes", "1", "--iterations", "2"]
    scenes.main(command)
    text = (tmp_path / "table.md").read_text()
    for name in (*scenes.GLOBAL, scenes.TRUE, scenes.OPTIMISED):
        assert text.count(f"| {name} |") >= 2, name
    assert "nan" not in text
    assert (tmp_path / "regions.png").stat().st_size > 10_000
    monkeypatch.setattr(scenes, "register_scene", None)
    scenes.main(command)
    assert (tmp_path / "table.md").read_text() == text
