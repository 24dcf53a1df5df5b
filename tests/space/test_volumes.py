"""Images are read in any orientation and format, or refused in one sentence."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from space.cases import OBLIQUE, noise, save, write_dicom

from custom_components.space import load_grid, load_image, load_labels, register_affine, write_composite_transform
from custom_components.space.volumes import spatial_dims_of


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "mgz"])
def test_every_format_of_nibabel_keeps_values_and_affine(tmp_path: Path, ending: str) -> None:
    array = noise(5, 6, 7)
    image = nib.MGHImage(array, OBLIQUE) if ending == "mgz" else nib.Nifti1Image(array, OBLIQUE)
    nib.save(image, tmp_path / f"a.{ending}")
    volume = load_image(tmp_path / f"a.{ending}")
    assert volume.data.dtype == torch.float32
    np.testing.assert_allclose(volume.data[0], array, atol=1e-6)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_itk_formats_are_converted_to_ras(tmp_path: Path, ending: str) -> None:
    itk = pytest.importorskip("itk")
    save(tmp_path / "a.nii.gz", noise(5, 6, 7), OBLIQUE)
    itk.imwrite(itk.imread(str(tmp_path / "a.nii.gz")), str(tmp_path / f"a.{ending}"))
    volume, expected = load_image(tmp_path / f"a.{ending}"), load_image(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(volume.data, expected.data)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-4)


def test_bad_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    whole = gzip.compress(nib.Nifti1Image(noise(16, 16, 16), np.eye(4)).to_bytes())
    (tmp_path / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.nii").write_text("not an image")
    infinite = noise(4, 4, 4)
    infinite[1, 1, 1] = np.inf
    cases = {
        "truncated.nii.gz": "truncated or damaged",
        "text.nii": "truncated or damaged",
        save(tmp_path / "four.nii.gz", noise(4, 4, 4, 2)): r"2-D or 3-D image.*\(4, 4, 4, 2\)",
        save(tmp_path / "complex.nii.gz", noise(4, 4, 4).astype(np.complex64)): "grey-value",
        save(tmp_path / "vectors.nii.gz", noise(4, 4, 4, 1, 3)): r"one channel.*\(4, 4, 4, 1, 3\)",
        save(tmp_path / "line.nii.gz", noise(1, 4, 1)): "two axes of several voxels",
        save(tmp_path / "infinite.nii.gz", infinite): "expected values below 1e\\+30, got inf",
        save(tmp_path / "huge.nii.gz", 1e300 * noise(4, 4, 4).astype("f8")): r"below 1e\+30, got .*e\+299",
        save(tmp_path / "nan.nii.gz", np.full((4, 4, 4), np.nan)): "NaN in every voxel",
        save(tmp_path / "constant.nii.gz", np.ones((4, 4, 4), np.float32)): "constant 1",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            load_image(tmp_path / name)
        assert name.rpartition("/")[2] in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"none\.nii"):
        load_image(tmp_path / "none.nii")
    save(tmp_path / "half.nii.gz", np.full((4, 4, 4), 0.5, np.float32))
    with pytest.raises(ValueError, match="label map of integers"):
        load_labels(tmp_path / "half.nii.gz")


def test_colours_become_their_luminance_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rgb = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["G"][0, 0, 0] = 100
    volume = load_image(save(tmp_path / "rgb.nii.gz", rgb))
    assert volume.data.shape == (1, 4, 5, 6)
    assert volume.data[0, 0, 0, 0] == pytest.approx(71.54)
    assert "luminance" in caplog.text


def test_a_nifti_series_of_three_frames_of_bytes_is_no_colour_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one channel and one frame, got shape \(4, 5, 6, 3\)"):
        load_image(save(tmp_path / "series.nii.gz", np.zeros((4, 5, 6, 3), np.uint8)))


def test_affine_that_cannot_be_inverted_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(4, 4, 4), np.eye(4))
    image.set_qform(None, 0)
    image.header["sform_code"] = 1
    image.header["srow_z"] = 0
    image.to_filename(tmp_path / "flat.nii")
    raw = bytearray((tmp_path / "flat.nii").read_bytes())
    raw[312:328] = np.zeros(4, "<f4").tobytes()  # srow_z
    (tmp_path / "flat.nii").write_bytes(raw)
    with pytest.raises(ValueError, match="invertible affine"):
        load_image(tmp_path / "flat.nii")


def test_last_axis_of_one_frame_is_dropped(tmp_path: Path) -> None:
    assert load_image(save(tmp_path / "a.nii.gz", noise(4, 5, 6, 1))).data.shape == (1, 4, 5, 6)


def test_labels_keep_integers(tmp_path: Path) -> None:
    values = np.array([0, 3, 40000, 1], dtype=np.int32).reshape(2, 2, 1).repeat(2, axis=2)
    assert load_labels(save(tmp_path / "a.nii.gz", values)).data.dtype == torch.int32
    assert load_labels(save(tmp_path / "b.nii.gz", (values % 5).astype(np.float32))).data.dtype == torch.int16


def test_absent_frame_is_read_as_itk_does_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = nib.Nifti1Image(noise(4, 5, 6), None)
    image.header.set_zooms((2, 3, 4))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "a.nii.gz")
    for _ in range(2):
        volume = load_image(tmp_path / "a.nii.gz")
    assert not volume.has_frame
    assert [r.message for r in caplog.records if "no world frame" in r.message].__len__() == 1
    np.testing.assert_array_equal(volume.affine, np.diag([-2.0, -3, 4, 1]))


def test_a_slice_of_any_world_plane_is_two_dimensional(tmp_path: Path) -> None:
    flat = load_image(save(tmp_path / "axial.nii.gz", noise(6, 5), np.diag([-2.0, -3, 1, 1])))
    np.testing.assert_array_equal(flat.affine, np.diag([-2.0, -3, 1]))
    coronal = np.array([[0.0, -2, 0, 7], [0, 0, 1, 50], [3, 0, 0, -4], [0, 0, 0, 1]])  # axes S, L
    flat = load_image(save(tmp_path / "coronal.nii.gz", noise(6, 5, 1), coronal))
    np.testing.assert_allclose(flat.affine, [[0, -2, 7], [3, 0, -4], [0, 0, 1]])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_along_any_axis_is_two_dimensional_and_keeps_its_place(tmp_path: Path, axis: int) -> None:
    size = [6, 5, 4]
    size[axis] = 1
    for name, affine in (("straight", np.diag([-2.0, -3, 1, 1])), ("oblique", OBLIQUE)):
        path = save(tmp_path / f"{name}.nii.gz", noise(*size), affine)
        flat = load_image(path)
        assert spatial_dims_of(path) == 2
        assert flat.is_slice
        assert flat.grid.size == tuple(n for n in size if n > 1)
        ends = np.array([[0, 0, 1], [*np.array(flat.grid.size) - 1, 1.0]]).T
        in_plane = (flat.affine @ ends)[:2]
        world = flat.frame @ [*in_plane, [0, 0], [1, 1]]
        np.testing.assert_allclose(world.T, np.array([[0, 0, 0, 1], [*np.array(size) - 1, 1]]) @ affine.T, atol=1e-5)


def test_a_dicom_folder_is_one_image(tmp_path: Path) -> None:
    itk = pytest.importorskip("itk")
    voxels = (1000 * noise(5, 6, 7)).astype(np.int16)
    save(tmp_path / "a.nii.gz", voxels, OBLIQUE)
    write_dicom(itk, str(tmp_path / "a.nii.gz"), tmp_path / "dcm", "1.2.3")
    volume, expected = load_image(tmp_path / "dcm"), load_image(tmp_path / "a.nii.gz")
    assert spatial_dims_of(tmp_path / "dcm") == 3
    np.testing.assert_array_equal(volume.data, expected.data)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-3)
    write_dicom(itk, str(tmp_path / "a.nii.gz"), tmp_path / "dcm", "1.2.4")
    with pytest.raises(ValueError, match="one DICOM series, found 2"):
        load_image(tmp_path / "dcm")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found no DICOM file"):
        load_image(tmp_path / "empty")


@pytest.mark.parametrize("kinds", ["list domain domain domain", "domain domain domain list"])
def test_an_nrrd_with_a_list_axis_of_one_is_an_image(tmp_path: Path, kinds: str) -> None:
    pytest.importorskip("itk")
    array = noise(5, 6, 7)
    directions = "(1,0,0) (0,2,0) (0,0,3)"
    sizes, where = ("1 5 6 7", f"none {directions}") if kinds.startswith("list") else ("5 6 7 1", f"{directions} none")
    head = f"NRRD0005\ntype: float\ndimension: 4\nspace: left-posterior-superior\nsizes: {sizes}\nkinds: {kinds}\n"
    head += f"space directions: {where}\nendian: little\nencoding: raw\nspace origin: (5,6,7)\n\n"
    (tmp_path / "a.nrrd").write_bytes(head.encode() + array.astype("<f4").tobytes(order="F"))
    volume = load_image(tmp_path / "a.nrrd")
    np.testing.assert_allclose(volume.data[0], array)
    np.testing.assert_allclose(volume.affine, [[-1, 0, 0, -5], [0, -2, 0, -6], [0, 0, 3, 7], [0, 0, 0, 1]])


def test_missing_itk_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "itk", None)
    volume = load_image(save(tmp_path / "a.nii.gz", noise(8, 8, 8)))
    with pytest.raises(ImportError, match=r"morphzoo\[demo\]"):
        register_affine(volume, volume, engine="itk")
    assert not write_composite_transform(tmp_path / "t.h5", [np.eye(4)])


@pytest.mark.parametrize("top", [3, 198, 2035, 70000])
def test_labels_stored_with_a_scale_factor_or_as_floats_are_the_integers_they_mean(tmp_path: Path, top: int) -> None:
    labels = np.random.default_rng(0).integers(0, top + 1, (4, 5, 6))
    scaled = nib.Nifti1Image(labels.astype(np.float64), np.eye(4))
    scaled.set_data_dtype(np.int32)  # nibabel chooses a scale factor that fills the type's range
    nib.save(scaled, tmp_path / "scaled.nii")
    save(tmp_path / "float.nii", labels.astype(np.float32))
    assert nib.load(tmp_path / "scaled.nii").dataobj.slope != 1
    for name in ("scaled.nii", "float.nii"):
        volume = load_labels(tmp_path / name)
        assert np.array_equal(volume.data[0], labels)
        assert volume.file_dtype == (np.int16 if top < 2**15 else np.int32)


def test_where_an_image_lies_is_known_though_its_voxels_are_blank_or_colours(tmp_path: Path) -> None:
    rgb = np.zeros((5, 6, 7), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    for array in (np.zeros((5, 6, 7), np.float32), np.full((5, 6, 7, 3), np.nan, np.float32), rgb):
        grid = load_grid(save(tmp_path / "a.nii.gz", array, OBLIQUE)).grid
        assert grid.size == (5, 6, 7)
        np.testing.assert_allclose(grid.affine, OBLIQUE, atol=1e-6)
