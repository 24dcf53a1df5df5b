"""The experiments with templates: shapes of known attributes, trainings that are stopped or shared by processes."""

import json

import pytest
import torch

from benchmarks import conditional_atlas
from benchmarks.conditional_atlas_attributes import moments
from benchmarks.conditional_atlas_data import HELD_OUT, ellipse, make_shapes, within
from benchmarks.conditional_atlas_tables import templates_table
from benchmarks.conditional_atlas_templates import majority

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("size", "elongation"), [(13.0, 0.85), (16.0, 1.0), (20.0, 1.3)])
def test_moments_recover_size_and_elongation_of_an_ellipse(size, elongation):
    found = moments(ellipse(size, elongation))
    assert found[0] == pytest.approx(size, rel=0.04)
    assert found[1] == pytest.approx(elongation, rel=0.04)


def test_shapes_of_held_out_values_are_not_trained(tmp_path):
    make_shapes(tmp_path)
    sections = json.loads((tmp_path / "shapes.json").read_text())
    items = sections["training"] + sections["validation"]
    assert len(items) < len(list((tmp_path / "shapes").iterdir())) == 250
    assert not any(within((item["size"] - 10) / 3, HELD_OUT["size"]) for item in items)
    assert not any(within(item["elongation"], HELD_OUT["elongation"]) for item in items)
    shuffled = json.loads((tmp_path / "shapes_shuffled.json").read_text())
    mixed = shuffled["training"] + shuffled["validation"]
    assert [item["image"] for item in mixed] == [item["image"] for item in items]
    assert sorted(item["size"] for item in mixed) == sorted(item["size"] for item in items)
    assert [item["size"] for item in mixed] != [item["size"] for item in items]


def test_majority_is_the_most_frequent_label():
    labels = torch.tensor([[1, 2, 0], [1, 3, 0], [4, 3, 0]]).view(3, 1, 1, 3)
    assert majority(labels).flatten().tolist() == [1, 3, 0]


@pytest.mark.parametrize(
    ("name", "stopped", "batch", "overlays"),
    [("brains", [False], 4, 0), ("brains_stopped", [True, False], 4, 0), ("brains_processes", [False], 2, 1)],
)
def test_a_variant_is_trained_whole_stopped_or_by_two_processes(tmp_path, monkeypatch, name, stopped, batch, overlays):
    calls = []
    monkeypatch.setattr(conditional_atlas, "train", lambda *args, **options: calls.append((args, options)))
    conditional_atlas.run(name, tmp_path)
    assert ["stop" in options for _, options in calls] == stopped
    settings = calls[0][0][3]
    assert settings.get("batch_size", calls[0][1]["batch_size"]) == batch
    assert len(calls[0][1].get("overlays", [])) == overlays


def test_epochs_done_are_the_rows_of_the_curve(tmp_path):
    assert conditional_atlas.epochs_done(tmp_path) == 0
    (tmp_path / "curve.csv").write_text("epoch,loss\n1,0.3\n2,0.2\n")
    assert conditional_atlas.epochs_done(tmp_path) == 2


def test_table_has_empty_cells_where_nothing_was_measured(tmp_path):
    text = templates_table("brains", tmp_path, {"brains": {"network": {"sharpness": 1.5}}})
    assert text.splitlines()[2].startswith("| brains, network | 1.500 |  |")
