"""Pairs are registered from memory, nothing is written unless asked, and the network is loaded once."""

import random

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.utils import get_seed, set_determinism

import custom_components as mz
from custom_components.commands import loaded
from custom_components.space import load_image

QUICK = {"optimize": 0, "affine": "none", "spacing": 4.0, "average": [], "report#picture": False}


@pytest.fixture(scope="module")
def quick():
    return mz.Registrar("synthmorph", **QUICK)


@pytest.fixture(scope="module")
def result(quick, scans):
    (moving, label_moving), (fixed, label_fixed) = scans[:2]
    return quick(moving, fixed, label_moving=label_moving, label_fixed=label_fixed)


def in_memory(path):
    image = nib.load(path)
    tensor = MetaTensor(torch.from_numpy(image.get_fdata(dtype="f4"))[None], affine=torch.from_numpy(image.affine))
    return {"nibabel": image, "MetaTensor": tensor, "array": (np.asarray(image.dataobj), image.affine)}


def test_images_in_memory_give_what_their_files_give(quick, result, scans):
    moving, fixed = (in_memory(scans[i][0]) for i in (0, 1))
    for kind in moving:
        found = quick(moving[kind], fixed[kind])
        torch.testing.assert_close(found.warped.as_tensor(), result.warped.as_tensor(), atol=1e-3, rtol=1e-4)
        assert found.id == "fixed__moving"
        assert found.metrics["moving"] == "moving"


