"""The program that writes data lists."""

import json
import subprocess
import sys
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import pytest

from custom_components.data.lists import is_pair, load_list
from data_lists import build

SCANS = [{"image": f"{i}.nii.gz", "subject": f"p{i // 2}"} for i in range(6)]  # three people, two scans each


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write(folder, sections):
    path = folder / "list.json"
    path.write_text(json.dumps(sections))
    return path


def test_folder_pattern_finds_scans_with_labels(tmp_path):
    touch(
        tmp_path, *(f"t1/{s}_scan-{n}.nii.gz" for s in "ab" for n in (1, 2)), "t1/notes.txt", ".hidden/x_scan-1.nii.gz"
    )
    touch(tmp_path, *(f"seg/{s}_{n}.nii.gz" for s in "ab" for n in (1, 2)))
    scans = build.scans_from_folder(tmp_path, image="t1/{subject}_scan-{n}.nii.gz", label="seg/{subject}_{n}.nii.gz")
    assert scans[1] == {"image": "t1/a_scan-2.nii.gz", "label": "seg/a_2.nii.gz", "subject": "a", "n": "2"}
    assert len(scans) == 4
    (tmp_path / "seg" / "b_1.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 4 scans .* have no label"):
        build.scans_from_folder(tmp_path, image="t1/{subject}_scan-{n}.nii.gz", label="seg/{subject}_{n}.nii.gz")


def test_folder_pattern_needs_a_subject_and_a_match(tmp_path):
    with pytest.raises(ValueError, match="subject"):
        build.scans_from_folder(tmp_path, image="*.nii.gz")
    with pytest.raises(FileNotFoundError, match="matches"):
        build.scans_from_folder(tmp_path, label="{subject}.nii.gz")


def test_bids_with_and_without_sessions(tmp_path):
    touch(tmp_path, "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz", "sub-02/anat/sub-02_run-1_T1w.nii.gz")
    touch(tmp_path, "sub-02/func/sub-02_T1w.nii.gz", "sub-02/anat/sub-02_T2w.nii.gz")
    touch(tmp_path, "derivatives/fs/sub-01/ses-a/anat/sub-01_ses-a_desc-aseg_dseg.nii.gz")
    touch(tmp_path, "derivatives/fs/sub-02/anat/sub-02_run-1_space-T1w_desc-aseg_dseg.nii.gz")
    scans = build.scans_from_bids(tmp_path, derivatives="derivatives/fs", label_suffix="desc-aseg_dseg")
    assert [scan["subject"] for scan in scans] == ["sub-01", "sub-02"]
    assert scans[0]["session"] == "ses-a"
    assert scans[1]["label"].endswith("sub-02_run-1_space-T1w_desc-aseg_dseg.nii.gz")
    with pytest.raises(FileNotFoundError, match="no file"):
        build.scans_from_bids(tmp_path, mask_suffix="mask")


def test_neurite_oasis_follows_subjects_txt(tmp_path):
    for n in (1, 2, 4):
        touch(tmp_path, *(f"OASIS_OAS1_000{n}_MR1/aligned_{k}.nii.gz" for k in ("norm", "seg35", "seg4")))
    scans = build.scans_from_neurite_oasis(tmp_path, labels=4)
    assert [scan["subject"] for scan in scans] == ["OAS1_0001", "OAS1_0002", "OAS1_0004"]
    assert scans[0]["label"] == "OASIS_OAS1_0001_MR1/aligned_seg4.nii.gz"
    (tmp_path / "subjects.txt").write_text("OASIS_OAS1_0004_MR1\nOASIS_OAS1_0001_MR1\n")
    assert [s["subject"] for s in build.scans_from_neurite_oasis(tmp_path)] == ["OAS1_0004", "OAS1_0001"]
    (tmp_path / "subjects.txt").write_text("OASIS_OAS1_0009_MR1\n")
    with pytest.raises(FileNotFoundError, match="1 scans"):
        build.scans_from_neurite_oasis(tmp_path)


