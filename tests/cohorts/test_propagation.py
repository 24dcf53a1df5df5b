"""Labels of atlases on the scans of a list: the files, the volumes, what fails, and what is done again."""

from __future__ import annotations

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from support import run

from custom_components.data.phantoms import phantom_pair

FAST = ("--affine", "none", "--stages", "affine")  # nothing moves: what is tested is what comes after


def write_scan(folder, k, size=(32, 30), affine=None):
    """A phantom's image and label map; a slice or a volume."""
    pair = phantom_pair(size, k)
    affine = np.diag([2.0, 3.0, 4.0, 1.0]) if affine is None else affine
    paths = {}
    for kind, name in (("fixed", "image"), ("label_fixed", "label")):
        array = pair[kind][0, 0].numpy()
        array = array.reshape(*array.shape, *(1,) * (3 - array.ndim))
        array = array.astype(np.float32 if name == "image" else np.uint8)
        paths[name] = folder / f"{k}_{name}.nii.gz"
        nib.save(nib.Nifti1Image(array, affine), paths[name])
    return {key: str(path) for key, path in paths.items()} | {"id": f"s{k}"}


@pytest.fixture
def people(tmp_path):
    """Four slices: three atlases' list, and a list of two people, one of whom is an atlas, too."""
    scans = [write_scan(tmp_path, k) for k in range(4)]
    scans[3]["mask"] = scans[3]["label"]
    (tmp_path / "atlases.json").write_text(json.dumps({"training": scans[:3]}))
    (tmp_path / "list.json").write_text(json.dumps({"validation": scans[2:]}))
    return tmp_path


def read(path):
    return list(csv.DictReader(path.open()))


def test_labels_volumes_and_dice(people):
    out = people / "out"
    assert run("propagate", people / "atlases.json", "--to", people / "list.json", "-o", out, *FAST) is None
    rows = {row["id"]: row for row in read(out / "metrics.csv")}
    assert {name: row["num_atlases"] for name, row in rows.items()} == {"s2": "2", "s3": "3"}
    made, given = (nib.load(path) for path in (out / "s3" / "labels.nii.gz", people / "3_image.nii.gz"))
    assert made.shape == given.shape
    np.testing.assert_allclose(made.affine, given.affine)
    labels = np.asarray(made.dataobj)
    truth = np.asarray(nib.load(people / "3_label.nii.gz").dataobj)
    for row in (row for row in read(out / "volumes.csv") if row["id"] == "s3"):
        where, known = labels == int(row["label"]), truth == int(row["label"])
        assert float(row["volume_ml"]) == pytest.approx(where.sum() * 24 / 1000)
        assert float(row["volume_template_ml"]) == pytest.approx(float(row["volume_ml"]))
        assert float(row["dice"]) == pytest.approx(2 * (where & known).sum() / (where.sum() + known.sum()))
        assert float(row["intracranial_ml"]) == pytest.approx((truth > 0).sum() * 24 / 1000)


def test_labels_have_names_if_a_table_says_so(people):
    """Beside the list of the atlases; columns of metrics.csv stay, and a name needs no second registration."""
    out, words = people / "out", ("propagate", people / "atlases.json", "--to", people / "list.json", *FAST)
    assert run(*words, "-o", out) is None
    columns, made = list(read(out / "metrics.csv")[0]), (out / "s3" / "labels.nii.gz").stat().st_mtime_ns
    assert "name" not in read(out / "volumes.csv")[0]
    (people / "dseg.tsv").write_text("index\tname\n1\tcortex\n3\tventricle\n")
    assert run(*words, "-o", out) is None
    rows = [row for row in read(out / "volumes.csv") if row["id"] == "s3"]
    assert [(row["label"], row["name"]) for row in rows] == [("1", "cortex"), ("2", ""), ("3", "ventricle"), ("4", "")]
    assert list(read(out / "metrics.csv")[0]) == columns
    assert "3 ventricle" in (out / "index.html").read_text(encoding="utf-8")
    assert (out / "s3" / "labels.nii.gz").stat().st_mtime_ns == made
    (people / "other.csv").write_text("id,name\n3,lake\n")
    assert run(*words, "-o", out, "--label_names", people / "other.csv") is None
    assert "3 lake" in (out / "index.html").read_text(encoding="utf-8")
    assert "nowhere.csv: there is no such table" in run(*words, "-o", out, "--label_names", "nowhere.csv")


