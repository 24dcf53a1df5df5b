"""Outside the moving image's field of view nothing is compared: a mask says where it has data."""

import nibabel as nib
import numpy as np
import pytest
import torch
from support import blobs, oriented

from custom_components.transforms.load import LoadPaird

SIZES = [(40, 36), (28, 24, 26)]
both = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])


def pair(folder, size, kept, value=100.0):
    """Two images of one frame; the moving one has only the first `kept` voxels of the first axis."""
    affine = np.diag([2.0] * len(size) + [1.0] * (4 - len(size)))
    image = np.full(size, value, np.float32) + np.random.default_rng(0).uniform(0, 50, size).astype(np.float32)
    nib.save(nib.Nifti1Image(image, affine), folder / "fixed.nii.gz")
    nib.save(nib.Nifti1Image(image[:kept], affine), folder / "moving.nii.gz")
    return {role: str(folder / f"{role}.nii.gz") for role in ("moving", "fixed")}


@both
def test_a_mask_says_where_a_smaller_moving_image_has_data_but_for_its_rim(tmp_path, size):
    item = LoadPaird()(pair(tmp_path, size, 15))
    assert item["mask_moving"].shape == (1, *size)
    along = item["mask_moving"].flatten(2)[0].amin(1)
    assert along.tolist() == [1.0] * 14 + [0.0] * (size[0] - 14)
    assert item["mask_moving"].flatten(2)[0].amax(1).tolist() == along.tolist()


@both
def test_an_image_that_covers_the_other_gets_no_mask(tmp_path, size):
    assert "mask_moving" not in LoadPaird()(pair(tmp_path, size, size[0]))


def test_missing_background_needs_no_mask(tmp_path):
    size = SIZES[1]
    affine = oriented("RAS", size, (2, 2, 2), oblique=False)
    image = blobs(size, affine, 0.0)
    image[14:] = 0
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "fixed.nii.gz")
    nib.save(nib.Nifti1Image(image[:20], affine), tmp_path / "moving.nii.gz")
    item = LoadPaird()({role: str(tmp_path / f"{role}.nii.gz") for role in ("moving", "fixed")})
    assert "mask_moving" not in item


@both
def test_the_users_mask_stays_within_the_field_of_view(tmp_path, size):
    item = pair(tmp_path, size, 15)
    mask = np.zeros((15, *size[1:]), np.uint8)
    mask[10:] = 1
    nib.save(nib.Nifti1Image(mask, np.diag([2.0] * len(size) + [1.0] * (4 - len(size)))), tmp_path / "mask.nii.gz")
    loaded = LoadPaird()({**item, "mask_moving": str(tmp_path / "mask.nii.gz")})
    along = loaded["mask_moving"].flatten(2)[0].amin(1)
    assert torch.nonzero(along).flatten().tolist() == [10, 11, 12, 13]
