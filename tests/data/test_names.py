"""Names of results: safe as one part of a path, unique, and told apart by the folders that differ."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from custom_components.data.lists import make_pairs
from custom_components.data.names import distinct_names, item_name, named, result_name, safe_name, unique_names
from custom_components.results import publishing

_TEXTS = st.text(st.characters(codec="utf-8"), max_size=300)


@settings(max_examples=200, deadline=None)
@given(_TEXTS)
def test_a_safe_name_is_one_part_of_a_path_and_stays_as_it_is(text):
    name = safe_name(text)
    assert name
    assert os.path.basename(os.path.normpath(f"out/{name}")) == name
    assert not name.startswith(".")
    assert len(name.encode()) <= 200
    assert safe_name(name) == name


@pytest.mark.parametrize("text", ["sub-01_T1w", "a b", "OAS1_0001.T1", "x=1,y+2", "été", "100%", "#1", "$HOME", "~"])
def test_regular_names_stay_as_they_are(text):
    assert safe_name(text) == text


@pytest.mark.parametrize(
    ("text", "name"),
    [("sub-01/ses-1", "sub-01_ses-1"), ("../../x", "__.._x"), ("C:\\x", "C__x"), (".x", "_x"), ("x. ", "x_")],
)
def test_what_is_no_name_becomes_one(text, name):
    assert safe_name(text) == name


@pytest.mark.parametrize("text", ["", "..", "/", "files.json", "Metrics.CSV", "x" * 201, "\u00e9" * 150])
def test_names_that_cannot_stay_get_a_digest(text):
    assert safe_name(text).rpartition("-")[2] != text
    assert safe_name(text) != safe_name(text + "x")


def test_text_that_looks_alike_has_one_name():
    assert safe_name("e\u0301t\u00e9") == safe_name("\u00e9t\u00e9")


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/t1.nii.gz", "a/t2.nii.gz"], ["t1", "t2"]),
        (["s1/mri/brain.mgz", "s2/mri/brain.mgz"], ["s1_brain", "s2_brain"]),
        (["s1/x/brain.mgz", "s1/y/brain.mgz", "s2/x/brain.mgz"], ["s1_x_brain", "s1_y_brain", "s2_x_brain"]),
        (["a/m.png", "a/m.jpg"], ["m.png", "m.jpg"]),
        (["a/m.png", "a/m.jpg", "b/m.jpg"], ["a_m.png", "a_m.jpg", "b_m"]),
        (["m.nii", "b/m.nii"], [None, "b_m"]),
    ],
)
def test_files_of_one_name_are_told_apart_by_what_differs(paths, names):
    found = [distinct_names(paths)[path] for path in paths]
    assert len({*found}) == len(paths)
    assert [name for name, wanted in zip(found, names, strict=True) if wanted] == [name for name in names if name]


_PARTS = st.sampled_from(["a", "b", "a_b", "m"])
_FILES = st.sampled_from(["m.nii", "m.nii.gz", "b_m.png", "a__b.nii"])
_PATHS = st.builds(lambda x, y, file: f"/{x}/{y}/{file}", _PARTS, _PARTS, _FILES)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(_PATHS, _PATHS), min_size=1, max_size=8, unique=True))
def test_no_two_pairs_have_one_name(pairs):
    items = [{"moving": moving, "fixed": fixed} for moving, fixed in pairs]
    assert len({*unique_names(items)}) == len(pairs)
    assert len({item["id"] for item in named(items)}) == len(pairs)
    some = [{**item, "id": "m__m"} if i == 0 else item for i, item in enumerate(items)]
    assert len({item["id"] for item in named(some)}) == len(pairs)


def test_pairs_that_are_the_same_need_ids():
    pair = {"moving": "m.nii", "fixed": "f.nii"}
    with pytest.raises(ValueError, match="items 0 and 2 are the same, f__m: give each an id"):
        named([pair, {"moving": "f.nii", "fixed": "m.nii"}, pair])
    assert [item["id"] for item in named([{**pair, "id": "a"}, pair])] == ["a", "f__m"]


@pytest.mark.parametrize("ids", [("a", "a"), (1, "1"), ("a/b", "a_b")])
def test_ids_that_name_one_folder_are_refused(ids):
    items = [{"id": id, "moving": f"{i}.nii", "fixed": "f.nii"} for i, id in enumerate(ids)]
    with pytest.raises(ValueError, match=r"items 0 and 1 of the list have ids that name one folder"):
        named(items)


def test_an_id_is_a_text():
    with pytest.raises(ValueError, match="expected a text as the id of item 0"):
        named([{"id": {"_target_": "os.system"}, "moving": "m.nii", "fixed": "f.nii"}])


def test_a_scan_is_named_by_its_subject_and_session_too():
    assert item_name({"image": "x/t1.nii.gz", "subject": "anna", "session": 2}) == "anna_2_t1"
    assert item_name({"image": "x/anna_t1.nii.gz", "subject": "anna"}) == "anna_t1"


def test_pairs_of_scans_of_one_name_have_ids_with_their_folders():
    scans = [{"image": f"sub{i}/mri/brain.mgz"} for i in (1, 2)]
    assert [pair["id"] for pair in make_pairs(scans)] == ["sub2_brain-to-sub1_brain", "sub1_brain-to-sub2_brain"][::-1]


def hold(folder, **item):
    with publishing(folder, "pair", {role: str(path) for role, path in item.items()}) as scratch:
        (scratch / "x").write_text("")


def test_a_folder_of_another_pair_is_never_a_pairs_folder(tmp_path):
    out, files = tmp_path / "out", [tmp_path / part / "m.nii" for part in "abc"]
    names = []
    for file in [*files, *files]:
        item = {"moving": str(file), "fixed": str(file)}
        names.append(result_name(out, item))
        hold(out / names[-1], **item)
    assert names[:3] == names[3:]
    assert len({*names}) == 3
    with pytest.raises(FileExistsError, match=r"out/m__m holds the result of .*a/m\.nii.*: take another output folder"):
        result_name(out, {"id": "m__m", "moving": "m.nii", "fixed": "f.nii"})
