"""A training ends with a sentence when its numbers are no numbers, and leaves the files as they were."""

import math

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn
from training.cases import batches, make_training

from custom_components.training.checkpoints import BestCheckpoint, ResumableCheckpoint
from custom_components.training.finite import FiniteLoss, check_finite

NOT_FINITE = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_a_loss_that_is_not_finite_ends_the_training_at_once(bad):
    losses = iter([0.5, 0.4, bad, 0.3])
    engine, seen = Engine(lambda engine, batch: {"loss": torch.tensor(next(losses))}), []
    FiniteLoss().attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(e.state.iteration))
    with pytest.raises(FloatingPointError, match=rf"became {bad} at step 3 \(epoch 2\).*learning_rate"):
        engine.run([0, 1], max_epochs=2)
    assert seen == [1, 2]


@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize("part", ["weights", "optimizer"])
def test_a_checkpoint_is_not_replaced_by_one_that_is_not_finite(tmp_path, bad, part):
    engine, objects = make_training()
    checkpoint = ResumableCheckpoint(tmp_path / "last.pt", objects)
    checkpoint.attach(engine)
    engine.run(batches(), max_epochs=1)
    before = (tmp_path / "last.pt").read_bytes()
    network, optimizer = objects["network"], objects["optimizer"]
    values = network.weight if part == "weights" else optimizer.state[network.weight]["exp_avg"]
    values.detach()[0, 1] = bad
    with pytest.raises(FloatingPointError, match=r"last\.pt is not written.*(network\.weight|exp_avg)"):
        checkpoint.save(engine)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_best_weights_are_all_kept_when_one_network_is_not_finite(tmp_path, bad):
    networks = {"a.pt": nn.Linear(2, 1), "b.pt": nn.BatchNorm1d(2)}
    best, evaluator = BestCheckpoint(tmp_path, networks), Engine(lambda engine, batch: None)
    evaluator.state.key_metric_name, evaluator.state.metrics = "score", {"score": 0.5}
    best.save(evaluator)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    networks["b.pt"].running_mean[0] = bad
    nn.init.zeros_(networks["a.pt"].weight)
    evaluator.state.metrics = {"score": 0.9}
    with pytest.raises(FloatingPointError, match=r"b\.pt is not written.*running_mean"):
        best.save(evaluator)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert best.score == 0.5


def test_weights_that_are_not_finite_are_no_start(tmp_path):
    engine, objects = make_training()
    state = objects["network"].state_dict()
    state["bias"][0] = math.nan
    torch.save(state, tmp_path / "model.pt")
    checkpoint = ResumableCheckpoint(tmp_path / "last.pt", objects, initial_weights=tmp_path / "model.pt")
    with pytest.raises(FloatingPointError, match=r"model\.pt: the network has values that are not finite, bias"):
        checkpoint.attach(engine)


def test_what_is_no_decimal_number_is_finite():
    check_finite({"a": torch.tensor([1, 2]), "b": [None, "text", -math.inf], "c": {"d": torch.ones(2)}}, "it")


@pytest.mark.parametrize("content", [b"", b"no weights", "list"])
def test_a_file_without_weights_is_named(tmp_path, content):
    engine, objects = make_training()
    path = tmp_path / "model.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save([torch.ones(2)], path)
    for settings in ({"initial_weights": path}, {"resume": True}):
        place = path if "resume" in settings else tmp_path / "last.pt"
        checkpoint = ResumableCheckpoint(place, objects, **settings)
        with pytest.raises(ValueError, match=r"model\.pt: (this is no file|expected a file) of"):
            checkpoint.attach(engine) or checkpoint.load(engine)
