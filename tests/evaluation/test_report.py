"""Pages of pairs and cohorts: what stands out comes first, texts are no markup, and a browser shows everything."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from browser import IMAGES, ask, needs_chromium

from custom_components.data.phantoms import phantom_pair
from custom_components.evaluation.report.cohort import cohort_page
from custom_components.evaluation.report.outliers import find_outliers, robust_scores, worst_first
from custom_components.evaluation.report.pages import link
from custom_components.evaluation.report.pair import pair_page
from custom_components.evaluation.report.stages import split_stage, stage_table
from custom_components.evaluation.report.views import make_views
from custom_components.evaluation.report.volumes import make_volumes
from custom_components.evaluation.summary import read_runs, write_cohort
from custom_components.fields import warp
from custom_components.space.grids import Grid
from custom_components.transforms.page import PairPage

HOSTILE = "</script><img src=x onerror=\"document.body.id='owned'\">&"


def images_of(pair):
    """Images and displacement of a phantom pair as a page takes them."""
    images = {key: pair[key][0] for key in ("moving", "fixed", "label_moving", "label_fixed")}
    return {**images, "warped": warp(pair["moving"], pair["ddf"])[0], "ddf": pair["ddf"][0]}


@pytest.fixture(scope="module")
def views(phantoms):
    return make_views(**images_of(phantoms), spacing_mm=[3.0] * (phantoms["ddf"].ndim - 2))


def write_pair(path: Path, **options) -> None:
    metrics = {"dice_before": 0.5, "dice_aligned": 0.6, "dice_after": 0.9, "dice_after_3": 0.8, "seconds": 2.0}
    known = {"title": "one", "inputs": {"moving": "a.nii.gz"}, "metrics": metrics, "captions": {}, "commands": {}}
    pair_page(path, **{**known, "files": {"metrics": "metrics.json"}, "origin": {}, **options})


def cohort(folder: Path, views, *, number: int = 10, **options) -> list[dict[str, object]]:
    """A folder as a run leaves it: pairs with views and a page, of which the last one is the worst, and a failure."""
    rows: list[dict[str, object]] = []
    for k in range(number):
        place = folder / f"pair {k}#"
        place.mkdir(parents=True)
        (place / "views.json").write_text(json.dumps(views))
        write_pair(place / "report.html", title=f"pair {k}", views=views)
        paths = {
            name: str((place / file).absolute()) for name, file in (("views", "views.json"), ("report", "report.html"))
        }
        dice = 0.3 if k == number - 1 else 0.8 + 0.01 * k
        rows.append({"id": f"pair {k}", "dice_after": dice, "folding_percent": 0.01 * k, **paths})
    rows.append({"id": "broken", "moving": HOSTILE, "failure": f"no image: {HOSTILE}"})
    cohort_page(folder, rows, **options)
    return rows


class TestOutliers:
    def test_scores_are_distances_from_the_median_in_robust_deviations(self):
        values = np.random.default_rng(0).normal(5, 2, 4000)
        assert robust_scores([*values, 15.0])[-1] == pytest.approx(5, abs=0.3)

    def test_a_few_bad_ones_do_not_hide_one_another(self):
        scores = robust_scores([*np.linspace(0.80, 0.84, 20), 0.1, 0.1, 0.1])
        assert all(score < -3.5 for score in scores[-3:])
        assert all(abs(score) < 3.5 for score in scores[:-3])

    def test_where_most_are_equal_the_others_are_measured_by_the_mean_deviation(self):
        assert robust_scores([0.0] * 19 + [1.0])[-1] > 3.5

    @pytest.mark.parametrize("values", [[1.0] * 19, [1.0, 2.0, 90.0], [1 + 1e-12 * k for k in range(19)]])
    def test_equal_and_few_values_have_none(self, values):
        assert max(map(abs, robust_scores(values))) < 1e-3

    def test_what_is_no_number_has_no_score(self):
        assert math.isnan(robust_scores([1.0, math.nan, *range(20)])[1])

    def test_only_the_worse_side_counts_and_what_was_before_does_not(self):
        rows = [{"dice_after": 0.5, "hd95_after_mm": 2.0, "dice_before": 0.5, "odd": 1.0} for _ in range(20)]
        rows.append({"dice_after": 0.9, "hd95_after_mm": 0.1, "dice_before": 0.0, "odd": -9.0})
        rows.append({"dice_after": 0.1, "hd95_after_mm": 9.0, "dice_before": 0.5, "odd": 1.0})
        found = find_outliers(rows, ["dice_after", "hd95_after_mm", "dice_before", "odd"])
        assert [set(one) for one in found[-2:]] == [{"odd"}, {"dice_after", "hd95_after_mm"}]
        assert not any(found[:-2])

    def test_failures_come_first_then_outliers_then_warnings(self):
        rows = [{"id": "fine"}, {"warnings": ["w"]}, {"id": "odd"}, {"failure": "f"}, {"id": "odder"}]
        assert worst_first(rows, [{}, {}, {"a": 4.0}, {}, {"a": -5.0}]) == [3, 4, 2, 1, 0]


class TestStages:
    @pytest.mark.parametrize(
        ("name", "parts"),
        [
            ("dice_after", ("dice", "after")),
            ("hd95_aligned_mm", ("hd95_mm", "aligned")),
            ("tre_max_mm_before", ("tre_max_mm", "before")),
            ("seconds", ("seconds", "after")),
        ],
    )
    def test_a_name_is_split_where_its_stage_stands(self, name, parts):
        assert split_stage(name) == parts

    def test_stages_of_a_measure_stand_in_one_row(self):
        assert stage_table({"x_before": 1, "x_after": 2, "y": 3}, ["x_before", "x_after", "y"]) == {
            "x": {"before": 1, "after": 2},
            "y": {"after": 3},
        }


class TestViews:
    def test_a_page_can_blink_frames_of_one_size(self, views):
        assert list(views["frames"]) == ["fixed", "aligned", "after"]
        layers = {"grid", "jacobian", "outlines_fixed", "outlines_aligned", "outlines_after"}
        assert set(views["layers"]) == layers
        assert len(json.dumps(views)) < 120_000

    def test_without_labels_there_are_no_outlines(self, phantoms):
        images = {key: one for key, one in images_of(phantoms).items() if "label" not in key}
        found = make_views(**images, spacing_mm=[1.0] * (phantoms["ddf"].ndim - 2))
        assert set(found["layers"]) == {"grid", "jacobian"}

    def test_pixels_are_square_in_the_world(self, phantoms):
        d = phantoms["ddf"].ndim - 2
        wide = make_views(**images_of(phantoms), spacing_mm=[2.0, *[1.0] * (d - 1)])["size"]
        assert wide[0] / wide[1] > 1.3 * np.divide(*make_views(**images_of(phantoms), spacing_mm=[1.0] * d)["size"])


class TestPages:
    def test_texts_are_no_markup(self, tmp_path):
        rows = [
            {"id": HOSTILE, "x": 1.0, "note": HOSTILE, "warnings": [HOSTILE], HOSTILE: 2.0},
            {"id": "b", "failure": HOSTILE},
        ]
        cohort_page(tmp_path, rows, title=HOSTILE, origin={HOSTILE: HOSTILE}, others={HOSTILE: [{"x": 2.0}]})
        write_pair(tmp_path / "report.html", title=HOSTILE, metrics={"warnings": [HOSTILE], HOSTILE: 1.0},
                   files={"a": HOSTILE}, commands={HOSTILE: HOSTILE}, inputs={HOSTILE: HOSTILE})  # fmt: skip
        for name in ("index.html", "report.html"):
            page = (tmp_path / name).read_text(encoding="utf-8")
            assert "<img" not in page
            assert page.count("</script>") == page.count("<script")

    def test_pages_need_no_network_and_are_the_same_again(self, views, tmp_path):
        for name in ("a", "b"):
            cohort(tmp_path / name, views)
        pages = [(tmp_path / name / "index.html").read_text(encoding="utf-8") for name in ("a", "b")]
        assert pages[0] == pages[1]
        assert not re.search(r"https?:", pages[0])

    def test_of_many_pairs_only_the_worst_have_their_views_in_the_page(self, views, tmp_path, monkeypatch):
        monkeypatch.setattr("custom_components.evaluation.report.cohort._MOST_VIEWS", 3)
        cohort(tmp_path, views)
        page = (tmp_path / "index.html").read_text(encoding="utf-8")
        assert page.count('class="views"') == 2  # the first one failed
        assert page.count("report.html") == 10

    def test_rows_are_called_what_they_are(self, tmp_path):
        rows = [{"id": name, "dice_after": 0.8} for name in ("ann", "ben")]
        cohort_page(tmp_path, rows, nouns=("person", "people"))
        text = (tmp_path / "index.html").read_text(encoding="utf-8")
        assert "<b>2</b> people" in text
        assert "<button>person</button>" in text
        assert " pairs</button>" not in text

    def test_labels_have_their_names_in_plots_and_tables_as_text(self, tmp_path):
        names = {3: "$\\frac$ <b>nucleus</b>", 4: "$x$"}
        rows = [{"id": name, "dice_after": 0.8, "dice_after_3": 0.7, "dice_after_17": 0.6} for name in "ab"]
        cohort_page(tmp_path, rows, label_names=names, others={"$\\frac$": [{"dice_after_3": 0.1}]})
        write_pair(tmp_path / "report.html", label_names=names)
        for page in ("index.html", "report.html"):
            text = (tmp_path / page).read_text(encoding="utf-8")
            assert "3 $\\frac$ &lt;b&gt;nucleus&lt;/b&gt;" in text
        assert re.search(r">\s*17\s*</text>", (tmp_path / "index.html").read_text(encoding="utf-8"))

    def test_other_runs_stand_beside(self, tmp_path):
        (tmp_path / "theirs").mkdir()
        write_cohort(tmp_path / "theirs", [{"id": "a", "dice_after": 0.25, "dice_after_3": 0.2}])
        found = read_runs([str(tmp_path / "theirs")])
        assert found == {"theirs": [{"id": "a", "dice_after": 0.25, "dice_after_3": 0.2}]}
        cohort_page(tmp_path, [{"id": "a", "dice_after": 0.5, "dice_after_3": 0.5}], others=found)
        assert re.search(
            r"(?s)<td>dice</td>.*<td>0\.25</td></tr>", (tmp_path / "index.html").read_text(encoding="utf-8")
        )
        with pytest.raises(FileNotFoundError, match="--compare: there is no table"):
            read_runs([str(tmp_path / "nobodys")])

    def test_other_kinds_of_pages_and_a_viewer_that_is_not_there_are_refused(self, tmp_path, monkeypatch):
        with pytest.raises(ValueError, match="--page: expected none, views, volumes, got 'movies'"):
            PairPage("movies")
        monkeypatch.setattr("custom_components.evaluation.report.volumes._VIEWER", tmp_path / "niivue.umd.js")
        with pytest.raises(FileNotFoundError, match="page 'volumes': the viewer NiiVue is not here"):
            PairPage("volumes")

    @pytest.mark.parametrize("name", ["a b", "a#b", "a?b", "a%20b", "ä"])
    def test_links_lead_to_files_of_any_name(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for folder in (Path("out"), tmp_path / "out"):
            address = link(tmp_path / "out" / name / "report.html", folder)
            assert unquote(address) == f"{name}/report.html"
            assert not set("#? ") & set(address)


@pytest.mark.slow
@needs_chromium
class TestInABrowser:
    @pytest.mark.parametrize("place", ["relative", "absolute", "with blanks", "with#mark"])
    def test_every_image_loads_wherever_the_results_are(self, place, tmp_path, monkeypatch):
        views = make_views(**images_of(phantom_pair((28, 32, 24), seed=3)), spacing_mm=[3.0] * 3)
        monkeypatch.chdir(tmp_path)
        folder = tmp_path / "out" if place == "absolute" else Path(place)
        cohort(folder, views)
        script = f"[{IMAGES}, [...document.querySelectorAll('#table a')].map((one) => one.getAttribute('href'))]"
        (widths, links), logged = ask(folder / "index.html", script)
        assert len(widths) == 10 * (len(views["frames"]) + len(views["layers"]))
        assert min(widths) > 200
        assert all((folder / unquote(one)).is_file() for one in links)
        assert len(links) == 10
        assert logged == []

    def test_the_table_is_sorted_filtered_marked_and_its_images_blink(self, tmp_path):
        views = make_views(**images_of(phantom_pair((40, 36), seed=3)), spacing_mm=[3.0] * 2)
        cohort(tmp_path, views)
        script = """(async () => {
            const names = () => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.dataset.name);
            const click = (what) => document.querySelector(what).click();
            const key = (one) => document.dispatchEvent(new KeyboardEvent("keydown", { key: one, bubbles: true }));
            const heading = [...table.tHead.rows[0].cells].find((one) => one.textContent.trim() === "dice after");
            const found = { first: names() };
            heading.querySelector("button").click(); found.up = names();
            heading.querySelector("button").click(); found.down = names();
            click('[data-filter="failed"]'); found.failed = names();
            click('[data-filter=""]');
            document.getElementById("search").value = "PAIR 3"; document.getElementById("search").oninput();
            found.searched = names();
            document.getElementById("search").value = ""; document.getElementById("search").oninput();
            document.querySelector(".thumb .views").click(); found.large = large.querySelector("h2").textContent;
            document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
            found.next = large.querySelector("h2").textContent;
            document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "n", bubbles: true }));
            found.marked = [...document.querySelectorAll(".mark.bad")].map((one) => one.closest("tr").dataset.name);
            click('[data-blink="fixed after"]'); const frames = new Set();
            const seen = (one) => getComputedStyle(one).visibility === "visible";
            for (let i = 0; i < 40; i++) {
                const images = [...document.querySelectorAll("dialog .views img")];
                frames.add(images.filter(seen).map((one) => one.dataset.frame).join());
                await new Promise((done) => setTimeout(done, 100));
            }
            found.frames = [...frames].sort();
            return found;
        })()"""
        found, logged = ask(tmp_path / "index.html", script)
        assert logged == []
        assert found["first"][:2] == ["broken", "pair 9"]
        assert found["up"] == ["pair 9", *[f"pair {k}" for k in range(9)], "broken"]
        assert found["down"] == [*[f"pair {k}" for k in range(8, -1, -1)], "pair 9", "broken"]
        assert (found["failed"], found["searched"]) == (["broken"], ["pair 3"])
        assert (found["large"], found["next"], found["marked"]) == ("pair 8", "pair 7", ["pair 7"])
        assert found["frames"] == ["after", "fixed"]

    def test_volumes_are_drawn_by_the_viewer_in_the_page(self, phantoms, views, tmp_path):
        images = images_of(phantoms)
        d = phantoms["ddf"].ndim - 2
        shown = {"fixed": images["fixed"], "aligned": images["moving"], "registered": images["warped"]}
        labels = {"fixed labels": images["label_fixed"], "moving labels": images["label_moving"]}
        volumes = make_volumes(shown, images["ddf"], Grid(np.diag([*[3.0] * d, 1.0]), images["ddf"].shape[1:]), labels)
        write_pair(tmp_path / "report.html", views=views, volumes=volumes)
        script = """(async () => {
            above.value = "log2 J"; await above.onchange();
            return [document.getElementById("trouble").textContent, document.getElementById("viewer").dataset.ready];
        })()"""
        wait = "document.getElementById('viewer').dataset.ready || document.getElementById('trouble').textContent"
        found, logged = ask(tmp_path / "report.html", script, wait=wait)
        assert found == ["", "yes"]
        assert not [line for line in logged if "rror" in line]
        assert (tmp_path / "report.html").stat().st_size < 2e6
