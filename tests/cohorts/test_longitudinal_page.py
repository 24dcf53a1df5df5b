"""The page of two time points: what changed in colours, what to blink, volumes, commands, and nothing broken."""

from __future__ import annotations

import base64
import io
import json
import shlex

import nibabel as nib
import numpy as np
import pytest
import torch
from browser import IMAGES, ask, needs_chromium
from cohorts.test_longitudinal import FAST, person, write
from support import run

from custom_components.commands.longitudinal import longitudinal
from custom_components.evaluation.report.views import change_views


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("time <b>")
    (a, label), (b, _) = person(), person(0.12, 0.06)
    return {name: write(folder / f"{name}.nii.gz", image) for name, image in {"a": a, "b": b, "label": label}.items()}


@pytest.fixture(scope="module")
def made(scans, tmp_path_factory):
    output, names = tmp_path_factory.mktemp("page") / "out", tmp_path_factory.mktemp("names") / "dseg.tsv"
    names.write_text("index\tname\n3\t<i>ventricle</i>\n")
    known = {"label_first": scans["label"], "label_names": str(names), "page": "volumes"}
    return longitudinal(scans["a"], scans["b"], output, **known, **FAST)


def colours(views) -> np.ndarray:
    from PIL import Image

    uri = views["layers"]["percent"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA")).astype(int)


def test_shrinkage_is_blue_growth_orange_and_the_limit_opaque():
    """Columns from the left: no change, half of the limit and all of it; radiologists' left is high."""
    percent = torch.zeros(1, 40, 20)
    percent[0, 10:20], percent[0, 20:30], percent[0, 30:] = 10.0, -20.0, 20.0
    image = torch.rand(1, 40, 20)
    frames = dict.fromkeys(("first_aligned", "second_aligned", "first", "second"), image)
    shown = colours(change_views(frames, percent, limit=20.0, spacing_mm=[1.0, 1.0]))
    high, fall, half, none = (shown[shown.shape[0] // 2, int(x * shown.shape[1])] for x in (0.1, 0.35, 0.6, 0.9))
    assert list(high[:3]) == [0xFF, 0xB3, 0x47]
    assert list(fall[:3]) == [0x35, 0xC4, 0xDC]
    assert none[3] == 0
    assert high[3] == fall[3] == 220
    assert 90 < half[3] < 150


def test_the_page_says_what_changed_and_how_to_do_it_again(made, scans):
    page = (made.folder / "report.html").read_text(encoding="utf-8")
    assert "Volumes of each label, cm2" in page
    assert all(f"<td>{row['percent']:.4g}</td>" in page for row in made.volumes)
    command = f"morphzoo longitudinal {shlex.quote(scans['a'])} {shlex.quote(scans['b'])} --label_first"
    assert command.replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;") in page
    assert "<td>3 &lt;i&gt;ventricle&lt;/i&gt;</td>" in page
    assert "<td>2</td>" in page
    assert "label    3:" in str(made)
    assert "% <i>ventricle" in str(made)
    assert (made.folder / "volumes.csv").read_text().splitlines()[3].startswith("3,<i>ventricle</i>,")
    assert "--optimize 10" in page
    assert "--label_names" in page
    assert "<dt>torch</dt>" in page
    assert 'href="percent_change.nii.gz"' in page
    assert "<b>.nii" not in page
    assert "report.html" in json.loads((made.folder / "files.json").read_text())["longitudinal"]["files"]


def test_warnings_of_a_scan_stand_on_the_page_and_in_the_measures(scans, tmp_path):
    image = nib.load(scans["b"])
    values = np.asarray(image.dataobj).copy()
    values[:3, :3] = np.nan
    nib.save(nib.Nifti1Image(values, image.affine), tmp_path / "holes.nii.gz")
    found = longitudinal(scans["a"], tmp_path / "holes.nii.gz", tmp_path / "out", optimize=1)
    assert sum("holes.nii.gz: 9 voxels are NaN" in one for one in found.measures["warnings"]) == 1
    assert "voxels are NaN" in str(found)
    assert "voxels are NaN" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "voxels are NaN" in (tmp_path / "out" / "metrics.json").read_text()


def test_the_page_can_be_left_out_and_other_pages_are_refused(scans, tmp_path):
    words = ("longitudinal", scans["a"], scans["a"], "-o", tmp_path / "out", "--page")
    assert "--page: expected none, views, volumes, got 'movies'" in run(*words, "movies")
    assert not (tmp_path / "out").exists()
    assert run(*words, "none", "--optimize", "1") is None
    assert not (tmp_path / "out" / "report.html").exists()
    assert (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.slow
@needs_chromium
def test_a_browser_blinks_both_pairs_and_lays_the_change_over_them(made):
    script = """(async () => {
        const all = (what) => [...document.querySelectorAll(what)];
        const seen = () => all(".views img").filter((one) => getComputedStyle(one).visibility === "visible")
            .map((one) => one.dataset.frame || one.dataset.layer).join();
        const key = (one) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key: one, bubbles: true }));
        const watch = async () => {
            const found = new Set();
            for (let i = 0; i < 20; i++) { found.add(seen()); await new Promise((done) => setTimeout(done, 100)); }
            return [...found].sort();
        };
        const found = { opened: seen(), checked: all("input:checked").map((one) => one.dataset.layerSwitch) };
        key("p"); key(" "); found.before = await watch();
        key("b"); found.after = await watch();
        key("1"); found.held = await watch();
        key("2"); key("d"); found.difference = seen(); key("d");
        key("3"); key("o"); found.outlines = seen();
        found.legend = all("[data-legend]").filter((one) => one.checkVisibility()).map((one) => one.dataset.legend);
        found.scale = document.querySelector("[data-legend=percent]").textContent;
        found.trouble = document.getElementById("trouble").textContent;
        found.shown = above.value;
        found.said = document.getElementById("scale").textContent;
        return found;
    })()"""
    wait = "document.getElementById('viewer').dataset.ready || document.getElementById('trouble').textContent"
    found, logged = ask(made.folder / "report.html", script, wait=wait)
    assert found["opened"] == "second_aligned,percent"
    assert found["checked"] == ["percent"]
    assert found["before"] == ["first_aligned", "second_aligned"]
    assert found["after"] == ["first", "second"]
    assert found["held"] == ["first_aligned"]
    assert found["difference"] == "first_aligned,second_aligned"
    assert found["outlines"] == "first,outlines_first"
    assert found["legend"] == ["outlines"]
    assert "\u221220 %" in found["scale"]
    assert (found["trouble"], found["shown"]) == ("", "percent change")
    assert "to 20" in found["said"]
    assert not [line for line in logged if "rror" in line]
    (widths, _) = ask(made.folder / "report.html", IMAGES)
    assert min(widths) > 200
