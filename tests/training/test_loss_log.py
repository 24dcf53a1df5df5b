"""The losses of a training are read from its device once in a while, and every one of them is."""

import math

import pytest
import torch
from ignite.engine import Engine, Events

from benchmarks.waits import Waits
from custom_components.training import loss_log
from custom_components.training.finite import FiniteLoss
from custom_components.training.logs import ProgressBar, TrainingCurve
from custom_components.training.loss_log import LossLog

STEPS = 6


def losses_on(device, bad: int | None = None) -> Engine:
    """An engine of `STEPS` steps an epoch whose loss is the number of the step, a term of it that number's half."""

    def step(engine: Engine, batch: object) -> dict:
        number = engine.state.iteration
        loss = torch.full((), math.nan if number == bad else float(number), device=device)
        return {"loss": loss, "pred": {"terms": {"half": loss / 2, "constant": 3.0}}}

    return Engine(step)


def logged(engine: Engine, epochs: int = 1) -> list[tuple[int, list]]:
    """At which steps the log was read, and what."""
    log, seen = LossLog.of(engine), []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append((e.state.iteration, log.rows)))
    engine.run(range(STEPS), max_epochs=epochs)
    return [(step, rows) for step, rows in seen if rows]


def row(step: int) -> tuple[int, dict]:
    return step, {"loss": float(step), "half": step / 2, "constant": 3.0}


@pytest.fixture
def slow_clock(monkeypatch):
    monkeypatch.setattr(loss_log, "_PAUSE", math.inf)


def test_losses_on_the_cpu_are_read_at_every_step():
    assert logged(losses_on("cpu")) == [(step, [row(step)]) for step in range(1, STEPS + 1)]


def test_losses_on_a_device_are_read_at_the_end_of_an_epoch(slow_clock):
    with Waits() as waits:
        read = logged(losses_on(waits.device), epochs=2)
    assert read == [(6, [row(step) for step in range(1, 7)]), (12, [row(step) for step in range(7, 13)])]
    assert list(waits.places.values()) == [2]


def test_losses_on_a_device_are_read_when_a_second_is_over(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(loss_log.time, "monotonic", lambda: 0.4 * next(now))
    with Waits() as waits:
        steps = [step for step, _ in logged(losses_on(waits.device))]
    assert 1 < len(steps) < STEPS
    assert steps[-1] == STEPS


def test_the_curve_and_the_bar_show_what_they_show_on_the_cpu(slow_clock, tmp_path, capsys):
    texts = []
    for name in ("cpu", "device"):
        with Waits() as waits:
            engine = losses_on(waits.device if name == "device" else "cpu")
            TrainingCurve(tmp_path / f"{name}.csv").attach(engine)
            ProgressBar().attach(engine)
            engine.run(range(STEPS), max_epochs=2)
        lines = (tmp_path / f"{name}.csv").read_text().splitlines()
        texts.append([line.split(",")[:2] + line.split(",")[4:] for line in lines])  # without the seconds
        assert "half=6" in capsys.readouterr().err
    assert texts[0] == texts[1]


def test_a_loss_on_a_device_that_is_not_finite_ends_the_training_before_its_epoch_does(slow_clock):
    engine, ended = losses_on(Waits.device, bad=3), []
    FiniteLoss().attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: ended.append(1))
    with Waits(), pytest.raises(FloatingPointError, match=r"became nan at step 3 \(epoch 1\)"):
        engine.run(range(STEPS), max_epochs=2)
    assert not ended
