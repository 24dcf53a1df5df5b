"""The training of each bundle, resumed too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bundle_cases import EVERY_BUNDLE, messages, network_of, read_curve, read_json, steps_of, train

pytestmark = pytest.mark.filterwarnings("ignore")


bundles = EVERY_BUNDLE


def test_training_lowers_the_loss(bundle, scans, trained, tmp_path):
    """Of images that are the same in each epoch."""
    assert len(trained.losses) == steps_of(bundle)
    config, same = read_json(bundle / "configs" / "train.json")["train"], {}
    if isinstance(config["dataset"], str):
        same["train#dataset"] = "$@pairs.training(@num_pairs, shuffle=False)"
    elif "seed" in config["dataset"]:
        same["train#dataset#seed"] = 0
    if "SynthesizedBatch" in str(config["batch"]):
        same["train#batch#seed"] = 0
    losses = np.reshape(train(bundle, scans, tmp_path, max_epochs=4, val_interval=4, **same), (4, -1))
    assert losses[2:].mean() < losses[:2].mean()


def test_training_writes_checkpoints_curve_and_events(bundle, trained):
    assert {"model.pt", "last.pt", "curve.csv"} <= {path.name for path in trained.folder.iterdir()}
    assert list(trained.folder.glob("events.out.tfevents.*"))
    assert not [path for path in trained.folder.iterdir() if path.name.startswith(".")]
    curve = read_curve(trained.folder)
    assert [row["epoch"] for row in curve] == ["1", "2"]
    half = steps_of(bundle) // 2
    assert float(curve[1]["loss"]) == pytest.approx(np.mean(trained.losses[half:]), abs=1e-5)
    assert all(float(row["score"]) > 0 for row in curve)


def test_model_file_is_a_plain_state_dict_of_the_network(bundle, trained):
    network_of(bundle).load_state_dict(torch.load(trained.folder / "model.pt", weights_only=True), strict=True)


def test_model_file_holds_the_averaged_weights(bundle, trained):
    if not read_json(bundle / "configs" / "train.json").get("ema_decay"):
        pytest.skip("the bundle does not average its weights")
    average = torch.load(trained.folder / "model.pt", weights_only=True)
    latest = torch.load(trained.folder / "last.pt", weights_only=True)["network"]
    assert average.keys() == latest.keys()
    assert not all(torch.equal(average[name], latest[name]) for name in latest)


def test_training_with_another_seed_gives_other_numbers(bundle, scans, trained, tmp_path):
    assert train(bundle, scans, tmp_path, seed=1, max_epochs=1) != trained.losses[: steps_of(bundle) // 2]


def test_resumed_training_goes_on_as_if_it_had_not_been_interrupted(bundle, scans, trained, tmp_path):
    first = train(bundle, scans, tmp_path, max_epochs=1)
    before = torch.load(tmp_path / "last.pt", weights_only=True)
    second = train(bundle, scans, tmp_path, resume=True)
    after = torch.load(tmp_path / "last.pt", weights_only=True)
    assert (before["epoch"], after["epoch"]) == (1, 2)
    assert after["iteration"] == len(first) + len(second) == steps_of(bundle)
    assert [row["epoch"] for row in read_curve(tmp_path)] == ["1", "2"]
    np.testing.assert_allclose([*first, *second], trained.losses, rtol=1e-4)
    for name, weights in torch.load(trained.folder / "last.pt", weights_only=True)["network"].items():
        torch.testing.assert_close(after["network"][name], weights, rtol=1e-3, atol=1e-5)
    best, uninterrupted = (read_curve(folder)[-1]["score"] for folder in (tmp_path, trained.folder))
    assert float(best) == pytest.approx(float(uninterrupted), abs=1e-3)


def test_checkpoint_of_another_architecture_is_not_resumed(bundle, scans, trained, tmp_path):
    checkpoint = torch.load(trained.folder / "last.pt", weights_only=True)
    name, weight = next(iter(checkpoint["network"].items()))
    checkpoint["network"][name] = weight[:1]
    torch.save(checkpoint, tmp_path / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(RuntimeError) as caught:
        train(bundle, scans, tmp_path, resume=True)
    assert "is a checkpoint of another network" in messages(caught.value)
    assert (tmp_path / "last.pt").read_bytes() == before
