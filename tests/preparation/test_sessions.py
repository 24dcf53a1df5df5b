"""What is found in a folder: sessions of BIDS, of plain names, of patterns, and of DICOM series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from preparation.cases import write_series

from custom_components.preparation.sessions import contrast_of, find_sessions


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(root: Path, **options):
    sessions = find_sessions(root, **options)
    return {one.id: {name: str(Path(path).relative_to(root)) for name, path in one.images.items()} for one in sessions}


def test_bids_sessions_have_their_contrasts_and_nothing_that_was_prepared(tmp_path):
    names = [
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_FLAIR.nii",
        "sub-02/ses-b/anat/sub-02_ses-b_T2w.nii.gz",
    ]
    others = ["sub-01/func/sub-01_bold.nii.gz", "derivatives/x/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"]
    touch(tmp_path, *names, *others, "sub-01/anat/sub-01_space-MNI_T1w.nii.gz")
    assert found(tmp_path) == {"sub-01": {"T1w": names[0], "FLAIR": names[1]}, "sub-02_ses-b": {"T2w": names[2]}}


def test_two_t1w_images_of_a_session_are_a_problem_until_a_run_is_named(tmp_path):
    runs = [f"sub-01/anat/sub-01_run-0{k}_T1w.nii.gz" for k in (1, 2)]
    touch(tmp_path, *runs, "sub-02/anat/sub-02_T1w.nii.gz")
    first, second = find_sessions(tmp_path)
    assert first.problem == (
        "expected one T1w of a session, found sub-01_run-01_T1w.nii.gz, sub-01_run-02_T1w.nii.gz: "
        "give --run 1, or --pattern"
    )
    assert not second.problem
    assert found(tmp_path, run=2)["sub-01"] == {"T1w": runs[1]}
    assert found(tmp_path, run=2)["sub-02"] == {"T1w": "sub-02/anat/sub-02_T1w.nii.gz"}
    assert "--run 3 does not single one out" in find_sessions(tmp_path, run=3)[0].problem


def test_plain_names_are_person_and_contrast(tmp_path):
    touch(tmp_path, "anna_t1.nii.gz", "anna_T2w.nii", "ben.nii.gz", "cleo/flair.nrrd", "readme.txt")
    assert found(tmp_path) == {
        "sub-anna": {"T1w": "anna_t1.nii.gz", "T2w": "anna_T2w.nii"},
        "sub-ben": {"T1w": "ben.nii.gz"},
        "sub-cleo": {"FLAIR": "cleo/flair.nrrd"},
    }


def test_a_pattern_names_person_session_and_contrast(tmp_path):
    touch(tmp_path, "x/anna/1_mprage.nii.gz", "x/anna/2_T1.nii.gz", "x/anna/1_other.nii.gz", "masks/anna_1.nii.gz")
    pattern = "x/{subject}/{session}_{contrast}.nii.gz"
    assert found(tmp_path, pattern=pattern) == {
        "sub-anna_ses-1": {"T1w": "x/anna/1_mprage.nii.gz"},
        "sub-anna_ses-2": {"T1w": "x/anna/2_T1.nii.gz"},
    }
    one, two = find_sessions(tmp_path, pattern=pattern, masks="masks/{subject}_{session}.nii.gz")
    assert one.mask == str(tmp_path / "masks/anna_1.nii.gz")
    assert "there is no such mask" in two.problem
    with pytest.raises(ValueError, match=r"nothing is known of \{scanner\}"):
        find_sessions(tmp_path, pattern=pattern, masks="{scanner}.nii.gz")


def test_dicom_series_are_named_by_their_folder_or_description(tmp_path):
    write_series(tmp_path / "anna" / "day1" / "0003", description="Sag MPRAGE")
    write_series(tmp_path / "anna" / "day1" / "t2_tse", description="")
    write_series(tmp_path / "ben" / "localizer", description="scout")
    assert found(tmp_path) == {"sub-anna_ses-day1": {"T1w": "anna/day1/0003", "T2w": "anna/day1/t2_tse"}}


@pytest.mark.parametrize("options", [{}, {"pattern": "{subject}.mgz"}])
def test_a_folder_without_images_is_refused(tmp_path, options):
    touch(tmp_path, "notes.txt")
    with pytest.raises(FileNotFoundError, match="no images found here"):
        find_sessions(tmp_path, **options)


@pytest.mark.parametrize(
    ("text", "contrast"),
    [
        ("t1", "T1w"),
        ("sag MPRAGE iso", "T1w"),
        ("T2 FLAIR", "FLAIR"),
        ("ax t2", "T2w"),
        ("t2*", None),
        ("t2star", None),
        ("t10", None),
        ("dwi", None),
    ],
)
def test_contrasts_are_read_from_words(text, contrast):
    assert contrast_of(text) == contrast


def test_series_that_mix_geometries_are_refused(tmp_path):
    from custom_components.space.volumes import load_image

    assert load_image(write_series(tmp_path / "good")).data.shape == (1, 24, 20, 6)
    with pytest.raises(ValueError, match="mixes slices of different directions"):
        load_image(write_series(tmp_path / "turned", turned=3))
    with pytest.raises(ValueError, match="expected slices at equal distances, found 2 to 4 mm"):
        load_image(write_series(tmp_path / "gap", missing=2))
    np.testing.assert_allclose(load_image(tmp_path / "good").grid.spacing, [1, 1, 2])
