"""Images that do not overlap are refused, spacings that do not fit are replaced, NaN is background."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from space.cases import noise, save
from support import ROTATION

from custom_components.notices import collecting
from custom_components.space import load_image, load_labels
from custom_components.space.fit import MIN_VOXELS, check_overlap, fitting_grid
from custom_components.transforms.load import LoadPaird
from custom_components.transforms.scan import LoadScand


def placed(tmp_path, name, size, spacing, center, turn=None):
    """An image of noise about a world point."""
    linear = (np.eye(3) if turn is None else turn) @ np.diag(spacing)
    affine = nib.affines.from_matvec(linear, np.array(center) - linear @ (np.array(size) - 1) / 2)
    return load_image(save(tmp_path / f"{name}.nii.gz", noise(*size), affine))


@pytest.fixture
def fixed(tmp_path):
    return placed(tmp_path, "fixed", (20, 20, 20), (2, 2, 2), (0, 0, 0))


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("distance", [-600, -41, 41, 600])
def test_images_that_share_no_point_are_refused_with_their_distance(tmp_path, fixed, axis, distance):
    moving = placed(tmp_path, "moving", (10, 20, 30), (4, 2, 1), np.eye(3)[axis] * distance)
    with pytest.raises(ValueError, match=f"moving.*does not overlap with .*fixed.* {abs(distance)} mm apart"):
        check_overlap(fixed, moving, np.eye(4), "none")


def test_images_that_share_little_are_warned_of(tmp_path, fixed):
    moving = placed(tmp_path, "moving", (20, 20, 20), (2, 2, 2), (38, 0, 0))
    with collecting() as warnings:
        check_overlap(fixed, moving, np.eye(4), "none")
    assert len(warnings) == 1
    assert "only 5 % overlap" in warnings[0]


@pytest.mark.parametrize("size", [(4, 4, 4), (200, 200, 200)])
def test_a_part_of_a_larger_image_overlaps(tmp_path, fixed, size):
    moving = placed(tmp_path, "moving", size, (2, 2, 2), (5, -5, 5), np.linalg.svd(ROTATION)[0])
    with collecting() as warnings:
        check_overlap(fixed, moving, np.eye(4), "none")
    assert warnings == []


def test_it_is_the_affine_transform_that_makes_them_overlap(tmp_path, fixed):
    moving = placed(tmp_path, "moving", (20, 20, 20), (2, 2, 2), (600, 0, 0))
    shift = nib.affines.from_matvec(np.eye(3), [600, 0, 0])
    check_overlap(fixed, moving, shift, "itk")
    with pytest.raises(ValueError, match=r"the affine transform \(shift.tfm\) places them: the centres are 1200 mm"):
        check_overlap(fixed, moving, np.linalg.inv(shift), "shift.tfm")


def test_loading_a_pair_refuses_what_does_not_overlap(tmp_path, fixed):
    moving = placed(tmp_path, "moving", (10, 10, 10), (2, 2, 2), (0, 0, 600))
    with pytest.raises(ValueError, match="does not overlap"):
        LoadPaird()({"moving": moving.path, "fixed": fixed.path})


def test_loading_a_pair_refuses_an_image_that_shows_nothing_there(tmp_path, fixed):
    array = np.zeros((40, 20, 20), np.float32)
    array[-3:] = 1
    path = save(tmp_path / "m.nii.gz", array, fixed.affine)
    with pytest.raises(ValueError, match=r"m.nii.gz: nothing of it shows on the model grid"):
        LoadPaird()({"moving": path, "fixed": fixed.path})


@pytest.mark.parametrize("matrix", [np.diag([np.nan, 1, 1, 1]), np.diag([0.0, 1, 1, 1])])
def test_an_affine_without_inverse_is_refused(fixed, matrix):
    load = LoadPaird(affine="learned", aligner=lambda fixed, moving: matrix)
    with pytest.raises(ValueError, match=r"affine transform \(learned\) with an inverse"):
        load({"moving": fixed.path, "fixed": fixed.path})


# Spacings


def test_a_spacing_too_coarse_for_the_image_is_replaced_and_said(tmp_path):
    mouse = placed(tmp_path, "mouse", (80, 100, 90), (0.1, 0.1, 0.1), (0, 0, 0))
    with collecting() as warnings:
        grid = fitting_grid(mouse, 2.0, fit=True)
    assert max(grid.size) >= 95
    assert np.allclose(grid.spacing, 0.104)
    assert "2 mm would leave 5 x 6 x 6 voxels; 0.104 mm was taken" in warnings[0]


def test_a_spacing_that_was_asked_for_is_kept(tmp_path):
    mouse = placed(tmp_path, "mouse", (80, 100, 90), (0.1, 0.1, 0.1), (0, 0, 0))
    with collecting() as warnings:
        grid = fitting_grid(mouse, 2.0, fit=False)
    assert grid.size == (5, 6, 6)
    assert "only 5 x 6 x 6 voxels" in warnings[0]
    with pytest.raises(ValueError, match=r"a spacing of 1e\+09 mm is larger than the image \(9.9 mm\)"):
        fitting_grid(mouse, 1e9, fit=False)


@given(st.floats(1e-3, 100), st.floats(0.5, 1000), st.lists(st.integers(2, 60), min_size=3, max_size=3))
def test_a_grid_is_never_coarser_than_need_be(tmp_path_factory, native, ratio, size):
    spacing = native * ratio
    volume = load_image(save(tmp_path_factory.mktemp("any") / "a.nii", noise(*size), np.diag([*[native] * 3, 1])))
    with collecting() as warnings:
        grid = fitting_grid(volume, spacing, fit=True)
    assert max(grid.size) >= min(MIN_VOXELS, max(size))
    assert bool(warnings) == (not np.allclose(grid.spacing, spacing))


# Values


@pytest.mark.parametrize("read", [load_image, load_labels])
@pytest.mark.parametrize(("least", "background"), [(0, 0), (1, 0), (-5, -5)])
def test_nan_is_background_and_said(tmp_path, read, least, background):
    array = np.arange(least, least + 27, dtype=np.float32).reshape(3, 3, 3)
    array[2] = np.nan
    with collecting() as warnings:
        volume = read(save(tmp_path / "nan.nii.gz", array))
    assert (volume.data[0, 2] == background).all()
    assert (volume.data[0, :2].numpy() == array[:2]).all()
    assert warnings == [f"{tmp_path / 'nan.nii.gz'}: 9 voxels are NaN (33 %) and were read as {background}"]


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e300, -1e300])
def test_values_that_no_image_has_are_refused(tmp_path, value):
    array = np.zeros((3, 3, 3))
    array[1, 1, 1] = value
    with pytest.raises(ValueError, match=r"odd.nii: expected values below 1e\+30"):
        load_image(save(tmp_path / "odd.nii", array))


@pytest.mark.parametrize(
    ("spacing", "size", "reason"),
    [
        (1e9, [16, 16, 16], "is larger than the image .* give a smaller --spacing"),
        (1e-9, [16, 16, 16], "less than a voxel .* give a larger --spacing"),
        (2.0, [100000, 100000, 100000], "needs about .* GiB .* give a smaller --size"),
    ],
)
def test_a_training_grid_that_holds_nothing_or_too_much_is_refused(fixed, spacing, size, reason):
    with pytest.raises(ValueError, match=f"fixed.nii.gz: .*{reason}"):
        LoadScand(spacing, size)({"image": fixed.path})


def test_a_training_grid_may_be_larger_than_the_image_or_a_part_of_it(fixed):
    for spacing, size in ((8.0, [16, 16, 16]), (0.5, [8, 8, 8])):
        assert LoadScand(spacing, size)({"image": fixed.path})["image"].shape == (1, *size)
