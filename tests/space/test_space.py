"""Physical space: reading, grids, one-step resampling, ITK files, affine pre-alignment."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from custom_components.fields import identity_grid
from custom_components.space import (
    DisplacementField,
    Grid,
    canonical_grid,
    fixed_size_grid,
    load_image,
    load_labels,
    model_grid,
    publish_together,
    read_affine_transform,
    read_displacement_field,
    read_transform,
    register_affine,
    resample,
    transform_points_world,
    voxel_map,
    write_affine_transform,
    write_composite_transform,
    write_displacement_field,
    write_image,
)

OBLIQUE = nib.affines.from_matvec(
    np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0, 0, 1.0]]) @ np.diag([1.5, 2.0, 2.5]), [5.0, -7.0, 3.0]
)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> str:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return str(path)


def noise(*size: int) -> np.ndarray:
    return np.random.default_rng(0).random(size).astype(np.float32)


def world_points(grid: Grid) -> np.ndarray:
    index = identity_grid(grid.size, dtype=torch.float64).flatten(1).T.numpy()
    return index @ grid.affine[:-1, :-1].T + grid.affine[:-1, -1]


# Reading


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
    rgb = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    broken = noise(4, 4, 4)
    broken[1, 1, 1] = np.nan
    cases = {
        "truncated.nii.gz": "truncated or damaged",
        "text.nii": "truncated or damaged",
        save(tmp_path / "four.nii.gz", noise(4, 4, 4, 2)): r"2-D or 3-D image.*\(4, 4, 4, 2\)",
        save(tmp_path / "rgb.nii.gz", rgb): "grey-value",
        save(tmp_path / "nan.nii.gz", broken): "finite values, got 1 NaN",
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


# Grids


def test_model_grid_keeps_the_image_grid_by_default() -> None:
    affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt("LIA"), (5, 6, 7))
    grid = model_grid(affine, (5, 6, 7))
    assert nib.aff2axcodes(grid.affine) == ("R", "A", "S")
    assert sorted(map(tuple, world_points(grid))) == sorted(map(tuple, world_points(Grid(affine, (5, 6, 7)))))


@pytest.mark.parametrize("spacing", [0.7, 1.9, (1.0, 3.0, 2.0)])
@pytest.mark.parametrize("multiple", [1, 16])
def test_model_grid_covers_the_image_with_the_spacing_asked_for(spacing: float, multiple: int) -> None:
    native = Grid(OBLIQUE[:, [2, 0, 1, 3]] * [-1, 1, -1, 1], (9, 12, 7))
    grid = model_grid(native.affine, native.size, spacing, multiple=multiple)
    np.testing.assert_allclose(grid.spacing, np.broadcast_to(spacing, 3))
    assert all(n % multiple == 0 for n in grid.size)
    index = np.c_[world_points(native), np.ones(9 * 12 * 7)] @ np.linalg.inv(grid.affine).T
    assert index[:, :3].min() > -0.01
    assert (index[:, :3] < np.array(grid.size) - 1 + 0.01).all()
    np.testing.assert_allclose(grid.center, native.center, atol=1e-9)
    np.testing.assert_allclose(  # the oblique directions stay
        grid.affine[:3, :3] / grid.spacing, (c := canonical_grid(native)).affine[:3, :3] / c.spacing, atol=1e-9
    )


def test_fixed_size_grid_is_centred() -> None:
    np.testing.assert_allclose(fixed_size_grid(2.0, (4, 5, 6), [1, 2, 3]).center, [1, 2, 3])
    with pytest.raises(ValueError, match="3 of them"):
        fixed_size_grid((1.0, 2.0), (4, 5, 6))


# Resampling


def test_resampling_a_linear_ramp_in_the_world_is_exact() -> None:
    source, grid = Grid(OBLIQUE, (20, 22, 18)), fixed_size_grid(1.3, (7, 6, 5), Grid(OBLIQUE, (20, 22, 18)).center)
    ramp = torch.from_numpy(world_points(source) @ [1.0, 2, 3]).reshape(1, *source.size)
    shift = np.eye(4)
    shift[:3, 3] = [1, -2, 0.5]
    result = resample(ramp, source.affine, grid, world_matrix=shift)
    np.testing.assert_allclose(result.flatten(), (world_points(grid) + shift[:3, 3]) @ [1, 2, 3], atol=1e-4)


def test_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    image, ddf = torch.rand(2, 12, 11, 10), torch.rand(3, 8, 8, 8)
    field_grid, grid = fixed_size_grid(2.0, (8, 8, 8)), fixed_size_grid(1.0, (13, 9, 8))
    affine = fixed_size_grid(1.1, (12, 11, 10)).affine
    whole = resample(image, affine, grid, ddf=ddf, ddf_grid=field_grid)
    monkeypatch.setattr("custom_components.space.resampling._SLAB_VOXELS", 200)
    assert torch.equal(whole, resample(image, affine, grid, ddf=ddf, ddf_grid=field_grid))


def test_field_on_a_coarser_grid_moves_by_its_millimetres() -> None:
    coarse, grid = fixed_size_grid(2.0, (9, 9, 9)), fixed_size_grid(1.0, (11, 11, 11))
    image = torch.rand(1, 11, 11, 11)
    ddf = torch.zeros(3, 9, 9, 9)
    ddf[1] = 1.0  # one coarse voxel along A: 2 mm, two fine voxels
    warped = resample(image, grid.affine, grid, ddf=ddf, ddf_grid=coarse)
    torch.testing.assert_close(warped[:, :, :9], image[:, :, 2:], atol=1e-5, rtol=0)


def test_antialias_keeps_the_mean_and_removes_a_checkerboard() -> None:
    board = identity_grid((32, 32, 32)).sum(0, keepdim=True) % 2
    grid = fixed_size_grid(4.0, (6, 6, 6))
    affine = fixed_size_grid(1.0, (32, 32, 32)).affine
    assert (resample(board, affine, grid, antialias=True) - 0.5).abs().max() < 0.01


def test_voxel_map_goes_through_the_world() -> None:
    a, b, w = OBLIQUE, np.diag([2.0, 2, 2, 1]), np.diag([1.0, 1, -1, 1])
    np.testing.assert_allclose(b @ voxel_map(a, b, w), w @ a, atol=1e-12)


# Files


def test_displacement_field_round_trip_and_header(tmp_path: Path) -> None:
    for d in (2, 3):
        grid = model_grid(OBLIQUE if d == 3 else np.diag([-1.5, -2.0, 1]), (6, 7, 5)[:d], 2.0)
        ddf = torch.randn(d, *grid.size)
        write_displacement_field(tmp_path / "u.nii.gz", ddf, grid)
        header = nib.load(tmp_path / "u.nii.gz").header
        assert header["intent_code"] == 1007
        assert header.get_data_shape() == (*grid.size, *[1] * (4 - d), d)
        back = read_displacement_field(tmp_path / "u.nii.gz")
        torch.testing.assert_close(back.ddf, ddf, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(back.grid.affine, grid.affine, atol=1e-5)


def test_files_that_hold_no_field_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a displacement field"):
        read_displacement_field(save(tmp_path / "a.nii.gz", noise(4, 5, 6, 3)))


@pytest.mark.parametrize("d", [2, 3])
def test_affine_round_trip_with_and_without_itk(tmp_path: Path, d: int) -> None:
    matrix = np.eye(d + 1)
    matrix[:d] += 0.1 * np.random.default_rng(1).standard_normal((d, d + 1))
    write_affine_transform(tmp_path / "a.tfm", matrix)
    np.testing.assert_allclose(read_affine_transform(tmp_path / "a.tfm"), matrix, atol=1e-12)
    itk = pytest.importorskip("itk")
    transform = itk.transformread(str(tmp_path / "a.tfm"))[0]
    flip = np.array([-1, -1, 1][:d])
    point = np.arange(1.0, d + 1)
    expected = (matrix @ np.append(point * flip, 1))[:d] * flip
    np.testing.assert_allclose(list(transform.TransformPoint(point.tolist())), expected, atol=1e-9)


def test_itk_moves_points_as_we_do_through_a_composite(tmp_path: Path) -> None:
    itk = pytest.importorskip("itk")
    grid = model_grid(OBLIQUE, (10, 9, 8), 2.2)
    matrix = np.eye(4)
    matrix[:3] += 0.05 * np.random.default_rng(2).standard_normal((3, 4))
    steps = [DisplacementField(torch.randn(3, *grid.size), grid), matrix]
    assert write_composite_transform(tmp_path / "t.h5", steps)
    points = grid.center + np.random.default_rng(3).uniform(-6, 6, (20, 3))
    ours = transform_points_world(points, steps)
    flip = np.array([-1, -1, 1])
    transform = itk.transformread(str(tmp_path / "t.h5"))[0]
    theirs = [np.array(list(transform.TransformPoint(p.tolist()))) * flip for p in points * flip]
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    np.testing.assert_allclose(transform_points_world(points, read_transform(tmp_path / "t.h5")), ours, atol=1e-3)


def test_a_failing_run_leaves_finished_results_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("finished")

    def fail() -> None:
        with publish_together(tmp_path) as scratch:
            (scratch / "a.txt").write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "finished"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/out: cannot write the results here"):
        write_image(tmp_path / "file" / "out" / "a.nii.gz", torch.rand(3, 3, 3), np.eye(4))


# Real data


def test_real_inverse_fields_compose_to_the_identity_only_under_the_right_convention(test_data: Path) -> None:
    fields = []
    for name in ("NLin6Asym_to_NLin2009cAsym", "NLin2009cAsym_to_NLin6Asym"):
        image = nib.load(test_data / "fields" / f"{name}.nii.gz")
        grid = Grid(image.affine, image.shape[:3])
        vectors = np.moveaxis(image.get_fdata(dtype=np.float32), -1, 0)
        fields.append((vectors, grid))
    points = world_points(fields[0][1]).reshape(*fields[0][1].size, 3)[4:-4, 4:-4, 4:-4].reshape(-1, 3)

    def error(signs: tuple[int, int, int]) -> float:
        steps = []
        for vectors, grid in fields:
            voxels = np.einsum("ij,j...->i...", np.linalg.inv(grid.affine[:3, :3]), vectors)
            steps.append(DisplacementField(torch.from_numpy(voxels * np.reshape(signs, (3, 1, 1, 1))).float(), grid))
        return float(np.linalg.norm(transform_points_world(points, steps) - points, axis=1).mean())

    assert error((1, 1, 1)) == pytest.approx(0.0106, abs=0.002)
    assert error((-1, -1, 1)) > 0.08  # LPS taken for RAS


def test_real_inverse_fields_survive_the_itk_file_format(test_data: Path, tmp_path: Path) -> None:
    image = nib.load(test_data / "fields" / "NLin6Asym_to_NLin2009cAsym.nii.gz")
    lps = image.get_fdata(dtype=np.float32)[:, :, :, None] * np.array([-1, -1, 1], np.float32)
    as_itk = nib.Nifti1Image(lps, image.affine)
    as_itk.header.set_intent("vector")
    nib.save(as_itk, tmp_path / "u.nii")
    field = read_displacement_field(tmp_path / "u.nii")
    voxels = np.moveaxis(image.get_fdata(dtype=np.float32), -1, 0) / 3  # 3 mm, axes R, A, S
    np.testing.assert_allclose(field.ddf, voxels, atol=1e-5)


@pytest.mark.parametrize(("epi", "tolerance_mm"), [("S1_EPI_fullhead", 3.0), ("S1_EPI_retinotopy", 5.0)])
def test_known_rigid_transform_between_t1_and_epi_is_recovered(test_data: Path, epi: str, tolerance_mm: float) -> None:
    pytest.importorskip("itk")
    folder = test_data / "subject_to_template"
    fixed, moving = load_image(folder / f"{epi}.nii.gz"), load_image(folder / "S1_T1.nii.gz")
    known = np.array(json.loads((folder / "transforms.json").read_text())[epi]["EPI_world_to_T1_world"])
    start = time.process_time()
    found = register_affine(fixed, moving, transform="rigid")
    brain = np.argwhere(fixed.data[0].numpy() > 60)[::50] @ fixed.affine[:3, :3].T + fixed.affine[:3, 3]
    distance = transform_points_world(brain, [found]) - transform_points_world(brain, [known])
    assert np.linalg.norm(distance, axis=1).mean() < tolerance_mm
    assert time.process_time() - start < 90


def test_affine_in_the_plane_finds_an_origin_that_is_off_by_100_mm(test_data: Path) -> None:
    pytest.importorskip("itk")
    fixed, moving = (load_image(test_data / "pairs2d_multimodal" / f"{name}.nii.gz") for name in ("r16", "r64"))
    found = register_affine(fixed, moving)
    assert np.linalg.norm(transform_points_world(fixed.grid.center[None], [found]) - moving.grid.center) < 20
    np.testing.assert_array_equal(found, register_affine(fixed, moving))


def test_missing_itk_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "itk", None)
    volume = load_image(save(tmp_path / "a.nii.gz", noise(8, 8, 8)))
    with pytest.raises(ImportError, match=r"morphzoo\[demo\]"):
        register_affine(volume, volume)
    assert not write_composite_transform(tmp_path / "t.h5", [np.eye(4)])
