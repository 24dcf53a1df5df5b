"""Names of labels come from one kind of table, wherever it lies; what is none is said."""

from __future__ import annotations

import logging

import pytest

from custom_components.data.label_names import find_label_names, read_label_names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "id,name,tissue\n3,white matter,WM\n17, left  hippocampus ,GM\n20,,GM\n"),
        ("labels.csv", '\ufeffname,id\n"white matter",3\nleft\u00a0hippocampus,17\n'),
        ("dseg.tsv", "index\tname\tabbreviation\n3\twhite matter\tWM\n17\tleft hippocampus\tHC\n"),
    ],
)
def test_names_are_read_from_csv_and_from_bids_tables(name, text, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_label_names(tmp_path / name) == {3: "white matter", 17: "left hippocampus"}


@pytest.mark.parametrize(
    "text", ["", "id,title\n1,a\n", "name\na\n", "id,name\nx,a\n", "id,name\n1,a,b\n", "id,name\n1\n"]
)
def test_what_is_no_such_table_is_refused(text, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=r"labels.csv: expected a CSV file \(or .tsv\) in UTF-8 with the columns id or"
    ):
        read_label_names(path)
    path.write_bytes(b"id,name\n1,\xff\xfe\n")
    with pytest.raises(ValueError, match="expected a CSV file"):
        read_label_names(path)


def test_a_table_that_is_asked_for_must_be_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv: there is no such table of label names"):
        find_label_names(str(tmp_path / "nowhere.csv"))


def test_the_table_beside_a_list_is_taken_the_one_asked_for_before_it(tmp_path, monkeypatch, caplog):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    lists = [str(tmp_path / folder / "list.json") for folder in ("a", "b")]
    assert find_label_names(None, *lists, "image.nii.gz") == (None, {})
    (tmp_path / "b" / "dseg.tsv").write_text("index\tname\n1\tcortex\n")
    assert find_label_names(None, *lists) == (str(tmp_path / "b" / "dseg.tsv"), {1: "cortex"})
    (tmp_path / "b" / "labels.csv").write_text("id,name\n1,cortex\n")
    assert find_label_names(None, *lists).path == str(tmp_path / "b" / "labels.csv")
    with caplog.at_level(logging.WARNING):
        (tmp_path / "a" / "labels.csv").write_text("id,t1_prior_mean\n1,20\n")
        assert find_label_names(None, *lists).path == str(tmp_path / "b" / "labels.csv")
        assert caplog.text == ""
        (tmp_path / "a" / "labels.csv").write_text("name,id\ncortex,one\n")
        assert find_label_names(None, *lists).path == str(tmp_path / "b" / "labels.csv")
    assert "its labels have no names" in caplog.text
    monkeypatch.chdir(tmp_path / "b")
    assert find_label_names("dseg.tsv", *lists).path == str(tmp_path / "b" / "dseg.tsv")
