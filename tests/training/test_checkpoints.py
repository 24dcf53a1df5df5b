"""Checkpoints: exact resuming, initial weights, refusals."""

import logging

import pytest
import torch
from ignite.engine import Engine, Events
from monai.transforms import Randomizable
from monai.utils import set_determinism
from torch import nn
from training.cases import batches, make_training

from custom_components.training.checkpoints import ResumableCheckpoint


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    engine, whole = make_training()
    engine.run(batches(), max_epochs=4)
    engine, objects = make_training()
    ResumableCheckpoint(tmp_path / "last.pt", objects).attach(engine)
    engine.run(batches(), max_epochs=2)
    engine, objects = make_training(seed=1)
    ResumableCheckpoint(tmp_path / "last.pt", objects, resume=True).attach(engine)
    state = engine.run(batches(), max_epochs=4)
    assert (state.epoch, state.iteration) == (4, 12)
    for a, b in zip(whole["network"].parameters(), objects["network"].parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole["lr_scheduler"].get_last_lr() == objects["lr_scheduler"].get_last_lr()


def test_without_resume_training_starts_anew(tmp_path):
    for _ in range(2):
        engine, objects = make_training()
        ResumableCheckpoint(tmp_path / "last.pt", objects).attach(engine)
        assert engine.run(batches(), max_epochs=1).iteration == 3


def test_resume_without_a_checkpoint_starts_anew(tmp_path):
    engine, objects = make_training()
    ResumableCheckpoint(tmp_path / "last.pt", objects, resume=True).attach(engine)
    assert engine.run(batches(), max_epochs=1).iteration == 3


def test_checkpoint_of_another_architecture_is_refused_in_one_sentence(tmp_path):
    engine, objects = make_training(features=3)
    ResumableCheckpoint(tmp_path / "last.pt", objects).attach(engine)
    engine.run(batches(3), max_epochs=1)
    engine, objects = make_training(features=4)
    ResumableCheckpoint(tmp_path / "last.pt", objects, resume=True).attach(engine)
    with pytest.raises(
        RuntimeError, match=r"last\.pt is a checkpoint of another network: .*weight.*\[1, 3\]"
    ) as caught:
        engine.run(batches(4), max_epochs=2)
    assert "\n" not in str(caught.value)


def weights_file(path, value: float = 7.0, features: int = 3) -> str:
    torch.save({"weight": torch.full((1, features), value), "bias": torch.full((1,), value)}, path)
    return str(path)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("wrap", [nn.Identity, nn.DataParallel])
def test_training_starts_from_initial_weights(tmp_path, resume, wrap):
    """With `resume`, too, as long as there is nothing to resume."""
    engine, objects = make_training()
    network = objects["network"]
    given = network if wrap is nn.Identity else wrap(network)
    weights = weights_file(tmp_path / "model.pt")
    checkpoint = ResumableCheckpoint(
        tmp_path / "last.pt", {**objects, "network": given}, resume=resume, initial_weights=weights
    )
    checkpoint.attach(engine)
    assert all((weight == 7).all() for weight in network.parameters())
    state = engine.run(batches(), max_epochs=2)
    assert (state.epoch, state.iteration) == (2, 6)
    assert not any((weight == 7).all() for weight in network.parameters())


def test_resuming_wins_over_initial_weights(tmp_path):
    weights = weights_file(tmp_path / "model.pt")
    engine, whole = make_training()
    ResumableCheckpoint(tmp_path / "other.pt", whole, initial_weights=weights).attach(engine)
    engine.run(batches(), max_epochs=4)
    for epochs, value in ((2, 7.0), (4, -7.0)):
        engine, objects = make_training(seed=epochs)
        weights = weights_file(tmp_path / "model.pt", value)
        ResumableCheckpoint(tmp_path / "last.pt", objects, resume=True, initial_weights=weights).attach(engine)
        state = engine.run(batches(), max_epochs=epochs)
    assert (state.epoch, state.iteration) == (4, 12)
    for a, b in zip(whole["network"].parameters(), objects["network"].parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_resume_initial_weights_win_over_an_old_checkpoint(tmp_path):
    engine, objects = make_training()
    ResumableCheckpoint(tmp_path / "last.pt", objects).attach(engine)
    engine.run(batches(), max_epochs=1)
    engine, objects = make_training()
    weights = weights_file(tmp_path / "model.pt")
    ResumableCheckpoint(tmp_path / "last.pt", objects, initial_weights=weights).attach(engine)
    assert (objects["network"].weight == 7).all()


def test_initial_weights_of_another_architecture_are_refused_in_one_sentence(tmp_path):
    engine, objects = make_training(features=4)
    weights = weights_file(tmp_path / "model.pt", features=3)
    checkpoint = ResumableCheckpoint(tmp_path / "last.pt", objects, initial_weights=weights)
    with pytest.raises(RuntimeError, match=r"model\.pt is .* another network: .*weight.*\[1, 3\]") as caught:
        checkpoint.attach(engine)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrap", [nn.Identity, nn.DataParallel])
def test_parameters_that_initial_weights_lack_start_afresh_and_are_named(tmp_path, wrap, caplog):
    engine, objects = make_training()
    network = objects["network"]
    bias = network.bias.detach().clone()
    given = network if wrap is nn.Identity else wrap(network)
    weights = tmp_path / "model.pt"
    torch.save({"weight": torch.full((1, 3), 7.0)}, weights)
    objects = {**objects, "network": given}
    checkpoint = ResumableCheckpoint(tmp_path / "last.pt", objects, initial_weights=weights, fresh=["bia"])
    with caplog.at_level(logging.INFO, "custom_components.training.checkpoints"):
        checkpoint.attach(engine)
    assert (network.weight == 7).all()
    assert torch.equal(network.bias, bias)
    assert caplog.messages == [f"{weights} lacks bias: they start afresh"]
    assert engine.run(batches(), max_epochs=1).iteration == 3


def test_whole_initial_weights_are_taken_without_a_word(tmp_path, caplog):
    engine, objects = make_training()
    checkpoint = ResumableCheckpoint(tmp_path / "last.pt", objects, initial_weights=weights_file(tmp_path / "model.pt"))
    with caplog.at_level(logging.INFO, "custom_components.training.checkpoints"):
        checkpoint.attach(engine)
    assert not caplog.messages


def test_surplus_initial_weights_are_refused_in_one_sentence(tmp_path, caplog):
    """Also if others may be lacking: a file of other names is that of another network."""
    engine, objects = make_training()
    weights = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(1, 3), "flow.weight": torch.zeros(1)}, weights)
    checkpoint = ResumableCheckpoint(tmp_path / "last.pt", objects, initial_weights=weights, fresh=["bias"])
    with (
        caplog.at_level(logging.INFO, "custom_components.training.checkpoints"),
        pytest.raises(RuntimeError, match=r"model\.pt is .* another network: .*flow\.weight") as caught,
    ):
        checkpoint.attach(engine)
    assert "\n" not in str(caught.value)
    assert not caplog.messages


