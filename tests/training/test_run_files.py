"""Files of two trainings in one folder never pass for those of one."""

import contextlib

import pytest
import torch
from ignite.engine import Engine, Events
from training.cases import batches, make_training

from custom_components.results import read_manifest
from custom_components.training import BestCheckpoint, TrainingRecord
from custom_components.training.finite import FiniteLoss
from custom_components.training.logs import TrainingCurve


class Stop(Exception):
    pass


@pytest.fixture(autouse=True)
def plain_logs(monkeypatch):
    """The curve alone: there are no images to show."""
    monkeypatch.setattr(
        TrainingRecord, "_attach_logs", lambda self, engine: TrainingCurve(self.output_dir / "curve.csv").attach(engine)
    )


def train(folder, epochs=2, *, seed=0, stop_at=None, stop_on=Events.EPOCH_COMPLETED, interval=1, resume=False):
    """A training with a validation every `interval` epochs, which may end early."""
    engine, objects = make_training(seed)
    engine.state.max_epochs = epochs
    evaluator = Engine(lambda engine, batch: {})
    evaluator.network = objects["network"]

    def validate():
        evaluator.state.key_metric_name = "score"
        evaluator.run([0])

    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.state.metrics.update(score=seed + 1.0))
    best = BestCheckpoint(folder)
    objects.pop("lr_scheduler")
    TrainingRecord(objects, evaluator, best, folder, resume=resume).attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED(every=interval), validate)

    def stop():
        raise Stop

    if stop_at is not None:
        engine.add_event_handler(stop_on(once=stop_at), stop)
    with contextlib.suppress(Stop):
        engine.run(batches(), max_epochs=epochs)


@pytest.fixture
def earlier(tmp_path):
    train(tmp_path, seed=1)
    return tmp_path, {name: (tmp_path / name).read_bytes() for name in ("model.pt", "last.pt", "curve.csv")}


def test_a_finished_training_lists_its_files(earlier):
    part = read_manifest(earlier[0])["training"]
    assert part == {"of": {}, "files": ["curve.csv", "last.pt", "model.pt"]}


def test_a_training_that_fails_before_it_writes_leaves_the_earlier_one_whole(earlier):
    folder, files = earlier
    train(folder, stop_at=1, stop_on=Events.ITERATION_COMPLETED)
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert "unfinished" not in read_manifest(folder)["training"]


def test_weights_of_an_earlier_training_do_not_stand_beside_a_later_checkpoint(earlier):
    folder, files = earlier
    train(folder, epochs=4, stop_at=1, interval=3)
    assert not (folder / "model.pt").exists()
    assert torch.load(folder / "last.pt", weights_only=True)["epoch"] == 1
    assert read_manifest(folder)["training"]["unfinished"]
    train(folder, epochs=4, interval=3, resume=True)
    assert read_manifest(folder)["training"] == {"of": {}, "files": ["curve.csv", "last.pt", "model.pt"]}
    assert (folder / "model.pt").read_bytes() != files["model.pt"]


def test_nothing_is_deleted_for_weights_that_are_not_finite(earlier, monkeypatch):
    folder, files = earlier

    def diverge(optimizer):
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.data.fill_(torch.nan)

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.Adam, "step", diverge)
        patched.setattr(FiniteLoss, "attach", lambda self, engine: None)
        with pytest.raises(FloatingPointError, match="not finite"):
            train(folder)
    assert {name: (folder / name).read_bytes() for name in files} == files


def test_weights_that_no_training_listed_are_never_deleted(tmp_path):
    (tmp_path / "model.pt").write_text("shipped")
    for _ in range(2):
        train(tmp_path, epochs=4, stop_at=1, interval=3)
        assert (tmp_path / "model.pt").read_text() == "shipped"
        assert "model.pt" not in read_manifest(tmp_path)["training"]["files"]
