"""What the comparison of dialects says of the readers that are here."""

from __future__ import annotations

import sys

import pytest

from benchmarks import dialects


@pytest.mark.slow
def test_readers_that_are_here_take_points_where_we_mean_them(tmp_path):
    pytest.importorskip("itk")
    rows = dialects.compare(tmp_path, sys.executable)
    found = [row for row in rows if "voxels" in row]
    assert {row["kind"] for row in found if row["tool"] == "ITK"} == {"itk.tfm", "itk.h5", "itk.nii.gz"}
    assert max(row["voxels"] for row in found) < 1e-3
    assert "| itk.h5 |" in dialects.table(rows)
