"""The training curve, the progress bar and the terms of a loss."""

import csv

import pytest
import torch
from ignite.engine import Engine, Events
from training.cases import batches, make_training

from custom_components.training.logs import ProgressBar, TrainingCurve
from custom_components.training.loss_log import loss_terms


def read_rows(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def make_evaluator(score: float = 0.5) -> Engine:
    evaluator = Engine(lambda engine, batch: None)
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(score=score))
    return evaluator


def test_loss_terms_are_the_total_and_the_parts_by_name():
    loss, part = torch.tensor(2.0), torch.tensor(0.5)
    assert loss_terms({"loss": loss, "pred": {"terms": {"similarity": part}}}) == {"loss": loss, "similarity": part}


def test_loss_terms_of_a_loss_without_parts_are_the_total():
    assert list(loss_terms({"loss": torch.tensor(2.0), "pred": {}})) == ["loss"]


def run_curve(path, epochs: int, first: int = 0, validate_every: int = 1) -> Engine:
    engine, _ = make_training()
    evaluator = make_evaluator()
    engine.add_event_handler(Events.EPOCH_COMPLETED(every=validate_every), lambda: evaluator.run([0]))
    TrainingCurve(path, evaluator).attach(engine)

    @engine.on(Events.STARTED)
    def resume(engine: Engine) -> None:
        engine.state.epoch, engine.state.iteration = first, 3 * first

    engine.run(batches(), max_epochs=epochs)
    return engine


def test_curve_has_a_line_for_each_epoch_with_means_and_metrics(tmp_path):
    run_curve(tmp_path / "new" / "curve.csv", 2)
    rows = read_rows(tmp_path / "new" / "curve.csv")
    assert [(row["epoch"], row["iteration"]) for row in rows] == [("1", "3"), ("2", "6")]
    assert all(float(row["similarity"]) == pytest.approx(float(row["loss"]) / 2, abs=1e-5) for row in rows)
    assert [row["score"] for row in rows] == ["0.5", "0.5"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["curve.csv"]


def test_metrics_stand_in_the_epochs_with_validation_only(tmp_path):
    run_curve(tmp_path / "curve.csv", 5, validate_every=2)
    rows = read_rows(tmp_path / "curve.csv")
    assert [row["score"] for row in rows] == ["", "0.5", "", "0.5", ""]
    assert None not in rows[-1]


def test_curve_goes_on_when_a_run_is_resumed(tmp_path):
    run_curve(tmp_path / "curve.csv", 2)
    run_curve(tmp_path / "curve.csv", 4, first=2)
    assert [row["epoch"] for row in read_rows(tmp_path / "curve.csv")] == ["1", "2", "3", "4"]


def test_epochs_that_are_trained_again_replace_their_lines(tmp_path):
    run_curve(tmp_path / "curve.csv", 3)
    run_curve(tmp_path / "curve.csv", 3, first=1)
    assert [row["epoch"] for row in read_rows(tmp_path / "curve.csv")] == ["1", "2", "3"]


def test_new_run_begins_a_new_curve(tmp_path):
    run_curve(tmp_path / "curve.csv", 3)
    run_curve(tmp_path / "curve.csv", 1)
    assert [row["epoch"] for row in read_rows(tmp_path / "curve.csv")] == ["1"]


def test_curve_without_an_evaluator_has_the_losses(tmp_path):
    engine, _ = make_training()
    TrainingCurve(tmp_path / "curve.csv").attach(engine)
    engine.run(batches(), max_epochs=1)
    columns = ["epoch", "iteration", "seconds", "cpu_seconds", "loss", "similarity"]
    assert list(read_rows(tmp_path / "curve.csv")[0]) == columns


def test_progress_bar_shows_the_loss_and_its_terms(capsys):
    engine, _ = make_training()
    ProgressBar().attach(engine)
    engine.run(batches(), max_epochs=1)
    shown = capsys.readouterr().err
    assert "loss=" in shown
    assert "similarity=" in shown