def test_nothing_is_written_unless_it_is_saved(scans, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = mz.register(str(scans[0][0]), nib.load(scans[1][0]), **QUICK)
    assert not any(tmp_path.iterdir())
    assert found.folder is None
    assert not found.files
    saved = found.save("out")
    assert {path.name for path in saved.folder.iterdir()} >= {"warped.nii.gz", "metrics.json", "files.json"}
    assert saved.folder.parent == (tmp_path / "out").relative_to(tmp_path)
    torch.testing.assert_close(saved.in_files().warped.as_tensor(), found.warped.as_tensor())


def test_the_transform_moves_points_and_images_as_the_result_did(result, scans):
    moving, label = scans[0]
    warped = result.transform.warp(moving, result.warped)
    torch.testing.assert_close(warped.as_tensor(), result.warped.as_tensor(), atol=1e-2, rtol=1e-3)
    labels = result.transform.warp(label, result.warped, interpolation="nearest")
    assert torch.equal(labels.as_tensor().int(), result.warped_label.as_tensor().int())
    affine, size = result.warped.affine.numpy(), result.warped.shape[1:]
    index = np.array(size) * np.array([[0.4, 0.5, 0.6], [0.5, 0.5, 0.5]]) // 1
    points = index @ affine[:3, :3].T + affine[:3, 3]
    field = result.field[(slice(None), *index.astype(int).T)].numpy().T
    np.testing.assert_allclose(result.transform.points(points), points + field, atol=1e-3)
    assert np.abs(result.inverse.points(result.transform.points(points)) - points).max() < 1


def test_a_result_is_an_image_of_nibabel_and_of_itk(result):
    image = result.to_nibabel()
    np.testing.assert_array_equal(np.asarray(image.dataobj), result.warped[0])
    np.testing.assert_allclose(image.affine, result.warped.affine)
    itk = pytest.importorskip("itk")
    volume = result.to_itk("warped_label")
    np.testing.assert_array_equal(itk.array_from_image(volume).T, result.warped_label[0])
    lps = np.diag([-1, -1, 1, 1]) @ result.warped.affine.numpy()
    np.testing.assert_allclose(np.array(itk.origin(volume)), lps[:3, 3], atol=1e-5)


def test_the_network_is_loaded_once_for_many_pairs(scans, monkeypatch, tmp_path):
    calls = []
    original = loaded.load_workflow
    monkeypatch.setattr(loaded, "load_workflow", lambda *args: calls.append(args) or original(*args))
    registering = mz.Registrar("synthmorph", **QUICK)
    assert not calls
    images = [scan[0] for scan in scans]
    results = list(
        registering.pairs([(images[0], images[1]), {"moving": images[2], "fixed": images[1], "id": "third"}])
    )
    assert len(calls) == 1
    assert [one.id for one in results] == ["phantom_01__phantom_00", "third"]
    saved = list(registering.pairs([(images[0], images[1])], output=tmp_path))
    assert not saved[0].arrays
    torch.testing.assert_close(saved[0].warped.as_tensor(), results[0].warped.as_tensor())
    assert len(calls) == 1


def test_a_bad_pair_does_not_stop_the_others_unless_asked(quick, scans):
    good = (scans[0][0], scans[1][0])
    bad = {"moving": (IMAGE, np.zeros((4, 4))), "fixed": scans[1][0], "id": "x"}
    pairs = [good, ("nowhere.nii.gz", scans[1][0]), bad]
    first, missing, bad, last = quick.pairs([*pairs, good])
    assert first.metrics == {**last.metrics, "seconds": first.metrics["seconds"]}
    assert (missing.id, bad.id) == ("pair 2", "x")
    assert missing.reason.endswith("nowhere.nii.gz: there is no such file (moving)")
    assert "expected an invertible affine" in bad.reason
    found = quick.pairs(iter([good, pairs[1], good]), tolerant=False)
    assert next(found).id == first.id
    with pytest.raises(FileNotFoundError, match="nowhere"):
        next(found)


def test_a_pair_is_taken_when_its_turn_comes(quick, scans):
    taken = []
    found = quick.pairs(taken.append(number) or (scans[0][0], scans[1][0]) for number in range(3))
    assert not taken
    next(found)
    assert taken == [0]


def test_pairs_from_memory_never_replace_one_another(quick, scans, tmp_path):
    first, second, third = (in_memory(scan[0])["nibabel"] for scan in scans)
    folders = {quick(moving, second, tmp_path).folder for moving in (first, third, first)}
    assert len(folders) == 2
    named = quick(first, second, tmp_path, id="mine")
    assert named.id == named.folder.name == "mine"
    with pytest.raises(FileExistsError, match="holds the result of"):
        quick(third, second, tmp_path, id="mine")


def test_random_numbers_of_the_program_are_its_own(scans):
    """Networks are seeded, and MONAI's transforms take a seed that is set; neither stays when the call is over."""
    set_determinism(None)
    torch.manual_seed(5)
    before = get_seed(), random.getstate(), torch.get_rng_state(), torch.backends.cudnn.deterministic
    mz.Registrar("synthmorph", **QUICK)(scans[0][0], scans[1][0])
    after = get_seed(), random.getstate(), torch.get_rng_state(), torch.backends.cudnn.deterministic
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert before[3] == after[3]


def test_two_dimensional_and_three_dimensional_pairs_go_through_one_object(scans):
    quick = mz.Registrar("synthmorph", optimize=0, affine="none", average=[])
    whole = load_image(scans[0][0]).data[0].numpy()
    flat = np.diag([2.0, 2.0, 1.0])
    found = quick((whole[:, :, 16], flat), (whole[:, :, 18], flat))
    assert found.warped.shape == (1, *whole.shape[:2])
    assert found.transform.points([[1.0, 2.0]]).shape == (1, 2)
    assert found.field.shape == (2, *whole.shape[:2])


IMAGE = np.random.default_rng(0).random((16, 16, 16))


@pytest.mark.parametrize(
    ("moving", "fixed", "said"),
    [
        ((IMAGE, np.eye(4)), (np.full_like(IMAGE, np.nan), np.eye(4)), "fixed: .* got NaN in every voxel"),
        ((np.full_like(IMAGE, np.inf), np.eye(4)), (IMAGE, np.eye(4)), "moving: expected values below 1e.30, got inf"),
        ((IMAGE, np.zeros((4, 4))), (IMAGE, np.eye(4)), "moving: expected an invertible affine"),
        ((IMAGE[0, 0], np.eye(4)), (IMAGE, np.eye(4)), "moving: expected an array of 2 or 3 axes"),
        ((IMAGE[0], np.eye(4)), (IMAGE, np.eye(4)), "expected two images of one dimension"),
        (IMAGE, (IMAGE, np.eye(4)), "moving: expected a path"),
        ((IMAGE, np.eye(4)), (IMAGE + 0, nib.affines.from_matvec(np.eye(3), [900, 0, 0])), "overlap"),
    ],
    ids=["nan", "inf", "singular", "axes", "dimensions", "no affine", "apart"],
)
def test_bad_images_are_refused_with_one_sentence(moving, fixed, said, quick):
    with pytest.raises(ValueError, match=said) as caught:
        quick(moving, fixed)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_file_or_setting_that_is_not_there_is_named(quick, scans):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.nii\.gz: there is no such file .moving."):
        quick("nowhere.nii.gz", scans[0][0])
    with pytest.raises(ValueError, match="has no setting 'itertions'"):
        mz.Registrar(itertions=3)
    with pytest.raises(ValueError, match="there is no bundle 'nosuch'"):
        mz.Registrar("nosuch")
    with pytest.raises(ValueError, match="conditional_atlas registers single scans"):
        mz.Registrar("conditional_atlas")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        mz.Registrar(weights="nowhere.pt")(scans[0][0], scans[1][0])
