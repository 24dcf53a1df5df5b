"""Claims: lists are checked before anything runs, splits are by person, pairs are of different people, draws repeat."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import DataLoader
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, RandScaleIntensityd

from custom_components.data.lists import is_pair, load_list, make_pairs, split_by_person
from custom_components.data.pairs import ScanPairDataset

_spec = importlib.util.spec_from_file_location("build", Path(__file__).resolve().parents[2] / "data_lists" / "build.py")
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

SCANS = [{"image": f"{i}.nii.gz", "subject": f"p{i // 2}"} for i in range(6)]  # three people, two scans each
LOAD = Compose([LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"])])


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write(folder, sections):
    path = folder / "list.json"
    path.write_text(json.dumps(sections))
    return path


def numbered(n=6, people=None, size=(4, 4)):
    """Scans that are constant images of their own number, with no file."""
    people = people or list(range(n))
    return [{"image": torch.full((1, *size), float(i)), "subject": f"p{people[i]}"} for i in range(n)]


def drawn(dataset):
    return [(int(item["moving"].max()), int(item["fixed"].max())) for item in (dataset[i] for i in range(len(dataset)))]


def test_phantom_list_is_read_with_absolute_paths(phantom_list):
    scans = load_list(phantom_list)
    assert len(scans) == 3
    assert all(
        Path(scan[key]).is_absolute() and Path(scan[key]).is_file() for scan in scans for key in ("image", "label")
    )
    assert all(is_pair(item) for item in load_list(phantom_list, "validation_pairs"))


def test_paths_are_relative_to_the_base_folder(tmp_path):
    touch(tmp_path / "data", "a.nii.gz")
    path = write(tmp_path, {"training": [{"label": "a.nii.gz"}]})
    assert load_list(path, base_dir=tmp_path / "data") == [{"label": str(tmp_path / "data" / "a.nii.gz")}]
    with pytest.raises(FileNotFoundError, match="1 of 1 files"):
        load_list(path)


def test_another_contrast_is_a_file_of_a_scan(tmp_path):
    for name in ("t1.nii.gz", "t2.nii.gz"):
        (tmp_path / name).touch()
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": [{"image": "t1.nii.gz", "contrast": "t2.nii.gz"}]}))
    (scan,) = load_list(path)
    assert scan["contrast"] == str(tmp_path / "t2.nii.gz")
    pair = make_pairs([scan, {**scan, "image": "other"}])[0]
    assert pair["contrast_moving"] == scan["contrast"]


def test_pairs_with_an_atlas_are_the_same_at_each_visit_unless_shuffled():
    scans = [{"image": f"{i}.nii.gz"} for i in range(10)]
    options = {"atlas": "atlas.nii.gz", "num_pairs": 5, "cache": False}
    kept = ScanPairDataset(scans, shuffle=False, **options)
    assert [kept[i]["moving"] for i in range(5)] == [f"{i}.nii.gz" for i in (0, 2, 4, 6, 8)]
    assert [kept[1]["moving"] for _ in range(5)] == ["2.nii.gz"] * 5
    drawn = ScanPairDataset(scans, **options)
    assert len({drawn[1]["moving"] for _ in range(20)}) > 1


def test_keys_of_other_projects_are_renamed_and_others_kept(tmp_path):
    touch(tmp_path, "m.nii", "f.nii", "l.nii")
    item = {"moving_image": "m.nii", "fixed_image": "f.nii", "fixed_label": "l.nii", "slice": 3}
    (pair,) = load_list(write(tmp_path, {"test": [item]}), "test")
    assert pair.keys() == {"moving", "fixed", "label_fixed", "slice"}
    assert pair["slice"] == 3


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"training": []}, ValueError, "is empty"),
        ({"validation": [{"image": "a"}]}, ValueError, "no section 'training'; it has: validation"),
        ([1], ValueError, "must hold an object"),
        ({"training": ["a.nii"]}, ValueError, "expected an object"),
        ({"training": [{"img": "a.nii"}]}, ValueError, "got img: item 0"),
        ({"training": [{"moving": "a.nii"}]}, ValueError, "moving and fixed"),
        ({"training": [{"image": ["a.nii"]}]}, ValueError, "expected a path for 'image'"),
        (
            {"training": [{"image": "a.nii"}, {"image": "b.nii"}]},
            FileNotFoundError,
            r"2 of 2 files .* first is .*a\.nii",
        ),
    ],
)
def test_bad_lists_get_one_clear_sentence(tmp_path, sections, error, message):
    with pytest.raises(error, match=message) as caught:
        load_list(write(tmp_path, sections))
    assert "\n" not in str(caught.value)


def test_missing_or_broken_list_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data list at"):
        load_list(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text('{"training": [')
    with pytest.raises(ValueError, match="not valid JSON"):
        load_list(tmp_path / "broken.json")


@pytest.mark.parametrize(
    ("kind", "count"), [("all", 30), ("neighbours", 5), ("same_person", 6), ("between_people", 24), ("atlas", 5)]
)
def test_number_of_pairs_by_kind(kind, count):
    pairs = make_pairs(SCANS, kind, atlas="0.nii.gz")
    assert len(pairs) == count == len({pair["id"] for pair in pairs})
    assert all(pair["moving"] != pair["fixed"] for pair in pairs)
    if kind in ("same_person", "between_people"):
        assert all((p["subject_moving"] == p["subject_fixed"]) == (kind == "same_person") for p in pairs)


def test_pairs_carry_labels_and_names():
    scans = [{"image": f"x/{n}.nii.gz", "label": f"y/{n}.nii.gz"} for n in "ab"]
    assert make_pairs(scans)[0] == {
        "id": "a-to-b",
        "moving": "x/a.nii.gz",
        "label_moving": "y/a.nii.gz",
        "fixed": "x/b.nii.gz",
        "label_fixed": "y/b.nii.gz",
    }


def test_limited_pairs_are_a_reproducible_choice():
    first, again, other = (make_pairs(SCANS, limit=7, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 7
    assert [p for p in make_pairs(SCANS) if p in first] == first


@pytest.mark.parametrize(
    ("kind", "scans", "message"),
    [
        ("some", SCANS, "expected a kind"),
        ("atlas", SCANS, "need an atlas"),
        ("between_people", SCANS[:2], "of 1 people"),
    ],
)
def test_impossible_pairs_are_refused(kind, scans, message):
    with pytest.raises(ValueError, match=message):
        make_pairs(scans, kind)


@given(n=st.integers(3, 40), a=st.floats(0.05, 0.9), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_no_person_is_in_two_sections(n, a, seed):
    scans = [{"image": str(i), "subject": i % n} for i in range(2 * n)]
    split = split_by_person(scans, {"training": a, "validation": (1 - a) / 2, "test": (1 - a) / 2}, seed)
    people = [{scan["subject"] for scan in section} for section in split.values()]
    assert sum(map(len, people)) == len(set.union(*people)) == n
    assert all(people)
    assert abs(len(people[0]) - a * n) <= 2


@pytest.mark.parametrize("fractions", [{"a": 0.5, "b": 0.2}, {"a": 1.5, "b": -0.5}, {}])
def test_fractions_must_add_up(fractions):
    with pytest.raises(ValueError, match="add up to 1"):
        split_by_person(SCANS, fractions)


def test_more_sections_than_people_are_refused():
    with pytest.raises(ValueError, match="1 people cannot fill 2 sections"):
        split_by_person(SCANS[:2], {"a": 0.5, "b": 0.5})


def test_drawn_pairs_are_of_different_people_and_reach_all():
    dataset = ScanPairDataset(numbered(6, people=[0, 0, 1, 1, 2, 2]), num_pairs=200).set_random_state(seed=0)
    pairs = drawn(dataset)
    assert all(m // 2 != f // 2 for m, f in pairs)
    assert len(set(pairs)) == 24


def test_scans_of_one_person_may_meet_if_allowed():
    pairs = drawn(ScanPairDataset(numbered(2, people=[0, 0]), between_people=False, num_pairs=20))
    assert set(pairs) == {(0, 1), (1, 0)}


def test_draws_repeat_with_the_seed_and_change_with_the_epoch():
    dataset = ScanPairDataset(numbered(), num_pairs=12)
    epochs = [drawn(dataset.set_random_state(seed)) for seed in (5, 5, 6)]
    assert epochs[0] == epochs[1] != epochs[2]
    assert drawn(dataset) != epochs[2]


def test_processes_seeded_alike_draw_different_pairs_for_different_indices():
    one, two = (ScanPairDataset(numbered(20), num_pairs=40).set_random_state(0) for _ in range(2))
    first = [int(one[i]["moving"].max()) for i in range(0, 40, 2)]
    second = [int(two[i]["moving"].max()) for i in range(1, 40, 2)]
    assert first != second


def test_random_pair_transform_is_seeded_too():
    def run():
        augment = RandScaleIntensityd("moving", 0.5, prob=1)
        dataset = ScanPairDataset(numbered(), pair_transform=augment).set_random_state(3)
        return [float(dataset[i]["image"].sum()) for i in range(4)]

    assert run() == run()


def test_scans_become_a_pair_with_image_and_compact_labels(phantom_list):
    dataset = ScanPairDataset(load_list(phantom_list), LOAD)
    item = dataset[0]
    assert {"moving", "fixed", "label_moving", "label_fixed", "image", "subject_moving", "subject_fixed"} == item.keys()
    assert item["image"].shape == (2, *item["moving"].shape[1:])
    assert torch.equal(item["image"][:1], item["moving"])
    assert item["moving"].dtype == torch.float32
    assert item["label_fixed"].dtype == torch.int16
    assert type(item["moving"]) is torch.Tensor


def test_large_label_ids_survive():
    scans = [{"label": torch.tensor([[[70000.0, 3.0]]])} | {"subject": i} for i in range(2)]
    item = ScanPairDataset(scans)[0]
    assert item["label_moving"].tolist() == [[[70000, 3]]]
    assert not item["label_moving"].is_floating_point()


def test_labels_alone_make_pairs_and_synthesis_makes_the_images():
    scans = [{"label": torch.full((1, 4, 4), i), "subject": i} for i in range(3)]
    plain = ScanPairDataset(scans)[0]
    assert "image" not in plain

    def synthesize(pair):
        return {**pair, "moving": pair["label_moving"].float(), "fixed": pair["label_fixed"].float()}

    assert ScanPairDataset(scans, pair_transform=synthesize)[0]["image"].shape == (2, 4, 4)


def test_image_is_built_after_the_pair_transform():
    def brighten(pair):
        pair["moving"] += 100  # in place: the cache must not change
        return pair

    dataset = ScanPairDataset(numbered(3), pair_transform=brighten, num_pairs=30)
    assert all(100 <= dataset[i]["image"][0].max() < 103 for i in range(30))


def test_atlas_is_always_fixed_and_scans_come_in_order():
    scans = numbered(4)
    dataset = ScanPairDataset(scans, atlas={"image": torch.full((1, 4, 4), 9.0)})
    assert drawn(dataset) == [(0, 9), (1, 9), (2, 9), (3, 9)]
    longer = drawn(ScanPairDataset(scans, atlas={"image": torch.full((1, 4, 4), 9.0)}, num_pairs=50))
    assert {f for _, f in longer} == {9}
    assert {m for m, _ in longer} == {0, 1, 2, 3}


def test_validation_pairs_are_the_same_in_each_epoch():
    dataset = ScanPairDataset(numbered(6, people=[0, 0, 1, 1, 2, 2]), num_pairs=5, shuffle=False)
    first = drawn(dataset)
    assert first == drawn(dataset)
    assert len(set(first)) == 5
    assert len(ScanPairDataset(numbered(4), shuffle=False)) == 12


def test_scans_meet_within_their_group_only():
    scans = [scan | {"group": i % 2} for i, scan in enumerate(numbered(6))]
    assert all(m % 2 == f % 2 for m, f in drawn(ScanPairDataset(scans, num_pairs=40)))


def test_scan_may_be_paired_with_itself():
    dataset = ScanPairDataset(numbered(4, people=[0, 0, 1, 1]), with_itself=True, num_pairs=60)
    assert set(drawn(dataset)) == {(i, i) for i in range(4)}
    assert drawn(dataset.set_random_state(1)) == drawn(dataset.set_random_state(1)) != drawn(dataset)


def test_one_scan_is_enough_to_meet_itself():
    assert drawn(ScanPairDataset(numbered(1), with_itself=True, num_pairs=3)) == [(0, 0)] * 3


def test_validation_pairs_with_itself_are_each_scan_once():
    assert drawn(ScanPairDataset(numbered(5), with_itself=True, shuffle=False)) == [(i, i) for i in range(5)]
    assert drawn(ScanPairDataset(numbered(6), with_itself=True, shuffle=False, num_pairs=3)) == [(0, 0), (2, 2), (4, 4)]


@pytest.mark.parametrize("cache", [True, False])
def test_both_sides_of_a_scan_with_itself_can_be_changed_apart(cache):
    def darken(pair):
        pair["moving"] -= 50
        return pair

    scans = numbered(1) if cache else [{"image": "one", "subject": "a"}]
    load = None if cache else lambda scan: {**scan, "image": torch.zeros(1, 4, 4)}
    item = ScanPairDataset(scans, load, darken, with_itself=True, cache=cache)[0]
    assert (item["moving"] == -50).all()
    assert (item["fixed"] == 0).all()


def test_given_pairs_come_in_order_with_the_transform_on_the_pair(phantom_list):
    pairs = load_list(phantom_list, "validation_pairs")
    keys = ["moving", "fixed", "label_moving", "label_fixed"]
    dataset = ScanPairDataset(pairs, Compose([LoadImaged(keys), EnsureChannelFirstd(keys)]))
    assert [dataset[i]["id"] for i in range(len(dataset))] == [pair["id"] for pair in pairs]
    assert dataset[0]["moving"].affine.shape == (4, 4)  # what writes results needs the space of the pair
    assert type(dataset[0]["image"]) is torch.Tensor


def test_scan_is_loaded_once_if_cached_and_each_time_if_not():
    calls = []

    def count(scan):
        calls.append(1)
        return scan

    cached = ScanPairDataset(numbered(3), count)
    drawn(cached), drawn(cached)
    assert len(calls) == 3
    calls.clear()
    drawn(ScanPairDataset(numbered(3), count, cache=False))
    assert len(calls) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_batches_and_repeats_with_the_seed(phantom_list, workers):
    def epoch():
        generator = torch.Generator().manual_seed(1)
        dataset = ScanPairDataset(load_list(phantom_list), LOAD, num_pairs=4)
        loader = DataLoader(dataset, num_workers=workers, batch_size=2, generator=generator)
        return torch.cat([batch["image"] for batch in loader])

    first = epoch()
    assert first.shape[:2] == (4, 2)
    assert torch.equal(first, epoch())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "at least one"),
        (numbered(2, people=[0, 0]), "no pair of different people"),
        ([*numbered(2), {"label": "c.nii.gz", "subject": "c"}], "images of all scans or of none, got 1 without"),
        ([{"image": "a"}, {"moving": "b", "fixed": "c"}], "mixture"),
    ],
)
def test_impossible_data_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        ScanPairDataset(data)


def test_unequal_sizes_are_named():
    scans = [numbered(1)[0], {"image": torch.zeros(1, 5, 4), "subject": "other"}]
    with pytest.raises(ValueError, match="must have one size"):
        ScanPairDataset(scans)[0]


def test_index_beyond_the_end_stops_iteration():
    assert len(list(ScanPairDataset(numbered(3)))) == 3


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