def test_learn2reg_list_keeps_validation_people_out_of_training(tmp_path):
    names = [f"OASIS_{n:04d}_0000.nii.gz" for n in (1, 2, 438, 439)]
    touch(tmp_path, *(f"{kind}Tr/{name}" for kind in ("images", "labels") for name in names))
    source = {
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
        "registration_val": [{"fixed": f"./imagesTr/{names[2]}", "moving": f"./imagesTr/{names[3]}"}],
    }
    path = write(tmp_path, source)
    sections = build.list_from_learn2reg(path)
    assert [item["subject"] for item in sections["training"]] == ["OASIS_0001", "OASIS_0002"]
    assert sections["validation_pairs"][0]["label_fixed"] == f"labelsTr/{names[2]}"
    (tmp_path / "imagesTr" / names[0]).unlink()
    with pytest.raises(FileNotFoundError, match="1 images"):
        build.list_from_learn2reg(path)


def test_paired_learn2reg_finds_masks_and_key_points(tmp_path):
    for t in (0, 1):
        touch(tmp_path, f"imagesTr/Lung_0001_000{t}.nii.gz", f"masksTr/Lung_0001_000{t}.nii.gz")
        touch(tmp_path, f"keypointsTr/Lung_0001_000{t}.csv")
    pair = {"fixed": "./imagesTr/Lung_0001_0000.nii.gz", "moving": "./imagesTr/Lung_0001_0001.nii.gz"}
    (item,) = build.list_from_learn2reg(write(tmp_path, {"training": [pair]}))["training"]
    assert item["mask_moving"] == "masksTr/Lung_0001_0001.nii.gz"
    assert item["landmarks_fixed"] == "keypointsTr/Lung_0001_0000.csv"


def test_command_writes_a_list_that_can_be_read(tmp_path):
    touch(tmp_path, *(f"{i}_seg.nii.gz" for i in range(10)))
    report = build.Commands(output=tmp_path / "list.json", validation=0.3).labelmaps(tmp_path, "{subject}_seg.nii.gz")
    assert "7 training" in report
    assert len(load_list(tmp_path / "list.json", "validation_pairs")) == 6
    (pair, *_) = load_list(tmp_path / "list.json", "validation_pairs")
    assert {"label_moving", "label_fixed"} <= pair.keys()


def test_each_scan_is_paired_with_an_atlas_inside_or_outside_of_the_folder(tmp_path, monkeypatch):
    folder, elsewhere = tmp_path / "scans", tmp_path / "atlas.nii.gz"
    touch(folder, *(f"{i}.nii.gz" for i in range(4)))
    touch(tmp_path, "atlas.nii.gz", "atlas_seg.nii.gz")
    monkeypatch.chdir(tmp_path)
    words = ["folder", "scans", "--image", "{subject}.nii.gz", "--validation", "1", "--pair_kind", "atlas", "--atlas"]
    fire.Fire(build.Commands, command=[*words, "scans/0.nii.gz", "-o", "scans/list.json"])
    pairs = load_list(folder / "list.json", "validation_pairs")
    assert {pair["fixed"] for pair in pairs} == {str(folder / "0.nii.gz")}
    assert [pair["subject_moving"] for pair in pairs] == ["1", "2", "3"]
    fire.Fire(
        build.Commands, command=[*words, elsewhere.name, "--atlas_label", "atlas_seg.nii.gz", "-o", "scans/list.json"]
    )
    pairs = load_list(folder / "list.json", "validation_pairs")
    assert {(pair["fixed"], pair["label_fixed"]) for pair in pairs} == {
        (str(elsewhere), str(tmp_path / "atlas_seg.nii.gz"))
    }
    assert len(pairs) == 4
    with pytest.raises(FileNotFoundError, match=r"lost.nii.gz: there is no such atlas"):
        fire.Fire(build.Commands, command=[*words, "lost.nii.gz", "-o", "scans/list.json"])


