"""The benchmark of `prepare`: what it renders, and that a killed run goes on."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from benchmarks import prepare as bench


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """Three label maps of one box in another."""
    folder = tmp_path / "maps"
    folder.mkdir()
    labels = np.zeros((24, 28, 20), np.int16)
    labels[4:20, 4:24, 4:16], labels[8:14, 8:16, 8:12] = 2, 10
    for k in range(3):
        nib.save(nib.Nifti1Image(np.roll(labels, k, 0), np.diag([6.0, 6, 6, 1])), folder / f"{k}.nii.gz")
    rows = ["id,name,mirror_id,t1_prior_mean,t1_prior_mean_spread", "0,out,0,5,5", "2,wm,2,160,10", "10,th,10,110,10"]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_people_are_rendered_and_one_is_broken(maps: Path, tmp_path: Path) -> None:
    bench.write_damaged(maps, tmp_path / "bids", 3)
    t1, t2 = (nib.load(tmp_path / "bids" / "sub-01" / "anat" / f"sub-01_{c}w.nii.gz") for c in ("T1", "T2"))
    assert np.allclose(t2.affine[:3, 3] - t1.affine[:3, 3], bench.OFF_MM)
    inside = np.asarray(t1.dataobj)[10:12, 10:14, 9:11]
    assert inside.std() < 0.2 * inside.mean()
    with pytest.raises(ValueError, match="expected 4 label maps, got 3"):
        bench.write_damaged(maps, tmp_path / "more", 4)


def test_a_run_is_timed_and_killed(maps: Path, tmp_path: Path) -> None:
    row = bench.prepare(maps, tmp_path / "out", 1, kill_after=0.2)
    assert row["exit"] == -9
    assert row["done"] == 0
    assert 0.2 < row["seconds"] < 20
