"""A pair that fails is a row of the table, the others are done, and a second call does only what is missing."""

import csv
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import nibabel as nib
import numpy as np
import pytest
from support import run

from custom_components.data.phantoms import phantom_pair, write_phantom_scans

QUICK = ("--affine", "none", "--optimize", "0", "--spacing", "4", "--bundle", "voxelmorph")
TINY = ("--affine", "none", "--optimize", "0", "--spacing", "2", "--average", "[]")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    write_phantom_scans(folder, 3, (24, 26, 28), num_validation=0, spacing_mm=(3.0, 3.0, 3.0))
    return sorted((folder / "images").iterdir())


@pytest.fixture
def data_list(images, tmp_path):
    """A list of three pairs; the moving image of the second is damaged."""
    (tmp_path / "bad.nii.gz").write_bytes(images[1].read_bytes()[:2000])
    moving = [images[0], tmp_path / "bad.nii.gz", images[1]]
    pairs = [{"id": f"p{i}", "moving": str(path), "fixed": str(images[2])} for i, path in enumerate(moving)]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"validation_pairs": pairs}))
    return path


def table(folder):
    return {row["id"]: row for row in csv.DictReader((folder / "metrics.csv").open())}


def test_a_damaged_scan_is_a_row_and_a_second_call_does_only_that_pair(data_list, images, tmp_path, capsys):
    out = tmp_path / "out"
    message = run("evaluate", data_list, "-o", out, *QUICK)
    assert message.startswith("morphzoo: error: 1 of 3 pairs failed, the others are done; p1: ")
    assert "truncated or damaged" in message
    assert "\n" not in message
    rows = table(out)
    assert list(rows) == ["p0", "p2", "p1"]
    assert "bad.nii.gz: cannot be read" in rows["p1"]["failure"]
    assert not rows["p1"]["ncc_after"]
    assert rows["p0"]["ncc_after"]
    assert json.loads((out / "metrics.json").read_text())["summary"]["ncc_after"]["n"] == 2
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "<b>3</b> pairs</button>" in page
    assert "<b>1</b> failed</button>" in page
    assert page.count('class="views"') == 2
    reports = re.findall(r'href="([^"#:]+)"', page)
    assert [unquote(report) for report in reports] == ["p0/report.html", "p2/report.html"]
    assert "morphzoo register" in (out / "p0" / "report.html").read_text(encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for i in (0, 2) for path in (out / f"p{i}").iterdir()}

    assert run("evaluate", data_list, "-o", out, *QUICK).startswith("morphzoo: error: 1 of 1 pairs failed")
    assert "2 of 3 pairs are done already" in capsys.readouterr().out
    assert list(table(out)) == ["p0", "p2", "p1"]
    (tmp_path / "bad.nii.gz").write_bytes(images[1].read_bytes())
    assert run("evaluate", data_list, "-o", out, *QUICK) is None
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert list(table(out)) == ["p0", "p2", "p1"]
    assert "failure" not in table(out)["p0"]
    first = (out / "metrics.csv").read_text()
    assert run("evaluate", data_list, "-o", out, *QUICK) is None
    assert "3 of 3 pairs are done already" in capsys.readouterr().out
    assert sorted((out / "metrics.csv").read_text().splitlines()) == sorted(first.splitlines())


def test_a_pair_is_done_again_when_its_files_or_settings_change(data_list, images, tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "bad.nii.gz").write_bytes(images[1].read_bytes())

    def number_done(*more):
        assert run("evaluate", data_list, "-o", out, *QUICK, *more) is None
        shown = capsys.readouterr().out
        return int(shown.split()[0]) if "are done already" in shown else 0

    assert number_done() == 0
    assert number_done("--optimize", "1") == 0
    assert number_done("--optimize", "1") == 3
    assert number_done("--optimize", "1", "--again") == 0
    image = nib.load(images[1])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), tmp_path / "bad.nii.gz")
    assert number_done("--optimize", "1") == 2
    (out / "p0" / "metrics.json").unlink()
    assert number_done("--optimize", "1") == 2


def test_images_that_do_not_overlap_are_a_row_too(images, tmp_path):
    far = nib.load(images[0])
    nib.save(nib.Nifti1Image(np.asarray(far.dataobj), far.affine + np.eye(4, k=3) * 900), tmp_path / "far.nii.gz")
    pairs = [{"moving": str(path), "fixed": str(images[2])} for path in (tmp_path / "far.nii.gz", images[0])]
    (tmp_path / "list.json").write_text(json.dumps({"validation_pairs": pairs}))
    message = run("evaluate", tmp_path / "list.json", "-o", tmp_path / "out", *QUICK)
    assert "1 of 2 pairs failed, the others are done" in message
    assert [bool(row["failure"]) for row in table(tmp_path / "out").values()] == [False, True]


