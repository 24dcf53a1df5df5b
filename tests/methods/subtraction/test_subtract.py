"""The command `subtract`, on the formats that angiographies come in."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from custom_components.commands.subtract import numbers, subtract
from custom_components.data.angiography import angiogram
from custom_components.methods.subtraction.series import read_series

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def counts():
    """A series as image files have it: (across, down, time), whole numbers."""
    return angiogram((64, 48), 5, 1).counts[:, 0].permute(2, 1, 0).contiguous().numpy().astype(np.int32)


@pytest.fixture(scope="module")
def stack(counts, tmp_path_factory):
    path = tmp_path_factory.mktemp("stack") / "series.nii.gz"
    nib.save(nib.Nifti1Image(counts, np.diag([0.3, 0.2, 1, 1])), path)
    return str(path)


def itk_image(itk, array):
    return itk.image_from_array(np.ascontiguousarray(array.T))


def test_it_writes_subtraction_field_animation_and_measures(stack, counts, tmp_path):
    found = subtract(stack, str(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "subtraction.nii.gz",
        "field.nii.gz",
        "before_after.gif",
        "metrics.json",
        "files.json",
    }
    image = nib.load(tmp_path / "out" / "subtraction.nii.gz")
    assert image.shape == counts.shape
    np.testing.assert_allclose(image.affine, np.diag([0.3, 0.2, 1, 1]))
    assert nib.load(tmp_path / "out" / "field.nii.gz").shape == (*counts.shape, 2)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["background_rms_after"] < metrics["background_rms_before"]
    assert metrics["mask_frames"] == [0, 1, 2]
    assert str(found).endswith(f"results in {tmp_path / 'out'}")
    pil = pytest.importorskip("PIL.Image")
    with pil.open(tmp_path / "out" / "before_after.gif") as animation:
        assert animation.n_frames == counts.shape[2]
        assert animation.width == 3 * round(256 * 48 / 64) or animation.width == 3 * 256


def test_all_formats_give_the_same_series(stack, counts, tmp_path):
    itk = pytest.importorskip("itk")
    wanted = read_series(stack).frames
    itk.imwrite(itk_image(itk, counts.astype(np.uint16)), str(tmp_path / "series.dcm"))
    (tmp_path / "frames").mkdir()
    for k in range(counts.shape[2]):
        itk.imwrite(itk_image(itk, counts[:, :, k].astype(np.uint16)), str(tmp_path / "frames" / f"frame_{9 + k}.png"))
    for path in ("series.dcm", "frames"):
        torch.testing.assert_close(read_series(tmp_path / path).frames, wanted)


def test_a_stack_with_an_empty_axis_is_a_series(counts, tmp_path):
    nib.save(nib.Nifti1Image(counts[:, :, None], np.eye(4)), tmp_path / "series.nii")
    assert read_series(tmp_path / "series.nii").frames.shape == (5, 1, 48, 64)


def test_a_series_in_colours_is_its_grey(stack, counts, tmp_path):
    colours = np.zeros(counts.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    grey = (255 * counts / counts.max()).astype("u1")
    for name in "RGB":
        colours[name] = grey
    nib.save(nib.Nifti1Image(colours, np.eye(4)), tmp_path / "colours.nii")
    nib.save(nib.Nifti1Image(grey, np.eye(4)), tmp_path / "grey.nii")
    torch.testing.assert_close(read_series(tmp_path / "colours.nii").frames, read_series(tmp_path / "grey.nii").frames)


def test_intensities_are_logarithms_once(stack, counts, tmp_path):
    frames = np.moveaxis(counts, 2, 0)[:, None]
    np.testing.assert_allclose(read_series(stack).frames, np.log(frames.clip(1)), rtol=1e-5)
    logs = read_series(stack, "log").frames
    np.testing.assert_allclose(logs, frames / (frames.max() - frames.min()), rtol=1e-5)


def test_chosen_frames_are_the_mask(stack, tmp_path):
    assert subtract(stack, str(tmp_path / "out"), mask="1,2").metrics["mask_frames"] == [1, 2]
    assert numbers(3) == [3]
    with pytest.raises(ValueError, match="--mask: expected numbers of frames"):
        numbers("first")


def test_bad_input_gets_one_sentence(stack, counts, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.nii"):
        read_series(tmp_path / "nowhere.nii")
    with pytest.raises(ValueError, match="expected intensities"):
        read_series(stack, "loud")
    with pytest.raises(ValueError, match="mask frames from 0 to 4"):
        subtract(stack, str(tmp_path / "out"), mask=7)
    assert not (tmp_path / "out").exists()
    nib.save(nib.Nifti1Image(counts[:, :, 0], np.eye(4)), tmp_path / "one.nii")
    with pytest.raises(ValueError, match="at least 2 frames"):
        read_series(tmp_path / "one.nii")
    nib.save(nib.Nifti1Image(counts.astype(np.float32) - 1e5, np.eye(4)), tmp_path / "low.nii")
    with pytest.raises(ValueError, match="--intensities log"):
        read_series(tmp_path / "low.nii")
    nib.save(nib.Nifti1Image(np.full_like(counts, 7), np.eye(4)), tmp_path / "constant.nii")
    with pytest.raises(ValueError, match="shows something, got 7 everywhere"):
        read_series(tmp_path / "constant.nii")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found no file there"):
        read_series(tmp_path / "empty")