def test_command_line_writes_a_list_and_names_what_is_missing(tmp_path):
    touch(tmp_path, *(f"t1/{i}.nii.gz" for i in range(10)))
    run = [sys.executable, build.__file__, "folder", str(tmp_path), "--image"]
    output = ["--test", "0.2", "-o", str(tmp_path / "list.json")]
    done = subprocess.run([*run, "t1/{subject}.nii.gz", *output], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "6 training, 2 validation, 2 test, 2 validation_pairs, 2 test_pairs" in done.stdout
    failed = subprocess.run([*run, "t2/{subject}.nii.gz", *output], capture_output=True, text=True, cwd=tmp_path)
    assert failed.returncode != 0
    assert "no file in" in failed.stderr
    assert "Traceback" not in failed.stderr


ATTRIBUTES = [
    ("table.csv", "subject,age,sex\np0,20,F\np1,31.5,M\np2,70,F\nextra,1,M\n"),
    ("table.tsv", "participant_id\tage\tsex\nsub-p2\t70\tF\nsub-p0\t20\tF\nsub-p1\t31.5\tM\n"),
]


def attributed(folder, name="table.csv", text=ATTRIBUTES[0][1], columns=None):
    path = write(folder, {"name": "people", "training": SCANS[:4], "test": SCANS[4:], "test_pairs": [{"id": "a"}]})
    (folder / name).write_text(text)
    return build.add_attributes(path, folder / name, columns)


@pytest.mark.parametrize(("name", "text"), ATTRIBUTES, ids=["csv", "tsv"])
def test_columns_of_a_table_become_attributes_of_the_persons_scans(tmp_path, name, text):
    lists = attributed(tmp_path, name, text)
    found = {"p0": {"age": 20, "sex": "F"}, "p1": {"age": 31.5, "sex": "M"}, "p2": {"age": 70, "sex": "F"}}
    assert lists["training"] + lists["test"] == [{**scan, **found[scan["subject"]]} for scan in SCANS]
    assert (lists["name"], lists["test_pairs"]) == ("people", [{"id": "a"}])


def test_only_the_wanted_columns_are_added(tmp_path):
    lists = attributed(tmp_path, text="subject,age,sex\np0,20,\np1,31.5,\np2,70,\n", columns=["age"])
    assert lists["test"] == [{**scan, "age": 70} for scan in SCANS[4:]]


def test_people_of_a_list_may_be_called_as_in_bids(tmp_path):
    path = write(tmp_path, {"training": [{"image": "a.nii.gz", "subject": "sub-07"}]})
    (tmp_path / "table.csv").write_text("subject,age\n07,20\n")
    assert build.add_attributes(path, tmp_path / "table.csv")["training"][0]["age"] == 20


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("person,age\np0,20\n", None, "expected a column subject or participant_id"),
        ("", None, "expected a column subject or participant_id"),
        ("subject,age\np0,20\n", ["iq"], "expected the columns iq, got subject, age"),
        ("subject,age\np0,20\np1,30\n", None, "no complete row for p2"),
        ("subject,age\np0,20\np1,30\np2,\n", None, "no complete row for p2"),
        ("subject,age,sex\np0,20,F\np1,30,F\np2,40\n", None, "no complete row for p2"),
    ],
)
def test_incomplete_tables_are_refused(tmp_path, text, columns, message):
    with pytest.raises(ValueError, match=rf"table\.csv: {message}"):
        attributed(tmp_path, text=text, columns=columns)


def test_a_cell_that_bids_calls_missing_is_empty(tmp_path):
    with pytest.raises(ValueError, match="no complete row for p2"):
        attributed(tmp_path, text="subject,age\np0,20\np1,30\np2,n/a\n")


def with_maps(folder):
    """A list of two label maps of 40 voxels: 10 and 5 of label 4, 10 of label 7 (20 of it and of 8), background."""
    for name, count in (("a", 10), ("b", 5)):
        voxels = np.repeat([4, 7, 8, 0], [count, 10, 10, 20 - count]).astype(np.uint8)
        nib.save(nib.Nifti1Image(voxels.reshape(5, 4, 2), np.eye(4)), folder / f"{name}.nii.gz")
    scans = [{"label": f"{name}.nii.gz", "subject": name} for name in "ab"]
    return write(folder, {"training": scans[:1], "validation": scans[1:], "validation_pairs": []})


def test_share_of_a_structure_becomes_an_attribute(tmp_path):
    path = with_maps(tmp_path)
    lists = build.add_share(path, "ventricles", [4])
    assert lists["training"] == [{"label": "a.nii.gz", "subject": "a", "ventricles": pytest.approx(100 / 3, abs=1e-4)}]
    assert lists["validation"][0]["ventricles"] == 20
    assert lists["validation_pairs"] == []
    assert build.add_share(path, "both", [4, 8])["training"][0]["both"] == pytest.approx(200 / 3, abs=1e-4)
    assert build.add_share(path, "of", [4], of=[4, 7])["validation"][0]["of"] == pytest.approx(100 / 3, abs=1e-4)


