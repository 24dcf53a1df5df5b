"""Fixtures that several test files of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest
from preparation.cases import write_person


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """A BIDS data set of four people with T1w images, the third of which is damaged, and a table of their ages."""
    root = tmp_path / "bids"
    folders = [write_person(root, k, t2=False) for k in range(1, 5)]
    broken = folders[2] / "sub-03_T1w.nii.gz"
    broken.write_bytes(broken.read_bytes()[:3000])
    rows = [f"sub-{k:02d}\t{20 + k}\t{'FM'[k % 2]}\t{'n/a' if k == 2 else k}\n" for k in range(1, 5)]
    (root / "participants.tsv").write_text("participant_id\tage\tsex\tscore\n" + "".join(rows))
    return root
