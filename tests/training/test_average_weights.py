"""Averaged weights."""

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn
from training.cases import batches, make_training

from custom_components.training.checkpoints import AverageWeights, ResumableCheckpoint, WeightAverage


def test_an_average_goes_on_when_a_run_is_resumed(tmp_path):
    def run(folder, max_epochs: int, resume: bool = False) -> dict[str, torch.Tensor]:
        engine, objects = make_training()
        objects["average"] = average = WeightAverage(objects["network"], 0.9)
        AverageWeights(average, Engine(lambda e, b: None)).attach(engine)
        ResumableCheckpoint(folder / "last.pt", objects, resume=resume).attach(engine)
        engine.run(batches(), max_epochs=max_epochs)
        return average.state_dict()

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    resumed = run(tmp_path / "parts", 4, resume=True)
    assert whole.keys() == resumed.keys() == {"weight", "bias"}
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_an_average_of_another_network_is_refused(tmp_path):
    average = WeightAverage(nn.Linear(2, 1))
    for other in ({"weight": torch.zeros(1, 3)}, {"weights": torch.zeros(1, 2)}):
        with pytest.raises(RuntimeError, match="average of other weights"):
            average.load_state_dict(other)


def train_with_average(decay: float) -> tuple[nn.Module, list[torch.Tensor], list[torch.Tensor]]:
    """The network after five epochs with validation; its weights seen there, and the trained ones after each step."""
    engine, objects = make_training()
    network = objects["network"]
    evaluator, seen, trained = Engine(lambda e, b: seen.append(network.weight.detach().clone())), [], []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: trained.append(network.weight.detach().clone()))
    AverageWeights(WeightAverage(network, decay), evaluator).attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
    engine.run(batches(), max_epochs=5)
    return network, seen, trained


def test_validation_sees_the_average_and_training_does_not():
    network, seen, trained = train_with_average(0.9)
    plain, objects = make_training()
    plain.run(batches(), max_epochs=5)
    assert torch.equal(network.weight, objects["network"].weight)
    assert torch.equal(network.weight, trained[-1])
    assert not torch.equal(seen[-1], trained[-1])


def test_average_lies_between_the_weights_it_is_made_of():
    _, seen, trained = train_with_average(0.9)
    stack = torch.stack(trained)
    assert (seen[-1] >= stack.amin(0)).all()
    assert (seen[-1] <= stack.amax(0)).all()
    # The first step counts little: the initial weights are forgotten early.
    assert (seen[-1] - trained[-1]).norm() < (trained[0] - trained[-1]).norm() / 2


def test_statistics_are_averaged_with_the_weights():
    network, evaluator = nn.BatchNorm1d(2), Engine(lambda e, b: seen.append(network.running_mean.clone()))
    engine, seen = Engine(lambda e, b: network(torch.full((4, 2), float(b)))), []
    AverageWeights(WeightAverage(network, 0.9), evaluator).attach(engine)
    engine.run([1.0] * 20)
    trained = network.running_mean.clone()
    evaluator.run([0])
    assert 0 < float(seen[0][0]) < float(trained[0])
    assert torch.equal(network.running_mean, trained)
    assert int(network.num_batches_tracked) == 20


def test_decay_of_zero_is_off():
    _, seen, trained = train_with_average(0)
    assert torch.equal(seen[-1], trained[-1])
