"""A registration that makes the images less alike is warned of; one that no registration gives is refused."""

import nibabel as nib
import numpy as np
import pytest
import torch
from support import published

from custom_components.fields import warp
from custom_components.space import load_image
from custom_components.space.dialects.itk import write_affine_transform
from custom_components.transforms.likeness import is_less, likeness
from custom_components.transforms.load import LoadPaird
from custom_components.transforms.report import PairReport

SIZE = (24, 28, 26)


def texture(shift=0.0, contrast=lambda image: image):
    x, y, z = np.meshgrid(*[np.arange(n, dtype=np.float64) for n in SIZE], indexing="ij")
    body = ((x - 12 + shift) / 9) ** 2 + ((y - 14) / 9) ** 2 + ((z - 13) / 9) ** 2 < 1
    return (contrast(2 + np.sin((x + shift) / 1.5) + np.cos(y / 2) * np.sin(z / 1.7)) * body).astype(np.float32)


@pytest.fixture
def scans(tmp_path):
    def save(**contrast_and_shift):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.nii.gz"
        nib.save(nib.Nifti1Image(texture(**contrast_and_shift), np.eye(4)), path)
        return str(path)

    return save


def report(item, folder, shift):
    """The measures of a pair whose deformation is a shift along x, in voxels."""
    ddf = torch.zeros(3, *item["fixed"].shape[1:])
    ddf[0] = shift
    warped = warp(item["moving"][None], ddf[None])[0]
    return published({**item, "pred": {"ddf": ddf, "warped": warped}}, folder, PairReport(picture=False)).metrics


@pytest.mark.parametrize("contrast", [lambda image: image, lambda image: 5 - image], ids=["same", "inverted"])
def test_a_deformation_that_helps_is_not_warned_of_and_one_that_harms_is(scans, tmp_path, contrast):
    item = LoadPaird()({"moving": scans(shift=2.0, contrast=contrast), "fixed": scans()})
    good, bad = report(item, tmp_path / "good", -2.0), report(item, tmp_path / "bad", 2.0)
    assert good["warnings"] == []
    assert good["image_nmi_after"] > good["image_nmi_before"] == pytest.approx(bad["image_nmi_before"], rel=0.1)
    assert len(bad["warnings"]) == 1
    assert "the deformation made it less like" in bad["warnings"][0]


def test_an_affine_stage_that_harms_is_warned_of(scans, tmp_path):
    write_affine_transform(tmp_path / "off.tfm", nib.affines.from_matvec(np.eye(3), [3, 0, 0]))
    pair = {"moving": scans(), "fixed": scans()}
    metrics = report(LoadPaird(affine=str(tmp_path / "off.tfm"))(pair), tmp_path / "out", 0.0)
    assert len(metrics["warnings"]) == 1
    assert "the affine alignment made it less like" in metrics["warnings"][0]


def test_equal_images_are_as_alike_as_can_be(scans):
    one = load_image(scans())
    assert likeness(one, one, [[]])[0] == (pytest.approx(1), pytest.approx(2))


def test_likeness_is_that_of_the_images_not_of_a_coarse_grid(scans, tmp_path):
    pair = {"moving": scans(shift=2.0), "fixed": scans()}
    fine, coarse = (report(LoadPaird(spacing)(pair), tmp_path / f"{spacing}", 0.0) for spacing in (1.0, 1.5))
    assert fine["ncc_aligned"] != pytest.approx(coarse["ncc_aligned"], rel=0.01)
    assert fine["image_ncc_before"] == pytest.approx(coarse["image_ncc_before"], rel=1e-3)


@pytest.mark.parametrize(
    ("before", "after", "less"),
    [
        ((0.9, 1.3), (0.9, 1.3), False),
        ((0.9, 1.3), (0.8, 1.2), True),
        ((0.9, 1.3), (0.8, 1.35), False),
        ((1.0, 2.0), (0.999, 1.5), False),
        ((0.1, 1.3), (0.2, 1.2), True),
        ((float("nan"), float("nan")), (0.9, 1.3), False),
        ((0.9, 1.3), (float("nan"), float("nan")), False),
    ],
)
def test_clearly_less_alike_takes_both_measures(before, after, less):
    assert is_less(after, before) is less


@pytest.mark.parametrize(
    ("value", "message"),
    [(1000.0, "moves points by 1000 mm in the mean"), (float("nan"), "not finite"), (float("inf"), "not finite")],
)
def test_a_deformation_that_no_registration_gives_is_refused(scans, tmp_path, value, message):
    item = LoadPaird()({"moving": scans(shift=2.0), "fixed": scans()})
    with pytest.raises(ValueError, match=f"{message}.*; the weights may be damaged"):
        report(item, tmp_path / "out", value)
    assert not (tmp_path / "out").exists()


def test_masks_are_compared_at_their_borders(tmp_path):
    for name, shift in (("moving", 2), ("fixed", 0)):
        mask = np.zeros(SIZE, np.uint8)
        mask[6 + shift : 18 + shift, 6:20, 6:18] = 1
        nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / f"{name}.nii.gz")
    item = LoadPaird()({role: str(tmp_path / f"{role}.nii.gz") for role in ("moving", "fixed")})
    good, bad = report(item, tmp_path / "good", 2.0), report(item, tmp_path / "bad", -2.0)
    assert good["image_ncc_after"] > 0.99 > good["image_ncc_before"]
    assert good["warnings"] == []
    assert "the deformation made it less like" in bad["warnings"][0]
