"""The best weights are kept."""

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn
from training.cases import batches, make_training

from custom_components.training.checkpoints import BestCheckpoint, ResumableCheckpoint
from custom_components.weights import read_sidecar


def run_scores(folder, scores: list[float], best: BestCheckpoint | None = None) -> tuple[BestCheckpoint, list[float]]:
    """Validate with these scores, the network's weight being the number of the validation; weights in the file."""
    network, found = nn.Linear(1, 1, bias=False), []
    best = best or BestCheckpoint(folder / "new", {"model.pt": nn.DataParallel(network)})
    evaluator = Engine(lambda engine, batch: None)
    evaluator.state.key_metric_name = "score"
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(score=scores[i]))
    best.attach(evaluator)
    for i in range(len(scores)):
        nn.init.constant_(network.weight, i)
        evaluator.run([0])
        found.append(float(torch.load(folder / "new" / "model.pt", weights_only=True)["weight"]))
    assert [path.name for path in (folder / "new").iterdir()] == ["model.pt"]
    return best, found


def test_the_best_weights_are_kept(tmp_path):
    assert run_scores(tmp_path, [0.2, 0.1, 0.4, float("nan"), 0.4, 0.5])[1] == [0, 0, 2, 2, 2, 5]


def test_the_first_weights_are_kept_whatever_their_score(tmp_path, caplog):
    nan = float("nan")
    assert run_scores(tmp_path, [nan, nan, -5.0, nan])[1] == [0, 0, 2, 2]
    assert "score is not a number" in caplog.text


def test_negative_scores_have_a_best(tmp_path):
    assert run_scores(tmp_path, [-3.0, -2.0, -2.5])[1] == [0, 1, 1]


def test_a_resumed_run_does_not_replace_better_weights(tmp_path):
    best, _ = run_scores(tmp_path, [0.2, 0.6])
    resumed = BestCheckpoint(tmp_path / "new", {"model.pt": nn.Linear(1, 1, bias=False)})
    engine, _ = make_training()
    ResumableCheckpoint(tmp_path / "last.pt", {"best": best}).attach(engine)
    engine.run(batches(), max_epochs=1)
    engine, _ = make_training()
    ResumableCheckpoint(tmp_path / "last.pt", {"best": resumed}, resume=True).attach(engine)
    engine.run(batches(), max_epochs=2)
    assert resumed.score == 0.6
    assert run_scores(tmp_path, [0.5], resumed)[1] == [1]


def test_best_weights_stay_when_saving_fails(tmp_path, monkeypatch):
    best, _ = run_scores(tmp_path, [0.2])

    def fail(state: dict, path: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        run_scores(tmp_path, [0.9], best)
    assert best.score == 0.2
    assert torch.load(tmp_path / "new" / "model.pt", weights_only=True)["weight"] == 0


def test_the_best_weights_say_what_they_were_trained_for_and_how_long(tmp_path):
    network = nn.Linear(1, 1, bias=False)
    best = BestCheckpoint(tmp_path, {"model.pt": network, "other.pt": network}, {"spacing": 2.0, "spatial_dims": 3})
    trainer, evaluator = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    evaluator.state.key_metric_name = "score"
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(score=trainer.state.epoch))
    best.attach(evaluator, trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED(every=2), lambda: evaluator.run([0]))
    trainer.run(torch.utils.data.DataLoader(range(12), batch_size=4), max_epochs=4)
    sidecar = read_sidecar(tmp_path / "model.pt")
    sidecar.pop("state")
    assert sidecar == {"spacing": 2.0, "spatial_dims": 3, "steps": 12, "pairs_per_step": 4, "validation": 4.0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.pt", "other.pt"]
