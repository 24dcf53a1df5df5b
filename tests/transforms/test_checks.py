"""Label maps are checked."""

import functools

import pytest
import torch

from custom_components.data.phantoms import phantom_pair
from custom_components.transforms.checks import CheckLabelsd

SIZES = [(33, 38), (21, 24, 19)]


@functools.cache
def labels_of(size, side: str = "moving") -> torch.Tensor:
    """Two phantoms' label maps, int16, ids 0 to 4, all present; not to be changed in place."""
    return phantom_pair(size, seed=2, batch=2)[f"label_{side}"]


KNOWN = [0, 1, 2, 3, 4, 5, 8, 500]


def test_known_labels_pass_unchanged(table):
    data = {"label": labels_of(SIZES[0])[0], "name": "x"}
    for known in (table, str(table), range(5), KNOWN):
        assert CheckLabelsd("label", known)(data) == data


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 6, 2], r"/a/b\.nii: label ids \[6\] are not in .*labels\.csv"),
        ([0, -1, 2], r"/a/b\.nii: label ids \[-1\] are not in"),
        ([0, 531, 2], r"/a/b\.nii: label ids \[531\] are not in"),
        ([0.0, 1.5, 2.0], r"/a/b\.nii: label ids \[1\.5\] are not in"),
        ([0.0, float("nan"), 2.0], r"/a/b\.nii: label ids \[nan\] are not in"),
        ([0, 0, 0], r"/a/b\.nii: the label map holds only one label, \[0\]"),
        ([500, 500, 500], r"/a/b\.nii: the label map holds only one label, \[500\]"),
    ],
)
def test_wrong_label_maps_are_named_with_their_file(table, labels, message):
    with pytest.raises(ValueError, match=message):
        CheckLabelsd("label", table)({"label": torch.tensor([labels]), "label_path": "/a/b.nii"})


def test_label_map_without_a_file_is_named_by_its_key():
    with pytest.raises(ValueError, match=r"^label: label ids \[9\] are not in the configured labels"):
        CheckLabelsd("label", [0, 1])({"label": torch.tensor([[0, 9]])})