@pytest.mark.parametrize("size", [(32, 30), (20, 24, 22)])
def test_an_atlas_of_the_same_person_gives_her_labels(tmp_path, size):
    scan = write_scan(tmp_path, 0, size)
    copy = tmp_path / "copy.nii.gz"
    copy.write_bytes((tmp_path / "0_image.nii.gz").read_bytes())
    atlas = f"{scan['image']},{scan['label']}"
    assert run("propagate", atlas, "--to", copy, "-o", tmp_path / "out", *FAST) is None
    made = nib.load(tmp_path / "out" / "copy" / "labels.nii.gz")
    np.testing.assert_array_equal(made.dataobj, nib.load(scan["label"]).dataobj)


def test_volumes_in_the_atlas_s_size_go_through_the_affine_part(tmp_path):
    small = write_scan(tmp_path, 0, (20, 24, 22), np.diag([2.0, 2.0, 2.0, 1.0]))
    large = tmp_path / "large.nii.gz"
    nib.save(nib.Nifti1Image(nib.load(small["image"]).get_fdata(), np.diag([2.5, 2.5, 2.5, 1.0])), large)
    words = (f"{small['image']},{small['label']}", "--to", large, "-o", tmp_path / "out", "--stages", "affine")
    assert run("propagate", *words, "--affine", "torch") is None
    atlas = np.asarray(nib.load(small["label"]).dataobj)
    rows = read(tmp_path / "out" / "volumes.csv")
    assert sum(float(row["volume_template_ml"]) for row in rows) == pytest.approx((atlas > 0).sum() * 8e-3, rel=0.05)
    assert sum(float(row["volume_ml"]) for row in rows) == pytest.approx((atlas > 0).sum() * 15.625e-3, rel=0.05)


def test_a_scan_that_fails_is_a_row_and_only_what_is_missing_or_changed_is_done(people, capsys):
    out, whole = people / "out", (people / "3_image.nii.gz").read_bytes()
    (people / "3_image.nii.gz").write_bytes(whole[:200])
    words = ("propagate", people / "atlases.json", "--to", people / "list.json", "-o", out, *FAST)
    assert run(*words).startswith("morphzoo: error: 1 of 2 scans failed, the others are done; s3: ")
    assert [bool(row["failure"]) for row in read(out / "metrics.csv")] == [False, True]
    assert {row["id"] for row in read(out / "volumes.csv")} == {"s2"}
    (people / "3_image.nii.gz").write_bytes(whole)
    assert run(*words) is None
    assert "1 of 2 scans are done already" in capsys.readouterr().out
    assert {row["id"] for row in read(out / "volumes.csv")} == {"s2", "s3"}
    assert run(*words, "--fusion", "majority") is None
    assert "done already" not in capsys.readouterr().out


def test_workers_of_a_scheduler_give_what_one_process_gives(people, scheduler):
    made = []
    for name, words in (("here", ()), ("there", ("--scheduler", scheduler))):
        out = people / name
        assert run("propagate", people / "atlases.json", "--to", people / "list.json", "-o", out, *words, *FAST) is None
        made.append([nib.load(out / name / "labels.nii.gz").get_fdata() for name in ("s2", "s3")])
    np.testing.assert_array_equal(*made)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(people):
    made = []
    for jobs in ("1", "2"):
        out = people / f"out{jobs}"
        words = (people / "atlases.json", "--to", people / "list.json", "-o", out, "--jobs", jobs, *FAST)
        assert run("propagate", *words) is None
        made.append([nib.load(out / name / "labels.nii.gz").get_fdata() for name in ("s2", "s3")])
        assert "s3" in (out / "index.html").read_text(encoding="utf-8")
    np.testing.assert_array_equal(*made)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected atlases, each IMAGE,LABELS"),
        (("0_image.nii.gz",), "expected an atlas as IMAGE,LABELS, or a data list, got '0_image.nii.gz'"),
        (("0_image.nii.gz,lost.nii.gz",), "lost.nii.gz: there is no such file (label)"),
        (("atlases.json", "--fusion", "mean"), "fusion"),
        (("atlases.json", "--bundle", "conditional_atlas"), "registers single scans to its template"),
        (("atlases.json", "--jobs", "0"), "expected jobs to be a whole number"),
    ],
)
def test_what_is_wrong_is_one_line(people, monkeypatch, words, message):
    monkeypatch.chdir(people)
    said = run("propagate", *words, "--to", "list.json", "-o", "out", *FAST)
    assert message in said
    assert "\n" not in said
    assert not (people / "out").exists()