@pytest.mark.parametrize("fresh", [(), ["flow."]])
def test_initial_weights_may_lack_only_what_is_named(tmp_path, fresh):
    engine, objects = make_training()
    torch.save({"weight": torch.zeros(1, 3)}, tmp_path / "model.pt")
    checkpoint = ResumableCheckpoint(tmp_path / "last.pt", objects, initial_weights=tmp_path / "model.pt", fresh=fresh)
    with pytest.raises(RuntimeError, match=r"another network: .*bias"):
        checkpoint.attach(engine)


def test_checkpoint_to_resume_must_be_whole(tmp_path):
    """Only initial weights may lack parameters."""
    engine, objects = make_training()
    ResumableCheckpoint(tmp_path / "last.pt", objects).attach(engine)
    engine.run(batches(), max_epochs=1)
    checkpoint = torch.load(tmp_path / "last.pt", weights_only=True)
    del checkpoint["network"]["bias"]
    torch.save(checkpoint, tmp_path / "last.pt")
    engine, objects = make_training()
    ResumableCheckpoint(tmp_path / "last.pt", objects, resume=True).attach(engine)
    with pytest.raises(RuntimeError, match=r"last\.pt is a checkpoint of another network: .*bias"):
        engine.run(batches(), max_epochs=2)


def test_missing_initial_weights_are_named(tmp_path):
    engine, objects = make_training()
    checkpoint = ResumableCheckpoint(tmp_path / "last.pt", objects, initial_weights=tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        checkpoint.attach(engine)


def test_checkpoint_without_an_object_is_refused(tmp_path):
    engine, objects = make_training()
    network_only = {"network": objects["network"]}
    ResumableCheckpoint(tmp_path / "last.pt", network_only).attach(engine)
    engine.run(batches(), max_epochs=1)
    engine, objects = make_training()
    ResumableCheckpoint(tmp_path / "last.pt", objects, resume=True).attach(engine)
    with pytest.raises(RuntimeError, match="optimizer"):
        engine.run(batches(), max_epochs=2)


def test_save_that_fails_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    engine, objects = make_training()
    checkpoint = ResumableCheckpoint(tmp_path / "last.pt", objects)
    checkpoint.attach(engine)
    engine.run(batches(), max_epochs=1)
    before = (tmp_path / "last.pt").read_bytes()

    def fail(state: dict, path: object) -> None:
        with open(path, "wb") as file:  # type: ignore[call-overload]
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(engine)
    assert (tmp_path / "last.pt").read_bytes() == before


def test_checkpoint_is_written_at_the_interval_and_at_the_end(tmp_path):
    engine, objects = make_training()
    checkpoint = ResumableCheckpoint(tmp_path / "last.pt", objects, interval=2)
    epochs = []
    save = checkpoint.save
    checkpoint.save = lambda e: (save(e), epochs.append(e.state.epoch))[0]
    checkpoint.attach(engine)
    engine.run(batches(), max_epochs=3)
    assert epochs == [2, 3]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 3


def test_checkpoint_of_a_wrapped_network_fits_the_plain_one(tmp_path):
    network = nn.Linear(3, 1)
    checkpoint = ResumableCheckpoint(tmp_path / "last.pt", {"network": nn.DataParallel(network)})
    engine, _ = make_training()
    checkpoint.save(engine)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["network"].keys() == network.state_dict().keys()


class Draws(Randomizable, torch.utils.data.Dataset):
    """Three random numbers of its own."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> float:
        return float(self.R.uniform())


def numbers_of(folder, max_epochs: int, *, resume: bool = False, seed: int = 4) -> list[list[float]]:
    """What an engine with a dataset draws in each iteration: the item, and a number of torch's."""
    set_determinism(seed)
    engine = Engine(lambda engine, batch: seen.append([*batch.tolist(), float(torch.rand(()))]))
    seen = []
    ResumableCheckpoint(folder / "last.pt", {}, resume=resume).attach(engine)
    dataset = Draws().set_random_state(seed)
    engine.run(torch.utils.data.DataLoader(dataset, batch_size=1, shuffle=True), max_epochs=max_epochs)
    set_determinism(None)
    return seen


def test_random_numbers_go_on_when_a_run_is_resumed(tmp_path):
    whole = numbers_of(tmp_path, 3)
    assert len({tuple(numbers) for numbers in whole}) == 9
    assert numbers_of(tmp_path, 1) + numbers_of(tmp_path, 3, resume=True) == whole
    assert numbers_of(tmp_path, 3, seed=5) != whole


@pytest.mark.parametrize(("first", "second"), [(3, 6), (6, 4), (6, 6)])
def test_a_cosine_schedule_goes_on_at_the_new_length(tmp_path, first, second):
    def rates(length: int, max_epochs: int, resume: bool = False) -> list[float]:
        optimizer, engine, seen = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1), Engine(lambda e, b: None), []
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=length)
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: seen.append(optimizer.param_groups[0]["lr"]))
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: optimizer.step())
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: scheduler.step())
        objects = {"optimizer": optimizer, "lr_scheduler": scheduler}
        ResumableCheckpoint(tmp_path / "last.pt", objects, resume=resume).attach(engine)
        engine.run(batches(), max_epochs=max_epochs)
        return seen

    rates(first, 3)
    assert rates(second, second, resume=True) == pytest.approx(rates(second, second)[3:], abs=1e-9)