def test_labels_have_their_names_on_both_pages_and_pairs_are_not_done_again_for_them(tmp_path, capsys):
    path = Path(write_phantom_scans(tmp_path, n=4, size=(40, 36), num_validation=2))
    out = tmp_path / "out"
    words = ("evaluate", path, "-o", out, "--affine", "none", "--optimize", "0", "--spacing", "1")
    (tmp_path / "labels.csv").write_text("id,name\n3,ventricle\n")
    assert run(*words) is None
    pages = [out / "index.html", next(out.glob("*/report.html"))]
    assert all("3 ventricle" in page.read_text(encoding="utf-8") for page in pages)
    assert "dice_after_3" in (out / "metrics.csv").read_text().splitlines()[0].split(",")
    (tmp_path / "other.csv").write_text("id,name\n3,lake\n")
    capsys.readouterr()
    assert run(*words, "--label_names", tmp_path / "other.csv") is None
    assert "2 of 2 pairs are done already" in capsys.readouterr().out
    assert ["3 lake" in page.read_text(encoding="utf-8") for page in pages] == [True, False]
    pair = [tmp_path / "images" / f"phantom_0{k}.nii.gz" for k in (0, 1)]
    wrong = ("register", *pair, "-o", tmp_path / "one", "--label_names", tmp_path / "out" / "index.html")
    assert "index.html: expected a CSV file (or .tsv)" in run(*wrong)
    assert not (tmp_path / "one").exists()


@pytest.mark.slow
def test_of_100_pairs_with_three_broken_scans_97_have_results_and_three_have_reasons(tmp_path, capfd):
    images = _tiny(tmp_path / "images", 100)
    for k in (7, 50, 99):
        images[k].write_bytes(images[k].read_bytes()[:200])
    pairs = [{"id": f"p{k:02d}", "moving": str(path), "fixed": str(images[0])} for k, path in enumerate(images)]
    pairs[0]["moving"] = str(images[1])
    (tmp_path / "list.json").write_text(json.dumps({"validation_pairs": pairs}))
    out, words = tmp_path / "out", (*TINY, "--jobs", "2")
    message = run("evaluate", tmp_path / "list.json", "-o", out, *words)
    assert message.startswith("morphzoo: error: 3 of 100 pairs failed, the others are done; p07: ")
    rows = table(out)
    assert len(rows) == 100
    assert sum(bool(row["ncc_after"]) for row in rows.values()) == 97
    reasons = {name: row["failure"] for name, row in rows.items() if row["failure"]}
    assert list(reasons) == ["p07", "p50", "p99"]
    assert all("cannot be read" in reason for reason in reasons.values())
    lines = {line.split(":")[0].strip() for line in capfd.readouterr().err.replace("\r", "\n").splitlines()}
    assert lines <= {"", "pairs"}


@pytest.mark.slow
def test_a_run_that_is_killed_half_way_goes_on_with_the_rest(tmp_path):
    images = _tiny(tmp_path / "images", 40)
    pairs = [{"id": f"p{k}", "moving": str(path), "fixed": str(images[0])} for k, path in enumerate(images[1:])]
    (tmp_path / "list.json").write_text(json.dumps({"validation_pairs": pairs}))
    out, words = tmp_path / "out", TINY
    command = [sys.executable, "-m", "custom_components", "evaluate", tmp_path / "list.json", "-o", out, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    while len(list(out.glob("*/metrics.json"))) < 5:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.json")}
    assert 5 <= len(done) < 39
    assert run("evaluate", tmp_path / "list.json", "-o", out, *words) is None
    assert len(table(out)) == 39
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert not list(out.glob(".unfinished*"))


def _tiny(folder, number):
    """Slices of 32 x 32 pixels of one kind of people."""
    folder.mkdir()
    for k in range(number):
        image = phantom_pair((32, 32), k)["fixed"][0, 0].numpy()
        nib.save(nib.Nifti1Image(image[..., None], np.diag([4.0, 4, 4, 1])), folder / f"{k:03d}.nii.gz")
    return sorted(folder.iterdir())
