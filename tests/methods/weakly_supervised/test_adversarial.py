"""The game of a registration network and a discriminator, by MONAI's engine."""

from __future__ import annotations

import csv
import math

import pytest
import torch
from bundle_cases import BUNDLES, train
from torch import nn

from custom_components.data.phantoms import write_phantom_scans
from custom_components.methods.weakly_supervised.adversarial import Discriminator, Game

(BUNDLE,) = [bundle for bundle in BUNDLES if bundle.name == "weakly_supervised"]
FAST = {"box_size": [32, 32], "features": 2, "max_epochs": 1, "num_pairs": 4}


class Numbers:
    """An adversary of plain numbers: real ones of one distribution, the network's of another."""

    def __init__(self, real_mean: float) -> None:
        self.real_mean = real_mean

    def real(self, targets):
        return torch.randn_like(targets["fixed"]) + self.real_mean

    def fake(self, pred, targets):
        return pred["ddf"]


def game(discriminator, real_mean=0.0, weight=1.0, smoothing=1.0):
    def loss(pred, targets):
        pred["terms"] = {}
        return 0 * pred["ddf"].sum()

    def prepare(batch, device, non_blocking):
        return batch["image"], {"fixed": batch["image"]}, (), {}

    def inferer(image, network):
        return {"ddf": network(image)}

    return Game(prepare, inferer, loss, discriminator, Numbers(real_mean), weight=weight, smoothing=smoothing)


class Noise(nn.Module):
    """A generator: normal numbers about a learned mean."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(3.0))

    def forward(self, image):
        return torch.randn_like(image) + self.mean


class Line(nn.Module):
    """A discriminator: logistic regression."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x):
        return self.layer(x)


def played(steps: int, generator_steps: bool):
    torch.manual_seed(0)
    network, discriminator, batch = Noise(), Line(), {"image": torch.zeros(512, 1)}
    one = game(discriminator)
    optimizers = [torch.optim.Adam(part.parameters(), lr=0.02) for part in (network, discriminator)]
    losses = []
    for _ in range(steps):
        targets = one.prepare(batch, "cpu", False)
        pred = one.predict(one.inputs(), network)
        pair = [one.discriminator_loss(pred, targets)]
        optimizers[1].zero_grad()
        pair[0].backward()
        optimizers[1].step()
        pred = one.predict(one.inputs(), network)
        pair.append(one.network_loss(pred))
        optimizers[0].zero_grad()
        pair[1].backward()
        if generator_steps:
            optimizers[0].step()
        losses.append([float(value) for value in pair])
    return network, one, losses


def test_a_discriminator_alone_learns_to_tell_both_apart():
    _, one, losses = played(300, generator_steps=False)
    assert float(one.accuracy) > 0.9
    assert losses[-1][0] < 0.5


def test_the_balance_has_the_closed_form_losses():
    """Where it cannot tell them apart: 2 ln 2 for the discriminator, ln 2 for the network, accuracy a half."""
    network, one, losses = played(800, generator_steps=True)
    last = torch.tensor(losses[-100:]).mean(0)
    assert float(network.mean) == pytest.approx(0, abs=0.3)
    assert float(last[0]) == pytest.approx(2 * math.log(2), abs=0.05)
    assert float(last[1]) == pytest.approx(math.log(2), abs=0.1)
    assert float(one.accuracy) == pytest.approx(0.5, abs=0.08)


def test_without_weight_the_registration_is_that_without_a_discriminator():
    network = Noise()
    one = game(Line(), weight=0.0)
    one.prepare({"image": torch.zeros(4, 1)}, "cpu", False)
    one.network_loss(one.predict(one.inputs(), network)).backward()
    assert float(network.mean.grad) == 0


@pytest.mark.parametrize("dims", [2, 3])
def test_the_discriminator_is_bounded_in_its_slope(dims):
    torch.manual_seed(0)
    network = Discriminator(dims, 4, widths=(4, 8))
    a = torch.rand(1, 4, *[16] * dims)
    for _ in range(20):  # the power iteration goes on in training
        network(a)
    b = a + 0.1 * torch.rand_like(a)
    assert (network(a) - network(b)).norm() < 3 * 3**dims * (a - b).norm()
    assert network(a).shape[:2] == (1, 1)


@pytest.mark.parametrize("variants", [["train_adversarial"], ["train_adversarial", "train_adversarial_images"]])
@pytest.mark.filterwarnings("ignore")
def test_both_games_train_and_resume_with_their_discriminator(variants, tmp_path):
    scans = tmp_path / "scans"
    write_phantom_scans(scans, 4, (32, 32))
    configs = [f"{name}.json" for name in ("train_2d", *variants)]
    settings = {**FAST, "size": [32, 32]}
    losses = train(BUNDLE, scans, tmp_path / "run", *configs, **settings)
    losses += train(BUNDLE, scans, tmp_path / "run", *configs, **{**settings, "max_epochs": 2, "resume": True})
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)
    with open(tmp_path / "run" / "curve.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        assert float(row["adversarial"]) > 0
        assert 0 <= float(row["accuracy"]) <= 1
        assert 0 < float(row["discriminator"]) < 5
    kept = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert {"network", "optimizer", "discriminator", "discriminator_optimizer"} <= set(kept)
