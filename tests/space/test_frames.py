"""A NIfTI header places its voxels where ITK takes them to be, and the log says when that is not obvious."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from custom_components.space import load_image
from custom_components.space.frames import is_sheared, nifti_frame

SIZE = (3, 4, 5)
CODES = st.integers(0, 4)
VOXELS = st.sampled_from([(3.0, 3.0, 3.0), (1.0, 2.0, 0.7), (0.002, 0.001, 0.001), (0.0005, 0.0005, 0.0005)])


def turned(angles: tuple[float, ...], voxels: tuple[float, ...], origin: float, shear: float = 0.0) -> np.ndarray:
    generator = torch.zeros(3, 3)
    generator[0, 1], generator[0, 2], generator[1, 2] = angles
    affine = np.eye(4)
    affine[:3, :3] = torch.linalg.matrix_exp(generator - generator.T).numpy() @ np.diag(voxels)
    affine[:3, 3] = [origin, -origin / 2, origin + 1]
    affine[0, 1] += shear * voxels[1]
    return affine


def header_of(
    path: Path, sform: np.ndarray, sform_code: int, qform: np.ndarray, qform_code: int, units: int = 2
) -> nib.Nifti1Header:
    image = nib.Nifti1Image(np.arange(60, dtype=np.uint8).reshape(SIZE), np.eye(4))
    image.set_qform(qform, qform_code)
    image.set_sform(sform, sform_code)
    image.header["xyzt_units"] = units
    image.to_filename(path)
    return nib.load(path).header


def itk_affine(path: Path) -> np.ndarray | None:
    itk = pytest.importorskip("itk")
    itk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = itk.imread(str(path))
    except RuntimeError:
        return None
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(itk.spacing(image))
    affine[:3, 3] = np.array(itk.origin(image))
    return np.diag([-1.0, -1, 1, 1]) @ affine


ANGLES = st.sampled_from([(0.0, 0.0, 0.0), (0.0, 0.0, np.pi / 2), (0.3, -0.2, 0.1), (2.0, 1.0, -0.5)])
SHEARS = st.sampled_from([0.0, 0.0, 0.0, 0.01, 0.3])


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CODES, CODES, ANGLES, ANGLES, VOXELS, VOXELS, SHEARS, st.sampled_from([0, 1, 2, 3, 10]), st.booleans())
def test_any_header_is_placed_as_itk_places_it(
    tmp_path: Path, sform_code, qform_code, first, second, sform_voxels, qform_voxels, shear, units, same
) -> None:
    sform = turned(first, sform_voxels, 10.0, shear)
    qform = turned(first, sform_voxels, 10.0) if same else turned(second, qform_voxels, -20.0)
    header = header_of(tmp_path / "a.nii", sform, sform_code, qform, qform_code, units)
    theirs = itk_affine(tmp_path / "a.nii")
    if theirs is None:
        with pytest.raises(ValueError, match="sheared"):
            nifti_frame(header, "a.nii")
        return
    ours = nifti_frame(header, "a.nii").affine
    corners = np.array([[0, 0, 0, 1], [*np.array(SIZE) - 1, 1]]).T
    voxel = np.linalg.norm(theirs[:3, :3], axis=0).min()
    np.testing.assert_allclose(ours @ corners, theirs @ corners, atol=2e-2 * voxel, rtol=1e-5)


def test_disagreeing_frames_are_said_once_and_the_qform_is_taken(tmp_path: Path, caplog) -> None:
    sform, qform = turned((0, 0, 0), (3, 3, 3), 10.0), turned((0.3, 0, 0), (3, 3, 3), 20.0)
    header_of(tmp_path / "a.nii", sform, 2, qform, 1)
    np.testing.assert_allclose(load_image(tmp_path / "a.nii").affine, qform, atol=1e-5)
    assert "qform and sform disagree by up to" in caplog.text
    caplog.clear()
    header_of(tmp_path / "b.nii", sform, 1, qform, 1)
    np.testing.assert_allclose(load_image(tmp_path / "b.nii").affine, sform, atol=1e-5)
    assert "taken is the sform" in caplog.text


def test_frames_that_differ_by_rounding_are_not_worth_a_word(tmp_path: Path, caplog) -> None:
    frame = turned((0.3, -0.2, 0.1), (1, 1, 1), 50.0)
    header_of(tmp_path / "a.nii", np.round(frame, 4), 2, frame, 1)
    load_image(tmp_path / "a.nii")
    assert caplog.text == ""


def test_units_and_voxel_sizes_that_disagree_are_said(tmp_path: Path, caplog) -> None:
    frame = turned((0, 0, 0), (30, 30, 30), 10.0)
    header_of(tmp_path / "a.nii", frame, 1, frame, 1, units=3)
    np.testing.assert_allclose(load_image(tmp_path / "a.nii").grid.spacing, 0.03)
    assert "microns" in caplog.text
    header = header_of(tmp_path / "b.nii", frame, 1, frame, 1)
    header["pixdim"][1:4] = 1
    found = nifti_frame(header, "b.nii")
    np.testing.assert_allclose(np.diag(found.affine)[:3], 1)
    assert "taken is pixdim" in found.notes[-1]


def test_a_sheared_frame_of_any_format_is_refused_in_one_line(tmp_path: Path) -> None:
    sheared = turned((0, 0, 0), (2, 2, 2), 10.0, shear=0.1)
    assert is_sheared(sheared)
    header_of(tmp_path / "a.nii", sheared, 2, sheared, 0)
    nib.save(nib.MGHImage(np.arange(60, dtype=np.uint8).reshape(SIZE), sheared), tmp_path / "a.mgz")
    for name in ("a.nii", "a.mgz"):
        with pytest.raises(ValueError, match=rf"{name}: expected voxel axes at right angles"):
            load_image(tmp_path / name)
