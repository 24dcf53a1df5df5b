"""Warnings are collected by the block that gives rise to them, and logged once."""

import json
import threading

import nibabel as nib
import numpy as np
import pytest
import torch
from support import published

from custom_components.evaluation.cohort import Cohort, cohort_page, write_cohort
from custom_components.evaluation.result import Registration
from custom_components.fields import warp
from custom_components.notices import collecting, warn
from custom_components.transforms.load import LoadPaird
from custom_components.transforms.publish import Report


def test_a_block_collects_its_warnings_each_once_as_one_line():
    with collecting() as found:
        warn("a.nii:  two\n words")
        warn("a.nii: two words")
        warn("b.nii: other")
    assert found == ["a.nii: two words", "b.nii: other"]


def test_an_outer_block_has_the_warnings_of_an_inner_one():
    with collecting() as outer:
        warn("one")
        with collecting() as inner:
            warn("two")
        warn("three")
    assert (inner, outer) == (["two"], ["one", "two", "three"])


def test_a_block_that_fails_collects_no_more():
    with pytest.raises(ValueError, match="x"), collecting() as found:
        raise ValueError("x")
    warn("later")
    assert found == []


def test_threads_do_not_mix_their_warnings():
    with collecting() as found:
        thread = threading.Thread(target=warn, args=("of the thread",))
        thread.start()
        thread.join()
    assert found == []


def test_a_warning_is_logged_once(caplog):
    for _ in range(3):
        warn("again")
    assert caplog.messages == ["again"]


@pytest.fixture
def item(tmp_path):
    """A loaded pair whose files have no world frame, with an answer."""
    for name, shift in (("m", 0), ("f", 1)):
        image = np.zeros((12, 12, 12), np.float32)
        image[3 + shift : 8, 3:8, 3:8] = 1
        header = nib.Nifti1Image(image, None)
        header.header.set_sform(None, 0)
        nib.save(header, tmp_path / f"{name}.nii.gz")
    loaded = LoadPaird()({"moving": str(tmp_path / "m.nii.gz"), "fixed": str(tmp_path / "f.nii.gz")})
    ddf = torch.zeros(3, *loaded["fixed"].shape[1:])
    return {**loaded, "pred": {"ddf": ddf, "warped": warp(loaded["moving"][None], ddf[None])[0]}}


def test_what_loading_and_reporting_warn_of_stands_in_the_result_and_its_files(item, tmp_path):
    def doubtful(pair, earlier):
        warn("the report doubts")
        return Report({"measure": 1.0})

    result = published(item, tmp_path / "out", doubtful)
    names = [text.rpartition("/")[2].partition(":")[0] for text in result.warnings]
    assert names == ["m.nii.gz", "f.nii.gz", "the report doubts"]
    assert json.loads(result.files["metrics"].read_text())["warnings"] == result.warnings
    assert [f"warning: {text}" for text in result.warnings] == str(result).splitlines()[:3]


def test_a_result_without_doubt_has_no_warnings(item, tmp_path):
    result = published({**item, "warnings": ""}, tmp_path / "out", lambda pair, earlier: Report({"measure": 1.0}))
    assert result.warnings == []
    assert json.loads(result.files["metrics"].read_text())["warnings"] == []


def test_the_tables_and_the_page_of_a_cohort_show_warnings(tmp_path):
    metrics = {"one": {"ncc": 1.0, "warnings": ["a < b", "second"]}, "two": {"ncc": 2.0, "warnings": []}}
    cohort = Cohort(tmp_path, tuple(Registration(key, tmp_path, {}, value) for key, value in metrics.items()))
    write_cohort(tmp_path, cohort.rows)
    cohort_page(tmp_path, cohort.rows)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["ncc,warnings", "1,a < b; second", "2,"]
    assert json.loads((tmp_path / "metrics.json").read_text())["pairs"] == list(metrics.values())
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.index("</summary>a &lt; b</details>") < page.index("</summary>second</details>")
    assert "warning: one: a < b" in str(cohort).splitlines()


def test_a_page_without_warnings_has_no_column_for_them(tmp_path):
    cohort_page(tmp_path, [{"id": "one", "ncc": 1.0, "warnings": []}])
    assert "with warnings" not in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<summary>warning" not in (tmp_path / "index.html").read_text(encoding="utf-8")
