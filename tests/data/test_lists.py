"""Lists are checked before anything runs; splits are by person."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from custom_components.data.lists import is_pair, load_list, make_pairs, split_by_person
from custom_components.data.pairs import ScanPairDataset

SCANS = [{"image": f"{i}.nii.gz", "subject": f"p{i // 2}"} for i in range(6)]  # three people, two scans each


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write(folder, sections):
    path = folder / "list.json"
    path.write_text(json.dumps(sections))
    return path


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


def test_the_affine_of_a_pair_is_a_word_or_a_file_beside_the_list(tmp_path):
    touch(tmp_path, "a.nii.gz", "b.nii.gz", "there.tfm")
    pair = {"moving": "a.nii.gz", "fixed": "b.nii.gz"}
    path = write(tmp_path, {"pairs": [{**pair, "affine": word} for word in ("there.tfm", "itk", "elsewhere.tfm")]})
    found = [item["affine"] for item in load_list(path, "pairs")]
    assert found == [str(tmp_path / "there.tfm"), "itk", "elsewhere.tfm"]


def test_a_folder_or_an_image_is_no_list(tmp_path):
    with pytest.raises(IsADirectoryError, match="expected a data list, a JSON file, got a folder"):
        load_list(tmp_path)
    (tmp_path / "image.nii.gz").write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(ValueError, match=r"image\.nii\.gz: expected a data list, a JSON file, got one that is no text"):
        load_list(tmp_path / "image.nii.gz")


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
