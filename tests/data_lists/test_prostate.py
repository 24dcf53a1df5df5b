"""The builder of the prostates: a common world, label maps of structures that overlap, the sections."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from custom_components.data.lists import load_list
from data_lists.prostate import build

SIZES = {"moving": (10, 12, 8), "fixed": (8, 10, 9)}


@pytest.fixture
def source(tmp_path):
    """Three people; the headers say nothing, and the third has no landmark."""
    folder = tmp_path / "source"
    folder.mkdir()
    sections = {}
    for i, section in enumerate(("training", "validation", "test")):
        pair = {"subject": f"case_{i}"}
        for side, size in SIZES.items():
            maps = {kind: np.zeros(size, np.uint8) for kind in ("image", "label", "landmarks")}
            maps["image"][2:6] = 100
            maps["label"][2:6, 2:6, 2:6] = 1
            maps["landmarks"][3, 3, 3], maps["landmarks"][6, 6, 6] = 1, 2
            for kind, values in maps.items():
                if i == 2 and kind == "landmarks":
                    continue
                pair[f"{side}_{kind}"] = f"case_{i}_{side}_{kind}.nii.gz"
                nib.save(nib.Nifti1Image(values, np.diag([0.4, 0.4, 0.4, 1])), folder / pair[f"{side}_{kind}"])
        sections[section] = [pair]
    (folder / "datalist.json").write_text(json.dumps(sections))
    return folder / "datalist.json"


def test_both_images_have_one_voxel_size_and_their_centres_at_the_origin(source, tmp_path):
    path = build(str(source), str(tmp_path / "out"), 2.0)
    (pair,) = load_list(path, "training")
    for side, size in SIZES.items():
        image = nib.load(pair[side])
        assert image.header.get_zooms() == (2, 2, 2)
        assert nib.aff2axcodes(image.affine) == ("A", "R", "S")
        centre = image.affine @ [*((np.array(size) - 1) / 2), 1]
        np.testing.assert_allclose(centre[:3], 0, atol=1e-6)


def test_labels_keep_gland_and_landmarks_apart_where_they_overlap(source, tmp_path):
    path = build(str(source), str(tmp_path / "out"))
    (pair,) = load_list(path, "training")
    labels = np.asarray(nib.load(pair["label_fixed"]).dataobj)
    assert sorted(np.unique(labels)) == [0, 1, 3, 4]  # the first landmark inside of the gland, the second outside
    assert np.isin(labels, [1, 3, 5]).sum() == 4**3
    assert labels[3, 3, 3] == 3
    assert labels[6, 6, 6] == 4


def test_what_is_measured_has_whole_glands_and_the_landmarks_that_there_are(source, tmp_path):
    path = build(str(source), str(tmp_path / "out"))
    (pair,), (tested,) = load_list(path, "validation_pairs"), load_list(path, "test")
    assert np.asarray(nib.load(pair["label_moving"]).dataobj).sum() == 4**3
    assert {"landmarks_moving", "landmarks_fixed"} <= set(pair)
    assert "landmarks_fixed" not in tested
    assert set(load_list(path, "validation")[0]) == set(load_list(path, "training")[0])
