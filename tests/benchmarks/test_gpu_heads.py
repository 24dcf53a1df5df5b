"""Pairs on a GPU beside FireANTs: the table, rehearsed on the CPU without FireANTs."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from custom_components.data.phantoms import write_phantom_scans
from custom_components.space import write_affine_transform

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_pair_is_registered_and_measured(tmp_path):
    listed = Path(write_phantom_scans(tmp_path / "scans", 4, (32, 32, 32), spacing_mm=2.0))
    pair = json.loads(listed.read_text())["validation_pairs"][0]
    write_affine_transform(tmp_path / "identity.tfm", np.eye(4))
    pair |= {"affine": str(tmp_path / "identity.tfm"), "id": "pair"}
    listed.write_text(json.dumps({"pairs": [pair]}))
    words = [str(listed), str(tmp_path / "table.csv"), "--device", "cpu", "--repeats", "1", "--only"]
    words += ["FireANTs", "voxelmorph, network alone"]
    told = subprocess.check_output([sys.executable, "-m", "benchmarks.gpu_heads", *words], cwd=REPOSITORY, text=True)
    assert "voxelmorph, network alone" in told
    with open(tmp_path / "table.csv", newline="") as file:
        row = list(csv.DictReader(file))[-1]
    assert 0 < float(row["dice_aligned"]) <= 1
    assert 0 < float(row["dice_after"]) <= 1
    assert 0 < float(row["seconds"]) <= float(row["whole_seconds"])
