"""Event handlers: what they write, and that they leave the training as it was."""

import csv
import json
import logging

import pytest
import torch
from ignite.engine import Engine, Events
from monai.transforms import Randomizable
from monai.utils import set_determinism
from torch import nn

from custom_components.data.phantoms import phantom_pair
from custom_components.evaluation.cohort import CohortReport
from custom_components.fields import warp
from custom_components.training.checkpoints import AverageWeights, BestCheckpoint, ResumableCheckpoint, WeightAverage
from custom_components.training.logs import ProgressBar, TrainingCurve, loss_terms
from custom_components.training.scores import registration_score


def make_training(seed: int = 0, features: int = 3) -> tuple[Engine, dict]:
    """An engine that fits a linear network, its loss a term of its output; and what a checkpoint needs."""
    torch.manual_seed(seed)
    network = nn.Linear(features, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    def step(engine: Engine, x: torch.Tensor) -> dict:
        loss = (network(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach(), "pred": {"terms": {"similarity": loss.detach() / 2}}}

    engine = Engine(step)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: scheduler.step())
    return engine, {"network": network, "optimizer": optimizer, "lr_scheduler": scheduler}


def batches(features: int = 3) -> list[torch.Tensor]:
    return list(torch.randn(3, 4, features, generator=torch.Generator().manual_seed(5)))


def read_rows(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def make_evaluator(score: float = 0.5) -> Engine:
    evaluator = Engine(lambda engine, batch: None)
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(score=score))
    return evaluator


# loss_terms and registration_score


def test_loss_terms_are_the_total_and_the_parts_by_name():
    loss, part = torch.tensor(2.0), torch.tensor(0.5)
    assert loss_terms({"loss": loss, "pred": {"terms": {"similarity": part}}}) == {"loss": loss, "similarity": part}


def test_loss_terms_of_a_loss_without_parts_are_the_total():
    assert list(loss_terms({"loss": torch.tensor(2.0), "pred": {}})) == ["loss"]


def test_score_is_the_dice_of_the_warped_labels(phantoms):
    targets = {key: phantoms[key] for key in ("moving", "fixed", "label_moving", "label_fixed")}
    scores = [
        float(registration_score({"label": targets, "pred": {"ddf": ddf, "warped": warp(phantoms["moving"], ddf)}}))
        for ddf in (torch.zeros_like(phantoms["ddf"]), phantoms["ddf"])
    ]
    assert scores[0] < scores[1]
    assert scores[1] > 0.8


def test_score_without_labels_is_the_correlation(phantoms):
    targets = {key: phantoms[key] for key in ("moving", "fixed")}
    score = registration_score({"label": targets, "pred": {"ddf": phantoms["ddf"], "warped": phantoms["fixed"]}})
    assert float(score) == pytest.approx(1, abs=1e-6)


def test_score_with_the_labels_of_one_side_is_the_correlation(phantoms):
    targets = {key: phantoms[key] for key in ("moving", "fixed", "label_moving")}
    score = registration_score({"label": targets, "pred": {"ddf": phantoms["ddf"], "warped": phantoms["fixed"]}})
    assert float(score) == pytest.approx(1, abs=1e-6)


def test_score_is_the_mean_over_the_batch():
    pair = phantom_pair((32, 32), seed=1, batch=2)
    single = [
        registration_score(
            {
                "label": {key: pair[key][i : i + 1] for key in ("label_moving", "label_fixed")},
                "pred": {"ddf": pair["ddf"][i : i + 1]},
            }
        )
        for i in range(2)
    ]
    assert registration_score({"label": pair, "pred": pair}) == pytest.approx(float(sum(single) / 2), abs=1e-6)


# ResumableCheckpoint


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


# BestCheckpoint


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


# WeightAverage


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


# TrainingCurve


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


# ProgressBar


def test_progress_bar_shows_the_loss_and_its_terms(capsys):
    engine, _ = make_training()
    ProgressBar().attach(engine)
    engine.run(batches(), max_epochs=1)
    shown = capsys.readouterr().err
    assert "loss=" in shown
    assert "similarity=" in shown


# CohortReport


def run_cohort(folder, outputs: list[list[dict]]) -> None:
    engine = Engine(lambda engine, batch: batch)
    CohortReport(folder).attach(engine)
    engine.run(outputs, max_epochs=1)


def test_cohort_report_writes_a_table_numbers_and_a_page(tmp_path):
    run_cohort(tmp_path, [[{"metrics": {"id": name, "dice_after": dice}}] for name, dice in (("a", 0.5), ("b", 0.7))])
    assert [row["id"] for row in read_rows(tmp_path / "metrics.csv")] == ["a", "b"]
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert result["num_pairs"] == 2
    assert result["summary"]["dice_after"]["mean"] == pytest.approx(0.6)
    assert "dice_after" in (tmp_path / "index.html").read_text()


def test_one_pair_needs_no_cohort_report(tmp_path):
    run_cohort(tmp_path, [[{"metrics": {"id": "a"}}]])
    assert not list(tmp_path.iterdir())


def test_items_without_measures_are_passed_over(tmp_path):
    run_cohort(tmp_path, [[{"warped": 0}, {"metrics": {"id": "a", "x": 1.0}}], [{"metrics": {"id": "b", "x": 2.0}}]])
    assert [row["id"] for row in read_rows(tmp_path / "metrics.csv")] == ["a", "b"]
