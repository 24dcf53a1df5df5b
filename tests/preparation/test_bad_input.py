"""Bad input of a preparation: each session that cannot be prepared has one line that says why, the others are done."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from preparation.cases import preparation, write_person, write_series
from support import run

pytestmark = pytest.mark.filterwarnings("ignore")

Change = Callable[[nib.Nifti1Image], nib.Nifti1Image]


def moved(image: nib.Nifti1Image, *mm: float) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(image.dataobj), nib.affines.from_matvec(np.eye(3), mm) @ image.affine)


def filled(value: float) -> Change:
    return lambda image: nib.Nifti1Image(np.full(image.shape, value, image.get_data_dtype()), image.affine)


def lost(image: nib.Nifti1Image) -> nib.Nifti1Image:
    found = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
    found.set_sform(None, 0)
    found.set_qform(None, 0)
    return found


def flat(image: nib.Nifti1Image) -> nib.Nifti1Image:
    found = nib.Nifti1Image(np.asarray(image.dataobj), None)
    found.header["sform_code"], found.header["qform_code"] = 1, 0
    found.header["srow_y"] = [0, 4, 0, 0]
    return found


def series(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.stack([np.asarray(image.dataobj)] * 3, -1), image.affine)


def infinite(image: nib.Nifti1Image) -> nib.Nifti1Image:
    voxels = np.array(image.dataobj)
    voxels[3, 3, 3] = np.inf
    return nib.Nifti1Image(voxels, image.affine)


# What is done to a file of a person, and why the session cannot be prepared.
FAULTS: list[tuple[str, Change, str]] = [
    ("T1w", lost, "the header does not say how the image lies (qform and sform codes are 0)"),
    ("T1w", flat, "expected an invertible affine"),
    ("T1w", series, "expected a 2-D or 3-D image with one channel and one frame, got shape (40, 34, 36, 3)"),
    ("T1w", filled(3.0), "expected an image, got the constant 3 in every voxel"),
    ("T1w", filled(np.nan), "expected an image, got NaN in every voxel"),
    ("T1w", infinite, "expected values below 1e+30, got inf"),
    ("mask", lambda image: image.slicer[2:], "expected a mask on the grid of"),
    ("mask", lambda image: moved(image, 0, 5, 0), "it lies 5 mm elsewhere"),
    ("mask", filled(0), "expected a brain mask, got 0 in every voxel"),
    (
        "T2w",
        lambda image: nib.Nifti1Image(np.zeros((36, 40, 0), np.uint8), image.affine),
        "expected an image, got no voxels",
    ),
]


@pytest.fixture(scope="module")
def reasons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Why each session failed: those of FAULTS in order, one with two T1w, one with an empty file; 40 is good."""
    root = tmp_path_factory.mktemp("bad")
    for k, (kind, change, _) in enumerate(FAULTS):
        path = write_person(root / "bids", k, t2=kind == "T2w") / f"sub-{k:02d}_{kind}.nii.gz"
        changed = change(nib.load(path))
        path.unlink()
        nib.save(changed, path)
    folder = write_person(root / "bids", 30, t2=False)
    shutil.copy(folder / "sub-30_T1w.nii.gz", folder / "sub-30_acq-2_T1w.nii.gz")
    (write_person(root / "bids", 31, t2=False) / "sub-31_T1w.nii.gz").write_bytes(b"")
    write_person(root / "bids", 40, t2=False)
    job = preparation(root / "bids", root / "out")
    with pytest.raises(RuntimeError, match=f"^{len(FAULTS) + 2} of {len(FAULTS) + 3} sessions failed, the others are"):
        job.run()
    assert [row["id"] for row in job.result.rows if row["status"] != "failed"] == ["sub-40"]
    return {row["id"]: row["note"] for row in job.result.rows}


@pytest.mark.parametrize("k", range(len(FAULTS)), ids=lambda k: f"{FAULTS[k][0]}-{k}")
def test_a_session_with_a_bad_file_has_one_line_that_names_it(reasons, k):
    kind, _, words = FAULTS[k]
    reason = reasons[f"sub-{k:02d}"]
    assert reason.startswith(f"sub-{k:02d}_{kind}.nii.gz: ")
    assert words in reason
    assert "\n" not in reason


