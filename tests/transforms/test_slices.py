"""One-slice images are registered in 2-D; what is written applies to their 3-D files, in ITK as here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import decollate_batch, list_data_collate
from support import ROTATION, blobs, published

from custom_components.commands.apply import apply
from custom_components.fields import integrate_velocity
from custom_components.space import load_image, read_transform, transform_points_world, write_affine_transform
from custom_components.transforms.load import LoadPaird
from custom_components.transforms.save import PairFiles

SIZE = (22, 24, 20)
NAMES = ("warped", "warped_fixed", "warped_label", "forward", "inverse", "affine", "composite", "jacobian")


def world(oblique: bool) -> np.ndarray:
    affine = np.diag([-2.0, 2.5, 3.0, 1.0])
    u, _, vt = np.linalg.svd(ROTATION)
    affine[:3, :3] = u @ vt @ affine[:3, :3] if oblique else affine[:3, :3]
    affine[:3, 3] = [20, -30, -25]
    return affine


def write_slice(path: Path, axis: int, place: np.ndarray, index: int, shift: float) -> np.ndarray:
    """The blobs' slice of that index along an axis; returns its affine."""
    whole = blobs(SIZE, place, shift)
    affine = place.copy()
    affine[:3, 3] += index * place[:3, axis]
    one = np.take(whole, [index], axis)
    nib.save(nib.Nifti1Image(one, affine), path)
    nib.save(nib.Nifti1Image((one > 50).astype(np.uint8) * 7, affine), str(path).replace(".nii", "_seg.nii"))
    return affine


def run(item: dict[str, str], folder: Path, affine: str = "none") -> Any:
    loaded = LoadPaird(4.0, affine)(item)
    generator = torch.Generator().manual_seed(0)
    coarse = 2 * torch.randn(1, 2, 4, 4, generator=generator)
    velocity = torch.nn.functional.interpolate(coarse, size=tuple(loaded["fixed"].shape[1:]), mode="bicubic")
    batch = list_data_collate([loaded])
    batch["pred"] = {"ddf": integrate_velocity(velocity), "inverse_ddf": integrate_velocity(-velocity)}
    batch["pred"]["warped"] = batch["fixed"]
    return published(decollate_batch(batch)[0], folder, PairFiles(NAMES))


def resampled_by_itk(moving: str, fixed: str, transform: str, nearest: bool = False) -> np.ndarray:
    itk = pytest.importorskip("itk")
    image, like = (itk.imread(path, itk.F) for path in (moving, fixed))
    kind = type(image)
    filter_ = itk.ResampleImageFilter[kind, kind].New(Input=image, ReferenceImage=like, UseReferenceImage=True)
    filter_.SetTransform(itk.transformread(transform)[0])
    if nearest:
        filter_.SetInterpolator(itk.NearestNeighborInterpolateImageFunction[kind, itk.D].New())
    filter_.Update()
    return itk.array_from_image(filter_.GetOutput()).T


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_itk_applies_what_is_written_to_the_3d_files(tmp_path: Path, axis: int, oblique: bool) -> None:
    place = world(oblique)
    write_slice(tmp_path / "fixed.nii.gz", axis, place, 9, 0.0)
    write_slice(tmp_path / "moving.nii.gz", axis, place, 12, 1.5)
    item = {role: str(tmp_path / f"{role}.nii.gz") for role in ("moving", "fixed")}
    item |= {f"label_{role}": str(tmp_path / f"{role}_seg.nii.gz") for role in ("moving", "fixed")}
    pre = np.array([[1.02, 0.05, 2.0], [-0.05, 0.98, -1.0], [0, 0, 1]])
    write_affine_transform(tmp_path / "pre.tfm", pre)
    files = {kind: str(path) for kind, path in run(item, tmp_path / "out", str(tmp_path / "pre.tfm")).files.items()}
    for moved, like, transform, result in (
        ("moving", "fixed", "transform", "warped"),
        ("fixed", "moving", "inverse_transform", "warped_fixed"),
    ):
        ours = nib.load(files[result])
        assert ours.shape == nib.load(item[like]).shape
        np.testing.assert_allclose(ours.affine, nib.load(item[like]).affine, atol=1e-4)
        theirs = resampled_by_itk(item[moved], item[like], files[transform])
        np.testing.assert_allclose(ours.get_fdata(), theirs, atol=0.02)
        assert np.ptp(theirs) > 50
        apply(files[transform], item[moved], str(tmp_path / "again.nii.gz"), reference=item[like])
        np.testing.assert_allclose(nib.load(tmp_path / "again.nii.gz").get_fdata(), ours.get_fdata(), atol=0.02)
    labels = resampled_by_itk(item["label_moving"], item["fixed"], files["transform"], nearest=True)
    assert (labels != nib.load(files["warped_label"]).get_fdata()).mean() < 0.002
    chain = [*read_transform(files["forward"]), *read_transform(files["affine"])]
    points = nib.load(files["warped"]).affine[:3, 3] + np.zeros((1, 3))
    expected = transform_points_world(points, read_transform(files["transform"]))
    np.testing.assert_allclose(transform_points_world(points, chain), expected, atol=1e-3)
    jacobian = load_image(files["jacobian"])
    assert jacobian.is_slice
    np.testing.assert_allclose(jacobian.frame, load_image(item["fixed"]).frame, atol=1e-4)


