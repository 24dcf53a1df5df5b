"""The page of a cohort."""

import csv
import json
import re
from pathlib import Path

import pytest
from ignite.engine import Engine

from custom_components.evaluation.cohort import CohortReport
from custom_components.evaluation.result import Registration


def read_rows(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def registered(**metrics) -> dict:
    return {"registration": Registration(metrics["id"], Path(metrics["id"]), {}, metrics)}


def run_cohort(folder, outputs: list[list[dict]]) -> None:
    engine = Engine(lambda engine, batch: batch)
    CohortReport(folder).attach(engine)
    engine.run(outputs, max_epochs=1)


def test_cohort_report_writes_a_table_numbers_and_a_page(tmp_path):
    run_cohort(tmp_path, [[registered(id=name, dice_after=dice)] for name, dice in (("a", 0.5), ("b", 0.7))])
    assert [row["id"] for row in read_rows(tmp_path / "metrics.csv")] == ["a", "b"]
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert result["num_pairs"] == 2
    assert result["summary"]["dice_after"]["mean"] == pytest.approx(0.6)
    assert "dice_after" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_one_pair_needs_no_cohort_report(tmp_path):
    run_cohort(tmp_path, [[registered(id="a")]])
    assert not list(tmp_path.iterdir())


def test_one_pair_takes_the_place_of_an_earlier_cohort(tmp_path):
    run_cohort(tmp_path, [[registered(id="a"), registered(id="b")]])
    assert (tmp_path / "index.html").exists()
    run_cohort(tmp_path, [[registered(id="a")]])
    assert not list(tmp_path.iterdir())


def test_a_table_that_no_run_wrote_is_refused_before_the_first_pair(tmp_path):
    (tmp_path / "metrics.csv").write_text("mine")
    seen = []
    engine = Engine(lambda engine, batch: seen.append(batch))
    CohortReport(tmp_path).attach(engine)
    with pytest.raises(FileExistsError, match=r"metrics\.csv is there already"):
        engine.run([1], max_epochs=1)
    assert seen == []
    assert (tmp_path / "metrics.csv").read_text() == "mine"


def test_the_page_shows_pictures_of_a_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = []
    for name in ("a", "b"):
        picture = Path("evaluated") / name / "picture.png"
        picture.parent.mkdir(parents=True)
        picture.write_bytes(b"png")
        pairs.append({"registration": Registration(name, picture.parent, {"picture": picture}, {"id": name})})
    run_cohort("evaluated", [pairs])
    page = (tmp_path / "evaluated" / "index.html").read_text(encoding="utf-8")
    links = re.findall('src="([^"]+)"', page)
    assert [(tmp_path / "evaluated" / link).read_bytes() for link in links] == [b"png", b"png"]


def test_items_without_measures_are_passed_over(tmp_path):
    run_cohort(tmp_path, [[{"warped": 0}, registered(id="a", x=1.0)], [registered(id="b", x=2.0)]])
    assert [row["id"] for row in read_rows(tmp_path / "metrics.csv")] == ["a", "b"]