def test_two_t1w_images_and_an_empty_file_are_such_sessions_too(reasons):
    files = "sub-30_T1w.nii.gz, sub-30_acq-2_T1w.nii.gz"
    assert reasons["sub-30"] == f"expected one T1w of a session, found {files}: give --run 1, or --pattern"
    assert reasons["sub-31"].startswith("sub-31_T1w.nii.gz: cannot be read as an image")


def test_dicom_series_that_mix_geometries_fail_and_the_others_are_done(tmp_path):
    root = tmp_path / "dicom"
    write_series(root / "anna" / "t1")
    write_series(root / "ben" / "t1", turned=3)
    write_series(root / "cleo" / "t1", missing=2)
    mixed, other = write_series(root / "dora" / "t1"), write_series(tmp_path / "other")
    for file in other.iterdir():
        shutil.copy(file, mixed / f"again_{file.name}")
    cut = write_series(root / "emil" / "t1") / "3.dcm"
    cut.write_bytes(cut.read_bytes()[:900])
    job = preparation(root, tmp_path / "out", masks=None)
    with pytest.raises(RuntimeError, match="4 of 5 sessions failed"):
        job.run()
    notes = {row["id"]: row["note"] for row in job.result.rows}
    assert "mixes slices of different directions or sizes" in notes["sub-ben"]
    for name in ("cleo", "dora", "emil"):
        assert re.search("expected slices at equal distances, found 2 to [0-9]+ mm", notes[f"sub-{name}"])
    assert not notes["sub-anna"]


@pytest.fixture
def with_a_slice(tmp_path: Path) -> Path:
    """A person's head, and another person of whom there is a slice."""
    paths = [write_person(tmp_path / "bids", k, t2=False) / f"sub-{k:02d}_T1w.nii.gz" for k in (1, 2)]
    nib.save(nib.load(paths[1]).slicer[:, :, 15:16], paths[1])
    return tmp_path / "bids"


@pytest.mark.parametrize("times", [0.1, 10.0])
def test_a_template_of_another_species_fits_nobody(with_a_slice, tmp_path, times):
    head = nib.load(with_a_slice / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    template = tmp_path / "species.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(head.dataobj), np.diag([times, times, times, 1]) @ head.affine), template)
    job = preparation(with_a_slice, tmp_path / "out", masks=None, template=str(template))
    with pytest.raises(RuntimeError, match="2 of 2 sessions failed"):
        job.run()
    notes = {row["id"]: row["note"] for row in job.result.rows}
    assert f"has {times**-3:.2g} times the size of the template's: another species" in notes["sub-01"]
    assert "expected an image of 3 axes, as the template has, got 2" in notes["sub-02"]


def test_no_brain_is_looked_for_in_a_slice(with_a_slice, tmp_path):
    weights = str(Path(__file__).parents[2] / "bundles" / "brain_extraction" / "models" / "model.pt")
    job = preparation(with_a_slice, tmp_path / "out", masks=None, brain=True, brain_weights=weights)
    with pytest.raises(RuntimeError, match="sessions failed"):
        job.run()
    notes = {row["id"]: row["note"] for row in job.result.rows}
    assert "the brain is found in 3-D images alone: give --masks, or --brain False" in notes["sub-02"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no images found here, expected BIDS (sub-*/anat/*_T1w.nii.gz), other images, or folders with DICOM"),
        (("--spacing", "0"), "expected spacing to be a number above 0, got 0"),
        (("--spacing", "2,-1,2"), "expected spacing to be a number above 0, got -1"),
        (("--size", "0,32,32"), "expected size to be a whole number of at least 1, got 0"),
    ],
)
def test_a_folder_or_setting_that_cannot_be_is_one_line_before_anything_is_done(tmp_path, words, message):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("nothing")
    if words:
        write_person(tmp_path / "notes", 1, t2=False)
    said = run("prepare", tmp_path / "notes", "-o", tmp_path / "out", "--template", "none", *words)
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()
