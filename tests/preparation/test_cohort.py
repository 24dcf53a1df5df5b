"""A folder is prepared: each session has its files, one that fails stops nothing, and what is done stays."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from preparation.cases import MASKS, preparation, write_person

from custom_components.data.lists import load_list

FAILED = r"^1 of 4 sessions failed, the others are done; sub-03: .*sub-03_T1w.nii.gz: cannot be read as an image"


def run(people: Path, output: Path, **settings) -> dict[str, dict]:
    """The rows of a preparation of which sub-03 fails."""
    job = preparation(people, output, **settings)
    with pytest.raises(RuntimeError, match=FAILED):
        job.run()
    return {row["id"]: row for row in job.result.rows}


def changes(output: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in output.glob("sub-*/anat/*")}


def test_what_a_preparation_writes(people, tmp_path):
    output = tmp_path / "out"
    rows = run(people, output)
    assert list(rows) == ["sub-03", "sub-01", "sub-02", "sub-04"]
    assert [row["status"] for row in rows.values()] == ["failed", "good", "good", "good"]
    names = {path.name for path in (output / "sub-01" / "anat").iterdir()}
    for space in ("", "_space-T1w"):
        assert {f"sub-01{space}_desc-preproc_T1w.nii.gz", f"sub-01{space}_desc-brain_mask.nii.gz"} <= names
    assert not any((output / "sub-03").rglob("*.nii.gz"))
    description = json.loads((output / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "morphzoo prepare"
    scans = load_list(output / "datalist.json")
    assert [scan["subject"] for scan in scans] == ["sub-01", "sub-02", "sub-04"]
    assert scans[0]["age"] == 21
    assert scans[0]["sex"] == "M"
    assert "score" not in scans[1]
    table = (output / "participants.tsv").read_text().splitlines()
    assert table == ["participant_id\tage\tsex\tscore", "sub-01\t21\tM\t1", "sub-02\t22\tF\tn/a", "sub-04\t24\tF\t4"]
    assert "sub-03_T1w.nii.gz: cannot be read" in (output / "prepared.csv").read_text().splitlines()[1]
    log = json.loads((output / "sub-01" / "anat" / "log.json").read_text())
    steps = {step["step"]: step["parameters"] for step in log["steps"]}
    assert list(steps) == [
        *("LoadSessiond", "Orientationd", "Coregisterd", "Landmarksd", "ToTemplated", "OnGridd", "Normalized")
    ]
    assert steps["Normalized"]["scheme"] == "percentile"


def test_what_is_done_and_unchanged_stays_and_only_the_rest_is_done(people, tmp_path):
    output = tmp_path / "out"
    run(people, output)
    before = changes(output)
    run(people, output)
    assert changes(output) == before

    write_person(people, 3, t2=False)
    preparation(people, output).run()
    assert {path: before[path] for path in before} == {path: changes(output)[path] for path in before}
    assert (output / "sub-03" / "anat" / "log.json").is_file()
    (people / "sub-01" / "anat" / "sub-01_T1w.nii.gz").touch()
    preparation(people, output).run()
    changed = {path.parts[-3] for path in before if changes(output)[path] != before[path]}
    assert changed == {"sub-01"}


def test_other_settings_do_again_only_what_depends_on_them(people, tmp_path):
    output = tmp_path / "out"
    run(people, output)
    before = changes(output)
    run(people, output, normalize="zscore")
    changed = {path.name for path in before if changes(output)[path] != before[path] and "sub-01" in str(path)}
    assert "sub-01_space-T1w_desc-preproc_T1w.nii.gz" in changed
    assert "sub-01_desc-preproc_T1w.nii.gz" not in changed


def test_a_result_that_was_cut_short_or_fails_now_is_no_result(people, tmp_path):
    output = tmp_path / "out"
    run(people, output)
    folder = output / "sub-01" / "anat"
    manifest = json.loads((folder / "files.json").read_text())
    manifest["standard"]["unfinished"] = True
    (folder / "files.json").write_text(json.dumps(manifest))
    (output / "sub-02" / "anat" / "sub-02_desc-preproc_T1w.nii.gz").unlink()
    before = changes(output)
    run(people, output)
    changed = {path.parts[-3] for path in changes(output) if changes(output)[path] != before.get(path)}
    assert changed == {"sub-01", "sub-02"}

    (people / "sub-02" / "anat" / "sub-02_T1w.nii.gz").write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match="2 of 4 sessions failed"):
        preparation(people, output).run()
    assert not any((output / "sub-02").rglob("*.nii.gz"))


def test_nyul_brings_the_brains_to_one_scale(people, tmp_path):
    for path in people.glob("sub-0[24]/anat/*_T1w.nii.gz"):  # another scanner
        image = nib.load(path)
        nib.save(nib.Nifti1Image(3 * np.asarray(image.dataobj) + 500, image.affine), path)
    output = tmp_path / "out"
    run(people, output, normalize="nyul")
    means = []
    for k in (1, 2, 4):
        image, mask = (
            np.asarray(nib.load(output / f"sub-0{k}/anat/sub-0{k}_space-T1w_desc-{kind}.nii.gz").dataobj)
            for kind in ("preproc_T1w", "brain_mask")
        )
        means.append(image[mask > 0].mean())
    assert np.ptp(means) < 0.05 * np.mean(means)


def test_a_split_is_by_person_and_the_same_each_time(tmp_path):
    root, output = tmp_path / "bids", tmp_path / "out"
    for k in range(1, 6):
        for session in ("a", "b") if k == 1 else ("a",):
            write_person(root, k, session=session, t2=False)
    pattern = "sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}_mask.nii.gz"
    prepared = preparation(root, output, masks=pattern).run()
    assert len(prepared.rows) == 6
    sections = json.loads((output / "datalist.json").read_text())
    people = {name: {scan["subject"] for scan in sections[name]} for name in ("training", "validation")}
    assert not people["training"] & people["validation"]
    assert len(people["validation"]) == 2
    assert len(sections["validation_pairs"]) >= 2


@pytest.mark.slow
def test_several_processes_give_what_one_gives(people, tmp_path):
    rows = [run(people, tmp_path / f"out{jobs}", jobs=jobs) for jobs in (1, 2)]
    assert [row["measures"] for row in rows[0].values()] == [row["measures"] for row in rows[1].values()]
    one, two = (tmp_path / f"out{jobs}/sub-04/anat/sub-04_space-T1w_desc-preproc_T1w.nii.gz" for jobs in (1, 2))
    np.testing.assert_array_equal(nib.load(one).get_fdata(), nib.load(two).get_fdata())


@pytest.mark.slow
def test_the_groups_average_is_kept_until_the_group_changes(tmp_path):
    root, output = tmp_path / "bids", tmp_path / "out"
    for k in (1, 2):
        write_person(root, k, t2=False)
    first = preparation(root, output, template="group", template_rounds=1).run()
    average = output / "template" / "tpl-group_T1w.nii.gz"
    assert nib.load(average).shape == (36, 40, 34)
    assert all(row["measures"]["dice_template"] > 0.9 for row in first.rows)
    assert (output / "sub-01/anat/sub-01_from-T1w_to-group_mode-image_xfm.h5").is_file()
    before = average.stat().st_mtime_ns
    preparation(root, output, template="group", template_rounds=1).run()
    assert average.stat().st_mtime_ns == before


def test_a_mask_pattern_of_nobody_fails_each_session_alone(people, tmp_path):
    for path in people.glob("sub-01/anat/*_mask.nii.gz"):
        path.unlink()
    with pytest.raises(RuntimeError, match="2 of 4 sessions failed"):
        preparation(people, tmp_path / "out", masks=MASKS).run()
