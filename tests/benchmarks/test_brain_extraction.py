"""The benchmark of the brain extraction: a table and a picture of the sets that are there."""

from __future__ import annotations

import csv
import json

import nibabel as nib
import numpy as np

from benchmarks.brain_extraction import cases, closed_union, main


def test_a_union_is_closed_and_filled():
    inside = np.zeros((20, 20, 20), bool)
    inside[2:18, 2:18, 2:18] = True
    inside[9:11, 2:12] = False
    inside[14, 14, 14] = False
    closed = closed_union(inside)
    assert closed[14, 14, 14]
    assert closed[9:11, 8, 8].all()
    assert not closed[:2].any()


def test_sets_that_are_absent_are_left_out(tmp_path):
    assert list(cases(tmp_path)) == []


def test_it_writes_a_table_and_a_picture(tmp_path):
    folder = tmp_path / "brain_slabs"
    folder.mkdir()
    generator = np.random.default_rng(0)
    images = {"i": 200 * generator.random((40, 4, 44)), "l": generator.integers(0, 5, (40, 4, 44))}
    for name, data in images.items():
        nib.save(nib.Nifti1Image(data.astype(np.uint8), np.eye(4)), folder / f"{name}.nii.gz")
    (folder / "datalist.json").write_text(json.dumps({"validation": [{"image": "i.nii.gz", "label": "l.nii.gz"}]}))
    main([str(tmp_path), "--output", str(tmp_path / "out")])
    (row,) = list(csv.DictReader((tmp_path / "out" / "brain_extraction.csv").open()))
    assert 0 <= float(row["mask_dice"]) <= 1
    assert float(row["network_s"]) > 0
    assert (tmp_path / "out" / "brain_extraction.png").stat().st_size > 1000