def test_an_affine_file_that_was_written_is_read_again(tmp_path: Path) -> None:
    place = world(True)
    write_slice(tmp_path / "fixed.nii.gz", 1, place, 9, 0.0)
    write_slice(tmp_path / "moving.nii.gz", 1, place, 12, 1.5)
    item = {role: str(tmp_path / f"{role}.nii.gz") for role in ("moving", "fixed")}
    pre = np.array([[1.02, 0.05, 2.0], [-0.05, 0.98, -1.0], [0, 0, 1]])
    write_affine_transform(tmp_path / "pre.tfm", pre)
    first = run(item, tmp_path / "out", str(tmp_path / "pre.tfm"))
    again = LoadPaird(4.0, str(first.files["affine"]))(item)["world_matrix"]
    np.testing.assert_allclose(again, pre, atol=1e-5)
    turn = np.eye(4)
    turn[:2, :2] = [[0.7, -0.7], [0.7, 0.7]]
    write_affine_transform(tmp_path / "out.tfm", turn)
    with pytest.raises(ValueError, match="leaves their planes"):
        LoadPaird(4.0, str(tmp_path / "out.tfm"))(item)


def test_a_volume_is_cut_at_the_fixed_slice_and_moved_as_a_whole(tmp_path: Path, caplog) -> None:
    place = world(True)
    write_slice(tmp_path / "fixed.nii.gz", 0, place, 9, 0.0)
    other = np.diag([2.2, 2.2, 2.2, 1])
    other[:3, 3] = -30
    nib.save(nib.Nifti1Image(blobs((30, 30, 30), other, 1.5), other), tmp_path / "moving.nii.gz")
    nib.save(nib.Nifti1Image((blobs((30, 30, 30), other) > 50).astype("u1"), other), tmp_path / "moving_seg.nii.gz")
    item = {role: str(tmp_path / f"{role}.nii.gz") for role in ("moving", "fixed")}
    files = run(item | {"label_moving": str(tmp_path / "moving_seg.nii.gz")}, tmp_path / "out").files
    assert "cuts it" in caplog.text
    theirs = resampled_by_itk(item["moving"], item["fixed"], str(files["transform"]))
    np.testing.assert_allclose(nib.load(files["warped"]).get_fdata(), theirs, atol=0.05)
    with pytest.raises(ValueError, match="got one slice"):
        LoadPaird(4.0)({"moving": item["fixed"], "fixed": item["moving"]})


def test_slices_of_different_planes_are_said(tmp_path: Path, caplog) -> None:
    for axis, role in ((0, "fixed"), (2, "moving")):
        write_slice(tmp_path / f"{role}.nii.gz", axis, world(False), 9, 0.0)
    LoadPaird(4.0)({role: str(tmp_path / f"{role}.nii.gz") for role in ("moving", "fixed")})
    assert "not parallel" in caplog.text