def test_share_of_scans_without_labels_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"0\.nii\.gz has no label map"):
        build.add_share(write(tmp_path, {"training": SCANS}), "ventricles", [4])
    with pytest.raises(ValueError, match=r"a\.nii\.gz: no voxel has one of the labels \[9\]"):
        build.add_share(with_maps(tmp_path), "ventricles", [4], of=[9])


def build_command(folder, *words):
    return fire.Fire(build.Commands, command=[*map(str, words), "--output", str(folder / "new.json")])


def test_attributes_are_added_on_the_command_line(tmp_path):
    words = ["attributes", with_maps(tmp_path), tmp_path / "table.csv", "--columns"]
    (tmp_path / "table.csv").write_text("subject,age,sex\na,20,F\nb,30,M\n")
    report = build_command(tmp_path, *words, "age,sex")
    assert report == f"{tmp_path / 'new.json'}: 1 training, 1 validation, 0 validation_pairs"
    (scan,) = load_list(tmp_path / "new.json")
    assert scan == {"label": str(tmp_path / "a.nii.gz"), "subject": "a", "age": 20, "sex": "F"}
    with pytest.raises(ValueError, match="expected the columns age, iq"):
        build_command(tmp_path, *words, "age,iq")


def test_a_share_is_added_on_the_command_line(tmp_path):
    build_command(tmp_path, "share", with_maps(tmp_path), "ventricles", "--labels", "[4,8]", "--of", "[4,7,8]")
    assert load_list(tmp_path / "new.json", "validation")[0]["ventricles"] == 60


@pytest.mark.parametrize("words", [["attributes", "table.csv", "--columns", "age"], ["share", "x", "--labels", 4]])
def test_one_column_or_label_needs_no_brackets_on_the_command_line(tmp_path, words):
    path = with_maps(tmp_path)
    (tmp_path / "table.csv").write_text("subject,age,sex\na,20,F\nb,30,M\n")
    command, name, *rest = words
    name = tmp_path / name if command == "attributes" else name
    assert "1 training" in build_command(tmp_path, command, path, name, *rest)


@pytest.mark.parametrize("entry", [{"name": "ten people"}, {"version": 2}], ids=["name", "version"])
def test_only_sections_of_a_list_are_counted(tmp_path, entry):
    path = with_maps(tmp_path)
    path.write_text(json.dumps({**entry, **json.loads(path.read_text())}))
    report = build.Commands(output=tmp_path / "new.json").share(path, "ventricles", [4])
    assert report == f"{tmp_path / 'new.json'}: 1 training, 1 validation, 0 validation_pairs"


def test_ready_lists_are_lists_split_by_person():
    for path in Path(build.__file__).parent.glob("*.json"):
        sections = {k: v for k, v in json.loads(path.read_text()).items() if isinstance(v, list)}
        people = [{scan["subject"] for scan in sections[name]} for name in ("training", "validation", "test")]
        assert len(set.union(*people)) == sum(map(len, people))
        held_out = {p[f"subject_{side}"] for p in sections["validation_pairs"] for side in ("moving", "fixed")}
        assert held_out <= people[1]


def test_failed_writing_leaves_the_old_list(tmp_path):
    build.write_list(tmp_path / "list.json", {"training": [1]})
    with pytest.raises(TypeError):
        build.write_list(tmp_path / "list.json", {"training": [np.zeros(2)]})
    assert [p.name for p in tmp_path.iterdir()] == ["list.json"]
    assert json.loads((tmp_path / "list.json").read_text()) == {"training": [1]}


@pytest.mark.parametrize(
    ("name", "section"),
    [
        ("brain_slabs/datalist.json", "training"),
        ("labelmaps3d_2mm/datalist.json", "validation_pairs"),
        ("brains3d/datalist.json", "pairs"),
        ("brain_slabs/pairs_validation.json", "same_person"),
    ],
)
def test_real_lists_are_read(test_data, name, section):
    items = load_list(test_data / name, section)
    assert is_pair(items[0]) == (section != "training")
