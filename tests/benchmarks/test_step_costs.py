"""What a step costs is measured on phantoms, and what has been measured is passed over."""

import json
import sys

import pytest

from benchmarks import step_costs

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_row_has_time_share_and_memory_and_is_measured_once(tmp_path, monkeypatch):
    file = tmp_path / "costs.json"
    monkeypatch.setattr(sys, "argv", ["step_costs", str(file), "--size", "32", "32", "32", "--only", "voxelmorph"])
    step_costs.main()
    (row,) = json.loads(file.read_text())
    assert 0 < row["loader_share"] < 0.5
    assert row["seconds"] > 0
    assert row["kept_gib"] == pytest.approx(0.0652 * 32**3 / (48 * 64 * 64), rel=0.1)  # docs/gpu.md, by voxels
    monkeypatch.setattr(step_costs, "measure", None)
    step_costs.main()
