"""Images are written in the format that the name asks for, in the same place."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from space.cases import OBLIQUE, noise, save

from custom_components.space import load_image, load_labels, write_image

ENDINGS = ["nii", "nii.gz", "mgz", "mha", "nrrd"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_is_its_format_and_keeps_values_and_place(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("itk")
    image = torch.from_numpy(noise(5, 6, 7))[None]
    write_image(tmp_path / f"a.{ending}", image, OBLIQUE)
    back = load_image(tmp_path / f"a.{ending}")
    torch.testing.assert_close(back.data, image)
    np.testing.assert_allclose(back.affine, OBLIQUE, atol=1e-4)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_of_every_type_come_back_in_every_format(tmp_path: Path, ending: str, dtype: torch.dtype) -> None:
    pytest.importorskip("itk")
    labels = (100 * torch.from_numpy(noise(3, 4, 5))).to(dtype)[None]
    write_image(tmp_path / f"a.{ending}", labels, OBLIQUE, dtype=labels.numpy().dtype)
    assert torch.equal(load_labels(tmp_path / f"a.{ending}").data.long(), labels.long())


@pytest.mark.parametrize("name", ["a", "a.png", "a.img", "a.mhd", "a.gz"])
def test_names_of_no_format_are_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"ends in one of \.nii"):
        write_image(tmp_path / name, torch.rand(3, 4, 5), np.eye(4))
    assert not list(tmp_path.iterdir())


def test_what_a_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"only NIfTI files .* can hold"):
        write_image(tmp_path / "a.mha", torch.rand(2, 3, 4, 5), np.eye(4))


@pytest.mark.parametrize("size", [(1, 5, 6), (5, 1, 6), (5, 6, 1), (5, 6)])
def test_a_slice_is_written_as_its_file_has_it(tmp_path: Path, size: tuple[int, ...]) -> None:
    volume = load_image(save(tmp_path / "a.nii.gz", noise(*size), OBLIQUE))
    write_image(tmp_path / "b.nii.gz", volume.data, volume.affine, like=volume)
    back = load_image(tmp_path / "b.nii.gz")
    assert back.file_shape == size
    torch.testing.assert_close(back.data, volume.data)
    np.testing.assert_allclose(back.file_affine, volume.file_affine, atol=1e-5)
    write_image(tmp_path / "c.nii.gz", volume.data.expand(3, -1, -1), volume.affine, like=volume)
    assert nib.load(tmp_path / "c.nii.gz").shape == (*(*size, 1)[:3], 3)
