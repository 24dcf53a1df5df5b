"""Transforms written and read back, also by ITK; files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from space.cases import OBLIQUE, noise, save, world_points

from custom_components.space import (
    DisplacementField,
    Grid,
    model_grid,
    read_affine_transform,
    read_displacement_field,
    read_transform,
    transform_points_world,
    write_affine_transform,
    write_composite_transform,
    write_displacement_field,
    write_image,
)


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


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/out: cannot write the results here"):
        write_image(tmp_path / "file" / "out" / "a.nii.gz", torch.rand(3, 3, 3), np.eye(4))


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
